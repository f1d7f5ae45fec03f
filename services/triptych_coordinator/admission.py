"""Whose request runs now, whose waits, and whose is sent away: by cost, with a fair share for each client.

A request's load is what it puts on the denoiser at once: rows x tokens, in units of one picture as the model
makes it by default. Its cost is that times its steps. Clients take turns by the cost that they had served
(start-time fair queueing, Goyal et al., 1996): one that floods the queue waits for itself.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from triptych import errors

MOST_RUNNING = 64
"""Requests that run at the same time, however light."""
_FIRST_GUESS_SECONDS = 1.0
_NEW_SHARE = 0.2


@dataclass(eq=False)
class _Waiting:
    """A request that waits for its turn."""

    client: str
    load: float
    cost: float
    priority: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairAdmission:
    """Lets requests run up to a load, and so many wait, clients in turn.

    A client of which nothing runs is let in beside the others: the denoiser shares itself among them.
    """

    def __init__(self, max_load: float, max_waiting: int) -> None:
        """`max_load` in default pictures at once; a request that is larger runs when nothing else does."""
        self._max_load = max_load
        self._max_waiting = max_waiting
        self._load = 0.0
        self._running: dict[str, int] = defaultdict(int)
        self._waiting: list[_Waiting] = []
        self._served: dict[str, float] = {}
        """Cost of each client that runs or waits; who comes begins where the least served one is."""
        self._seconds_per_cost: float | None = None

    @asynccontextmanager
    async def admit(self, client: str, load: float, steps: int, priority: int = 0) -> AsyncIterator[None]:
        """Waits for a turn and holds it for the duration of the block.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED when too many wait, with the time that those of this client take
                as RetryInfo.
        """
        entry = _Waiting(client, load, load * steps, priority)
        self._check_room(entry)
        self._served.setdefault(client, min(self._served.values(), default=0.0))
        self._waiting.append(entry)
        try:
            self._start_some()
            await entry.turn
        except BaseException:
            self._left(entry)
            raise
        started = time.monotonic()
        try:
            yield
            self._learn(entry.cost, time.monotonic() - started)
        finally:
            self._ended(entry)

    def _check_room(self, entry: _Waiting) -> None:
        own = sum(one.client == entry.client for one in self._waiting)
        clients = {one.client for one in self._waiting} | {entry.client}
        if len(self._waiting) >= self._max_waiting and own >= self._max_waiting // len(clients):
            raise errors.resource_exhausted(
                f"{len(self._waiting)} requests wait, {own} of them yours: that is all there is room for; try"
                " again later",
                self._seconds(entry.client, len(clients)),
            )

    def _seconds(self, client: str, clients: int) -> float:
        """How long the waiting requests of a client take, whose share is one of so many."""
        if self._seconds_per_cost is None:
            return _FIRST_GUESS_SECONDS
        cost = sum(one.cost for one in self._waiting if one.client == client)
        return max(0.1, cost * clients * self._seconds_per_cost)

    def _start_some(self) -> None:
        while (entry := self._next()) is not None:
            self._waiting.remove(entry)
            self._load += entry.load
            self._running[entry.client] += 1
            self._served[entry.client] += entry.cost
            entry.turn.set_result(None)

    def _next(self) -> _Waiting | None:
        """The request to start now, the most urgent of the client that had least; None without room."""
        if not self._waiting or sum(self._running.values()) >= MOST_RUNNING:
            return None
        new = [one for one in self._waiting if not self._running.get(one.client)]
        first = min(new or self._waiting, key=lambda one: (self._served[one.client], -one.priority))
        fits = bool(new) or self._load == 0 or self._load + first.load <= self._max_load
        return first if fits else None

    def _left(self, entry: _Waiting) -> None:
        """Someone went away who waited, or whose turn came just then."""
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._forget(entry.client)
        else:
            self._ended(entry)

    def _ended(self, entry: _Waiting) -> None:
        self._running[entry.client] -= 1
        self._load = self._load - entry.load if any(self._running.values()) else 0.0
        self._forget(entry.client)
        self._start_some()

    def _forget(self, client: str) -> None:
        """A client of which nothing runs or waits has no past."""
        if not self._running.get(client) and all(one.client != client for one in self._waiting):
            self._running.pop(client, None)
            self._served.pop(client, None)

    def _learn(self, cost: float, seconds: float) -> None:
        """What a unit of cost takes: requests that ran beside this one took their part of the time."""
        share = cost * max(1, sum(self._running.values()))
        now = seconds / share
        before = self._seconds_per_cost
        self._seconds_per_cost = now if before is None else before + _NEW_SHARE * (now - before)
