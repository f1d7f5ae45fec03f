"""What happened in the last minute, for those who watch a fleet live."""

import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 60.0
MOST = 20_000
"""Of more, the newest are remembered."""


class LastMinute(Generic[T]):
    """Things and when they happened, as long as that is not older than a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: deque[tuple[float, T]] = deque(maxlen=MOST)

    def add(self, entry: T) -> None:
        """It happened now."""
        self._forget()
        self._entries.append((self._clock(), entry))

    def all(self) -> list[T]:
        """Oldest first."""
        self._forget()
        return [entry for _, entry in self._entries]

    def _forget(self) -> None:
        oldest = self._clock() - SECONDS
        while self._entries and self._entries[0][0] < oldest:
            self._entries.popleft()
