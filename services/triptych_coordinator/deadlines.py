"""How much time a request or a wait has left."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from triptych import errors


class Deadline:
    """A moment that nothing done for a request may pass, and who is told that it waits."""

    def __init__(
        self,
        seconds: float | None,
        on_waiting: Callable[[str], None] = lambda _stage: None,
        on_queued: Callable[[int, float | None], None] = lambda _position, _seconds: None,
    ) -> None:
        """`seconds` from now; None for no limit.

        `on_waiting` hears of a stage that is waited for, `on_queued` of the position among the requests that
        wait, from 1 on, and about how many seconds that takes, if it is known.
        """
        self.on_waiting = on_waiting
        self.on_queued = on_queued
        self._expires_at = None if seconds is None else time.monotonic() + seconds

    def left(self, otherwise: float) -> float:
        """Seconds that are left, 0 when none; `otherwise` without a limit."""
        return otherwise if self._expires_at is None else max(0.0, self._expires_at - time.monotonic())

    def timeout(self, at_most: float) -> float:
        """Seconds that a call may take: what is left, but no more than `at_most`.

        Raises:
            TriptychError: DEADLINE_EXCEEDED when nothing is left.
        """
        left = self.left(at_most)
        if left <= 0:
            raise errors.deadline_exceeded("the request's deadline passed")
        return min(left, at_most)


async def within(seconds: float, awaitable: Awaitable[object]) -> None:
    """Waits for it, but not longer than that."""
    try:
        await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        return
