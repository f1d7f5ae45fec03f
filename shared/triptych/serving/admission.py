"""Who is served now, who waits, and who is sent away."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from triptych import errors


class Admission:
    """Lets a bounded number of calls run and a bounded number wait, first come, first served."""

    def __init__(self, max_running: int, max_waiting: int = 0) -> None:
        self._running = asyncio.Semaphore(max_running)
        self._max_inside = max_running + max_waiting
        self._inside = 0
        self._last_seconds = 1.0

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it for the duration of the block.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED when too many wait, with the time the last call took as
                RetryInfo.
        """
        if self._inside >= self._max_inside:
            raise errors.resource_exhausted(
                f"{self._inside} requests are running or waiting, which is the limit; try again later",
                retry_after_seconds=self._last_seconds,
            )
        self._inside += 1
        try:
            async with self._running:
                started = time.monotonic()
                yield
                self._last_seconds = time.monotonic() - started
        finally:
            self._inside -= 1
