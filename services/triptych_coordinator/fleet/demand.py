"""How much a stage has to do, for who decides how many replicas it has."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

MEAN_SECONDS = 5.0
"""Over about so long rows are averaged: calls are shorter than an autoscaler's questions are apart."""


class Demand:
    """Rows of a stage that are outstanding: waiting for a replica or a turn, or being computed.

    A row is a sample under a guidance branch for a denoiser, a prompt for a text encoder, a picture for a VAE
    codec.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows = self._expecting = 0
        self._mean = 0.0
        self._measured_at = clock()
        self._needed_until = -math.inf
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def rows(self) -> int:
        """Outstanding now."""
        return self._rows

    @property
    def mean_rows(self) -> float:
        """Outstanding of late: a mean over time in which what is older than MEAN_SECONDS counts little."""
        self._pass_time()
        return self._mean

    @contextmanager
    def outstanding(self, rows: int) -> Iterator[None]:
        """Holds so many rows as outstanding for the duration of the block."""
        self._add(rows, 1)
        try:
            yield
        finally:
            self._add(-rows, -1)

    def expected(self) -> AbstractContextManager[None]:
        """Says for the duration of the block that rows will come."""
        return self.outstanding(0)

    def needed(self, linger_seconds: float) -> bool:
        """Whether rows are outstanding or expected, or were within the last so many seconds."""
        return self._expecting > 0 or self._clock() < self._needed_until + linger_seconds

    async def changes(self, linger_seconds: float) -> AsyncGenerator[bool, None]:
        """Whether it is needed: now, and each time that this changes, until end_changes."""
        said: bool | None = None
        while not self._ended:
            changed, needed = self._changed, self.needed(linger_seconds)
            if needed is not said:
                said = needed
                yield needed
                continue  # time has passed
            lingers = needed and not self._expecting
            left = self._needed_until + linger_seconds - self._clock() if lingers else None
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left)

    def end_changes(self) -> None:
        """Nobody hears of changes any more."""
        self._ended = True
        self._tell()

    def _add(self, rows: int, expecting: int) -> None:
        self._pass_time()
        before = self._expecting > 0
        self._rows += rows
        self._expecting += expecting
        self._needed_until = self._clock()
        if (self._expecting > 0) is not before:
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _pass_time(self) -> None:
        now = self._clock()
        kept = math.exp((self._measured_at - now) / MEAN_SECONDS)
        self._mean = self._rows + kept * (self._mean - self._rows)
        self._measured_at = now
