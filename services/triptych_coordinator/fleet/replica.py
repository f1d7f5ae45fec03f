"""A replica of a stage: how it is reached, what it serves, the work it has in hand, and how fast it is."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from triptych.errors import TriptychError
from triptych.v1 import model_pb2
from triptych_coordinator.fleet.retries import Method
from triptych_coordinator.fleet.routing import MeasuredPace
from triptych_coordinator.fleet.uploads import Uploads
from triptych_coordinator.last_minute import LastMinute

log = logging.getLogger(__name__)

_NEW_SHARE = 0.3
_FIRST_EJECTION = 1.0
_LONGEST_EJECTION = 60.0


class Description(Protocol):
    """A stage's answer to GetModel."""

    @property
    def model(self) -> model_pb2.ModelInfo:
        """Name, precision, fingerprint."""
        ...


class Stub(Protocol):
    """What every stage is asked."""

    @property
    def GetModel(self) -> Method[Any, Any]:
        """For its Description."""
        ...


S = TypeVar("S", bound=Stub)


async def _not_for_tls() -> None:
    """Where there is none."""


@dataclass(frozen=True)
class StageTimes:
    """How the time of a call went, by the stage's own answer, in seconds, and what a denoiser says of itself.

    batch_rows: rows of the passes that the call's were in, on average.
    waiting_rows, oldest_row: rows that still wait, and for how many seconds the first.
    """

    queue: float = 0.0
    compute: float = 0.0
    batch_rows: float = 0.0
    waiting_rows: int = 0
    oldest_row: float = 0.0


@dataclass(frozen=True)
class Answer:
    """That a replica did work, in so many seconds as the coordinator saw it."""

    seconds: float
    times: StageTimes


@dataclass(frozen=True)
class Connection(Generic[S]):
    """The stub of a replica, what ends the connection, and what says why TLS keeps it from coming about."""

    stub: S
    close: Callable[[], Awaitable[None]]
    why_not: Callable[[], Awaitable[str | None]] = _not_for_tls


@dataclass(frozen=True)
class Source(Generic[S]):
    """Where the replicas of a stage are, and how one is reached.

    address: what errors call the stage's place.
    look_up: the addresses of all replicas now. Raises OSError.
    connect: an address's connection.
    look_up_seconds: after how long to look again; None where nothing changes.
    """

    address: str
    look_up: Callable[[], Awaitable[Sequence[str]]]
    connect: Callable[[str], Connection[S]]
    look_up_seconds: float | None


class Replica(Generic[S]):
    """A replica as this coordinator knows it.

    description: its latest answer to GetModel; None before the first.
    ready: whether it is believed to answer.
    failures: how often it failed since it last did work.
    uploads: the conditioning that it was sent; nothing but a denoiser is sent any.
    """

    def __init__(self, address: str, connection: Connection[S]) -> None:
        self.address = address
        self.stub = connection.stub
        self.description: Description | None = None
        self.ready = False
        self.failures = 0
        self.uploads = Uploads()
        self.answers = LastMinute[Answer]()
        self.outstanding = 0.0
        self.last_chosen = 0
        self.checked = asyncio.Event()
        """Set when it was asked for its description once, whatever came of it."""
        self._connection = connection
        self._calls = 0
        self._mistakes = 0
        self._ejected_until = 0.0
        self._unused = asyncio.Event()
        self._unused.set()
        self._pace: float | None = None
        self._measured_at = 0.0

    @property
    def calls(self) -> int:
        """Of work, which it has not answered yet."""
        return self._calls

    @property
    def fingerprint(self) -> str | None:
        """Of its model, as it last said."""
        return None if self.description is None else self.description.model.fingerprint

    @contextmanager
    def working(self, work: float) -> Iterator[float]:
        """Holds a call's work as outstanding for the duration of the block. Gives all that is, with it."""
        self.outstanding += work
        self._calls += 1
        self._unused.clear()
        try:
            yield self.outstanding
        finally:
            self._calls -= 1
            self.outstanding = self.outstanding - work if self._calls else 0.0  # floats: exactly 0 when idle
            if not self._calls:
                self._unused.set()

    def measure(self, seconds: float, outstanding: float) -> None:
        """Learns that a call took `seconds` when so much work was outstanding, its own included."""
        if not (0 < seconds < math.inf and outstanding > 0):
            return
        pace = seconds / outstanding
        self._pace = pace if self._pace is None else self._pace + _NEW_SHARE * (pace - self._pace)
        self._measured_at = time.monotonic()

    def measured_pace(self) -> MeasuredPace | None:
        """Its pace as its answers say, and how old that is; None before the first."""
        return None if self._pace is None else MeasuredPace(self._pace, time.monotonic() - self._measured_at)

    @property
    def trusted(self) -> bool:
        """Whether its latest work was right. After a mistake and its ejection it gets one call for proof."""
        return not self._mistakes or (self._ejected_until <= time.monotonic() and not self._calls)

    def distrust(self) -> float | None:
        """It made a mistake: for so many seconds, twice as many each time, others are preferred to it.

        None if it is ejected already: calls that ran at the same time are one mistake.
        """
        now = time.monotonic()
        if now < self._ejected_until:
            return None
        seconds = min(_FIRST_EJECTION * 2.0 ** min(self._mistakes, 30), _LONGEST_EJECTION)
        self._mistakes += 1
        self._ejected_until = now + seconds
        return seconds

    def succeed(self) -> None:
        """It did work as it should."""
        self.failures = self._mistakes = 0

    def fail(self) -> None:
        """It is not ready until it has answered again, perhaps as a new process that was sent nothing."""
        self.ready = False
        self.failures += 1
        self.uploads = Uploads()

    async def leave(self) -> None:
        """Ends the connection when its calls have ended."""
        await self._unused.wait()
        await self.close()

    async def say_not_there(self, stage: str, error: TriptychError) -> None:
        """Logs that it does not answer, and why if it is TLS that keeps a connection from coming about."""
        log.warning("the %s at %s is not there: %s", stage, self.address, error.message)
        why = await self._connection.why_not()
        if why is not None:
            log.warning("the %s cannot be called: %s", stage, why)

    async def close(self) -> None:
        """Ends the connection; running calls are cancelled."""
        await self._connection.close()


@dataclass(frozen=True)
class Job(Generic[S]):
    """What is to be done by any one replica.

    work: how much, in units of the stage's own; 0 for a mere question.
    fingerprint: that of the model which must do it; None for any.
    prepared: whether a replica already has what is needed.
    """

    work: float = 0.0
    fingerprint: str | None = None
    prepared: Callable[[Replica[S]], bool] = lambda _replica: True


def trusted(replicas: list[Replica[S]]) -> list[Replica[S]]:
    """Those whose work was right, or all of them if there are none: then it may be what they were asked."""
    return [one for one in replicas if one.trusted] or replicas
