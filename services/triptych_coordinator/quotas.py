"""How many pictures a caller may have in a minute, by the quota of its credential."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from triptych import errors
from triptych.serving.callers.caller import Caller

MINUTE = 60.0
_ROUNDING = 1e-9
FEW = 1024
"""So many callers are remembered whether or not they have anything to pay."""


@dataclass
class _Bucket:
    """What is left of a quota, and when that was so. Below 0 after a request of more than a minute's."""

    left: float
    at: float
    quota: float

    def refill(self, now: float, quota: float) -> None:
        """What has come since, of a quota that may be another one now."""
        self.left = min(quota, self.left + (now - self.at) * quota / MINUTE)
        self.at, self.quota = now, quota


class Quotas:
    """A token bucket for each caller that has a quota: a minute's pictures at once, and then as they refill.

    Counted are pictures as the model makes them by default: one of twice the tokens, steps or branches is
    two. Each coordinator counts for itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._many = FEW

    @asynccontextmanager
    async def charged(
        self, caller: Caller | None, pictures: float, turn: AbstractAsyncContextManager[None]
    ) -> AsyncIterator[None]:
        """Charges a request and holds its turn for the duration of the block.

        One that never got its turn costs nothing. One that is larger than the quota runs when that is whole,
        and the next one waits until it is paid for.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED, with the time until the quota has room for it as RetryInfo.
        """
        self._take(caller, pictures)
        began = False
        try:
            async with turn:
                began = True
                yield
        finally:
            if not began:
                self._give_back(caller, pictures)

    def _take(self, caller: Caller | None, pictures: float) -> None:
        if caller is None or caller.quota is None:
            return
        bucket = self._refilled(caller.share, caller.quota)
        missing = min(pictures, caller.quota) - bucket.left
        if missing > _ROUNDING:
            seconds = math.ceil(1000 * missing * MINUTE / caller.quota - 1e-6) / 1000
            raise errors.resource_exhausted(
                f"{caller} may have {caller.quota:g} pictures a minute, counted as the model makes them by "
                f"default; this request counts as {pictures:.3g} and {max(0.0, bucket.left):.3g} are left: "
                f"try again in {seconds:.1f} s",
                seconds,
            )
        bucket.left -= pictures

    def _give_back(self, caller: Caller | None, pictures: float) -> None:
        if caller is not None and caller.quota is not None:
            self._refilled(caller.share, caller.quota).left += pictures

    def _refilled(self, share: str, quota: float) -> _Bucket:
        now = self._clock()
        if len(self._buckets) >= self._many:
            self._forget_full(now)
        bucket = self._buckets.setdefault(share, _Bucket(quota, now, quota))
        bucket.refill(now, quota)
        return bucket

    def _forget_full(self, now: float) -> None:
        """Full buckets are as good as none, and subjects of tokens are any number."""
        for bucket in self._buckets.values():
            bucket.refill(now, bucket.quota)
        self._buckets = {name: one for name, one in self._buckets.items() if one.left < one.quota}
        self._many = max(FEW, 2 * len(self._buckets))
