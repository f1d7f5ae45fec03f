"""Whose request runs now, whose waits, and whose is sent away: by cost, with a fair share for each client.

A request's load is what it puts on the denoiser at once: rows x tokens, in units of one picture as the model
makes it by default. Its cost is that times its steps. Of the load that runs each client that is here has an
equal share, and clients take turns by the cost that they had served (start-time fair queueing, Goyal et al.,
1996): one that floods the queue waits for itself.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush

from triptych import errors
from triptych.errors import TriptychError
from triptych.telemetry import instruments
from triptych.telemetry.instruments import QUEUE

MOST_RUNNING = 64
"""Requests that run at the same time, however light."""
MOST_BESIDE = 2
"""Times the load: while fewer clients run, one of which nothing runs is let in beside them."""
LINGER_SECONDS = 1.0
"""Who asks for one thing after the other keeps its share for so long in between."""
TELL_SECONDS = 1.0
"""Those that wait are told of changes at most so often."""
_FIRST_GUESS_SECONDS = 1.0
_HALF_LIFE_SECONDS = 10.0
_REQUESTS = {QUEUE: "requests"}


OnQueued = Callable[[int, float | None], None]
"""Hears of a position among those that wait, from 1 on, and about how many seconds that takes, if known."""


@dataclass(eq=False)
class _Waiting:
    """A request that waits for its turn, and then has it; `told`: the position that it knows."""

    client: str
    load: float
    cost: float
    priority: int
    on_queued: OnQueued
    told: int | None = None
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    since: float = field(default_factory=time.monotonic)


class _Throughput:
    """Cost that was served, and the seconds that something ran for it; what is old counts less."""

    def __init__(self) -> None:
        self._cost = self._seconds = 0.0
        self._busy = False
        self._at = time.monotonic()

    def busy(self, busy: bool) -> None:
        """Something runs from now on, or nothing."""
        self._pass_time()
        self._busy = busy

    def add(self, cost: float) -> None:
        """So much was served."""
        self._pass_time()
        self._cost += cost

    def seconds_per_cost(self) -> float | None:
        """None while nothing was served."""
        self._pass_time()
        return self._seconds / self._cost if self._cost else None

    def _pass_time(self) -> None:
        now = time.monotonic()
        if self._busy:
            passed = now - self._at
            kept = 0.5 ** (passed / _HALF_LIFE_SECONDS)
            self._cost, self._seconds = self._cost * kept, self._seconds * kept + passed
        self._at = now


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
        self._loads: dict[str, float] = defaultdict(float)
        self._waiting: list[_Waiting] = []
        self._turns: dict[_Waiting, float] = {}
        """Those that run, and when they began."""
        self._changed = False
        self._pause: asyncio.TimerHandle | None = None
        """Ends when those that wait may be told again."""
        self._arriving = Counter[str]()
        """Requests of each client that are still being read."""
        self._served: dict[str, float] = {}
        """Cost of each client that runs or waits; who comes begins where the least served one is."""
        self._throughput = _Throughput()
        instruments.queue_length.watch(self, lambda admission: len(admission._waiting), _REQUESTS)
        instruments.queue_age.watch(self, FairAdmission.oldest_seconds, _REQUESTS)
        instruments.requests_running.watch(self, FairAdmission.num_running, {})

    @asynccontextmanager
    async def admit(
        self,
        client: str,
        load: float,
        steps: int,
        priority: int = 0,
        on_queued: OnQueued = lambda _position, _seconds: None,
    ) -> AsyncIterator[None]:
        """Waits for a turn and holds it for the duration of the block.

        While it waits `on_queued` hears of its position: at once, and when that changes.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED when too many wait, with the time that those of this client take
                as RetryInfo.
        """
        entry = _Waiting(client, load, load * steps, priority, on_queued)
        refusal = self._refusal(client)
        self._served.setdefault(client, min(self._served.values(), default=0.0))
        self._waiting.append(entry)
        try:
            self._start_some()
            if refusal is not None and not entry.turn.done():
                raise refusal
            if not entry.turn.done():
                self._tell({entry})
                self._tell_others()
            await entry.turn
            instruments.queue_duration.record(time.monotonic() - entry.since, _REQUESTS)
        except BaseException:
            self._left(entry)
            raise
        try:
            yield
            self._throughput.add(entry.cost)
        finally:
            self._ended(entry)

    @contextmanager
    def arriving(self, client: str) -> Iterator[None]:
        """Holds a place among those that wait while a request is read, so that refusing costs no reading.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED, as admit, unless the request may start at once.
        """
        refusal = self._refusal(client)
        if refusal is not None and not self._may_start(client):
            raise refusal
        self._arriving[client] += 1
        try:
            yield
        finally:
            self._arriving[client] -= 1
            self._arriving += Counter()  # without those that are 0

    def num_running(self) -> int:
        """Requests that have their turn."""
        return sum(list(self._running.values()))

    def num_waiting(self) -> int:
        """Requests that wait for it."""
        return len(self._waiting)

    def oldest_seconds(self) -> float:
        """Seconds that the request which came first has been waiting."""
        now = time.monotonic()
        return now - min((one.since for one in list(self._waiting)), default=now)

    def _may_start(self, client: str) -> bool:
        """Whether a request of which nothing is known yet may be so light that it need not wait."""
        if sum(self._running.values()) >= MOST_RUNNING:
            return False
        alone = not self._running.get(client) and not self._arriving[client]
        return alone or (not self._waiting and self._load < self._max_load)

    def _refusal(self, client: str) -> TriptychError | None:
        """What a client is told whose next request has no room to wait in; None if it has."""
        waiting = self._arriving + Counter(one.client for one in self._waiting)
        own, clients = waiting[client], len(waiting.keys() | {client})
        if waiting.total() < self._max_waiting or own < self._max_waiting // clients:
            return None
        return errors.resource_exhausted(
            f"{waiting.total()} requests wait, {own} of them yours: that is all there is room for; try again"
            " later",
            self._seconds(client),
        )

    def _seconds(self, client: str) -> float:
        """How long until the last of a client's waiting requests begins, if others always ask for more."""
        seconds_per_cost = self._throughput.seconds_per_cost()
        if seconds_per_cost is None:
            return _FIRST_GUESS_SECONDS
        return max(0.1, self._cost_before(client) * seconds_per_cost)

    def _cost_before(self, client: str) -> float:
        """The cost that has to be served until the last of a client's waiting requests begins."""
        waiting = list(enumerate(self._waiting))
        own = [(place, one.cost) for place, one in waiting if one.client == client]
        cost = sum(cost for _, cost in own)
        last_place, last_cost = own[-1] if own else (0, 0.0)
        begins_at = self._served.get(client, min(self._served.values(), default=0.0)) + cost - last_cost
        firsts = {one.client: (place, one.cost) for place, one in reversed(waiting)}
        running = {one for one, count in self._running.items() if count}
        for other in (firsts.keys() | running) - {client}:
            place, first_cost = firsts.get(other, (len(waiting), 0.0))
            behind = begins_at - self._served[other]
            if behind > 0 or (behind == 0 and place < last_place):
                cost += max(behind, first_cost)
        return cost

    def _start_some(self) -> None:
        while (entry := self._next()) is not None:
            self._waiting.remove(entry)
            self._turns[entry] = time.monotonic()
            self._load += entry.load
            self._loads[entry.client] += entry.load
            self._running[entry.client] += 1
            self._throughput.busy(True)
            self._served[entry.client] += entry.cost
            entry.turn.set_result(None)

    def _next(self) -> _Waiting | None:
        """The request to start now, the most urgent of the client that had least; None without room."""
        if not self._waiting or sum(self._running.values()) >= MOST_RUNNING:
            return None
        share = self._max_load / len(self._served)
        new = [one for one in self._waiting if not self._running.get(one.client)]
        in_turn = new or [one for one in self._waiting if self._loads[one.client] + one.load <= share]
        if not in_turn:
            return None
        first = min(in_turn, key=lambda one: (self._served[one.client], -one.priority))
        beside = bool(new) and sum(map(bool, self._running.values())) < MOST_BESIDE * self._max_load
        fits = beside or self._load == 0 or self._load + first.load <= self._max_load
        return first if fits else None

    def _left(self, entry: _Waiting) -> None:
        """Someone went away who waited, or whose turn came just then."""
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._forget(entry.client)
            self._tell_others()
        else:
            self._ended(entry)

    def _ended(self, entry: _Waiting) -> None:
        client = entry.client
        del self._turns[entry]
        self._running[client] -= 1
        self._loads[client] = self._loads[client] - entry.load if self._running[client] else 0.0
        self._load = self._load - entry.load if any(self._running.values()) else 0.0
        self._throughput.busy(any(self._running.values()))
        self._forget(client)
        self._start_some()
        self._tell_others()

    def _tell(self, waiting: Collection[_Waiting]) -> None:
        """Tells those of them whose position is another one than they know."""
        for position, (entry, seconds) in enumerate(self._in_order(), 1):
            if entry in waiting and entry.told != position:
                entry.told = position
                entry.on_queued(position, seconds)

    def _tell_others(self) -> None:
        """Tells all that wait, or does so a little later if it was just done."""
        self._changed = bool(self._waiting)
        if self._pause is None:
            self._tell_changes()

    def _tell_changes(self) -> None:
        self._pause = None
        if self._changed:
            self._changed = False
            self._tell(set(self._waiting))
            self._pause = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell_changes)

    def _in_order(self) -> Iterator[tuple[_Waiting, float | None]]:
        """Those that wait as their turns would come if nobody else came, and in how many seconds, if known.

        Clients take turns as in _next, but when there will be room for a request is not known: nearly right.
        """
        queues: dict[str, list[tuple[int, int, _Waiting]]] = defaultdict(list)
        for number, one in enumerate(self._waiting):
            heappush(queues[one.client], (-one.priority, number, one))
        clients: list[tuple[bool, float, int, int, _Waiting]] = []

        def line_up(client: str, runs: bool, served: float, earlier: int) -> None:
            if queues[client]:
                _, number, entry = heappop(queues[client])
                heappush(clients, (runs, served, earlier, number, entry))

        for client in list(queues):
            line_up(client, bool(self._running.get(client)), self._served[client], 0)
        seconds_per_cost = self._throughput.seconds_per_cost()
        before = 0.0 if seconds_per_cost is None else self._cost_left(seconds_per_cost)
        while clients:
            _, served, earlier, _, entry = heappop(clients)
            yield entry, None if seconds_per_cost is None else before * seconds_per_cost
            before += entry.cost
            line_up(entry.client, True, served + entry.cost, earlier + 1)

    def _cost_left(self, seconds_per_cost: float) -> float:
        """Of those that run, which share the denoiser by their loads."""
        now = time.monotonic()
        per_load = 1 / (seconds_per_cost * self._load) if self._load else 0.0
        return sum(
            max(0.0, one.cost - (now - began) * one.load * per_load) for one, began in self._turns.items()
        )

    def _forget(self, client: str) -> None:
        """A client of which nothing runs or waits has no past, once it stayed away for a while."""
        if self._is_away(client):
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._forget_now, client)

    def _forget_now(self, client: str) -> None:
        if client in self._served and self._is_away(client):
            del self._served[client]
            self._running.pop(client, None)
            self._loads.pop(client, None)
            self._start_some()  # the others' shares have grown
            self._tell_others()

    def _is_away(self, client: str) -> bool:
        return not self._running.get(client) and all(one.client != client for one in self._waiting)
