"""Who of a stage's replicas is there: found, asked what they serve, ejected, and asked until they return."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from triptych import errors
from triptych.errors import TriptychError
from triptych.v1 import model_pb2
from triptych_coordinator.deadlines import Deadline, within
from triptych_coordinator.fleet.metrics import FleetMetrics
from triptych_coordinator.fleet.replica import Description, Replica, S, Source
from triptych_coordinator.fleet.retries import HealthCheck, attempt, without_request
from triptych_coordinator.fleet.routing import leading

log = logging.getLogger(__name__)

D = TypeVar("D", bound=Description)
Fits: TypeAlias = Callable[[model_pb2.ModelInfo], bool]

_SOONEST_LOOK = 1.0


class Membership(Generic[S, D]):
    """The replicas of a stage as they come and go, fail and return.

    replicas: all that are known, by address.
    leading: the fingerprint on which requests begin; None before any replica said what it serves.
    described_at: when a replica with that fingerprint last said it, by time.monotonic().
    news: set when a replica is ready that was not.
    last_error: why the latest to go away did so.
    """

    def __init__(
        self,
        stage: str,
        source: Source[S],
        question: Message,
        positive: Collection[str],
        health_check: HealthCheck,
        fits: Fits,
        metrics: FleetMetrics,
    ) -> None:
        """Nobody is called yet. As Fleet."""
        self.replicas: dict[str, Replica[S]] = {}
        self.leading: str | None = None
        self.described_at = -math.inf
        self.news = asyncio.Event()
        self.last_error: str | None = None
        self._stage = stage
        self._source = source
        self._question = question
        self._positive = positive
        self._health_check = health_check
        self._fits = fits
        self._metrics = metrics
        self._descriptions: dict[str, D] = {}
        """The last answer of a replica with each fingerprint."""
        self._following = False
        self._looked_up = asyncio.Event()
        self._first_round: asyncio.Task[None] | None = None
        self._checking: set[Replica[S]] = set()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def description(self) -> D:
        """What a replica with the leading fingerprint last said; there must be one."""
        assert self.leading is not None
        return self._descriptions[self.leading]

    def with_fingerprint(self, fingerprint: str | None) -> list[Replica[S]]:
        """The replicas whose model has it; all for None."""
        return [one for one in self.replicas.values() if fingerprint in (None, one.fingerprint)]

    async def first_look(self, deadline: Deadline) -> None:
        """Begins to look where the replicas are, or waits until that was done once."""
        if not self._following:
            self._following = True
            self.in_background(self._keep_looking())
        if not self._looked_up.is_set():
            await within(deadline.timeout(self._health_check.timeout), self._looked_up.wait())

    async def first_health_checks(self, deadline: Deadline) -> None:
        """Waits until all replicas that were found first have said what they serve or had the time."""
        await self.first_look(deadline)
        if self._first_round is None:
            checked = asyncio.gather(*(one.checked.wait() for one in self.replicas.values()))
            self._first_round = self.in_background(within(self._health_check.timeout, checked))
        if not self._first_round.done():
            await within(deadline.timeout(self._health_check.timeout), asyncio.shield(self._first_round))

    async def ask(self, replica: Replica[S]) -> D:
        """What a replica says that it serves. Raises TriptychError if it does not, or that is nonsense."""
        described: D = await attempt(replica.stub.GetModel, self._question, self._health_check.timeout)
        lacking = [field for field in self._positive if getattr(described, field) <= 0]
        lacking += [field for field in ("name", "fingerprint") if not getattr(described.model, field)]
        if lacking:
            raise errors.internal(f"what it says of its model lacks {', '.join(lacking)}")
        return described

    async def describe(self, replica: Replica[S]) -> None:
        """Asks a replica what it serves; it is ready when it has answered. Raises TriptychError as `ask`."""
        described = await self.ask(replica)
        before, was_ready = replica.fingerprint, replica.ready
        replica.description, replica.ready = described, True
        self._descriptions[described.model.fingerprint] = described
        if not was_ready or before != replica.fingerprint:
            log.info("the %s at %s is ready", self._stage, replica.address)
            self.news.set()
            self._lead()
            if replica.fingerprint != self.leading:
                log.warning(
                    "the %s at %s computes otherwise than the others (%s, fingerprint %s): requests go to it "
                    "only when more replicas do as it does",
                    self._stage, replica.address, described.model.name, replica.fingerprint,
                )  # fmt: skip
        if replica.fingerprint == self.leading:
            self.described_at = time.monotonic()

    def distrust(self, replica: Replica[S], mistake: str) -> None:
        """Others are preferred to it for a while."""
        seconds = replica.distrust()
        if seconds is not None:
            self._metrics.ejected()
            log.warning(
                "the %s at %s is ejected for %g s: %s", self._stage, replica.address, seconds, mistake
            )
            self.last_error = mistake

    def eject(self, replica: Replica[S], error: TriptychError) -> None:
        """It gets no work until it has answered a question."""
        if replica.ready:
            self._metrics.ejected()
            log.warning("the %s at %s is ejected: %s", self._stage, replica.address, without_request(error))
            self.last_error = without_request(error)
            replica.fail()
            self._lead()
            self._check_health(replica)

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Works on it until `close`."""
        task = asyncio.create_task(work, context=Context())  # no request's own
        self._background.add(task)
        task.add_done_callback(partial(set.discard, self._background))
        return task

    async def close(self) -> None:
        """Ends what is done in the background, and all connections; running calls are cancelled."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.replicas.values()))

    async def _keep_looking(self) -> None:
        """Looks often while nobody is ready: who was scaled to zero may come with a new address."""
        found = True
        while True:
            try:
                self._update(await self._source.look_up())
                found = True
            except OSError as error:  # those that are known stay
                if found:
                    log.warning("cannot look up the %s at %s: %s", self._stage, self._source.address, error)
                found = False
            self._looked_up.set()
            period = self._source.look_up_seconds
            if period is None:
                return
            ready = any(one.ready for one in self.replicas.values())
            await asyncio.sleep(period if ready else min(period, _SOONEST_LOOK))

    def _update(self, addresses: Sequence[str]) -> None:
        """Takes in who joined, and lets go who left once their calls have ended."""
        for address in addresses:
            if address not in self.replicas:
                replica: Replica[S] = Replica(address, self._source.connect(address))
                self.replicas[address] = replica
                self._check_health(replica)
        for address in self.replicas.keys() - set(addresses):
            log.info("the %s at %s left", self._stage, address)
            self.in_background(self.replicas.pop(address).leave())
            self._lead()

    def _check_health(self, replica: Replica[S]) -> None:
        if replica not in self._checking:
            self._checking.add(replica)
            self.in_background(self._check_until_it_gets_work(replica))

    async def _check_until_it_gets_work(self, replica: Replica[S]) -> None:
        """Asks with a backoff that grows while it keeps failing.

        One that computes otherwise than the others is asked on: no call would find out that it was restarted.
        """
        while self.replicas.get(replica.address) is replica and not self._gets_work(replica):
            check = self._health_check
            await asyncio.sleep(check.longest_backoff if replica.ready else check.backoff(replica.failures))
            try:
                await self.describe(replica)
            except TriptychError as error:
                self.eject(replica, error)
                self.last_error = error.message
                if not replica.failures:
                    self.in_background(replica.say_not_there(self._stage, error))
                replica.failures += 1
            replica.checked.set()
        self._checking.discard(replica)

    def _gets_work(self, replica: Replica[S]) -> bool:
        return replica.ready and replica.fingerprint == self.leading

    def _lead(self) -> None:
        """Decides on which fingerprint requests begin: the usual one of those that fit and are ready."""
        known = [one for one in self.replicas.values() if one.description is not None]
        fitting = [one for one in known if one.description and self._fits(one.description.model)]
        for group in ([one for one in fitting if one.ready], fitting, known):
            found = leading([one.fingerprint for one in group if one.fingerprint is not None], self.leading)
            if found is not None:
                if self.leading not in (None, found):
                    log.warning("requests of a %s begin on fingerprint %s from now on", self._stage, found)
                self.leading = found
                for replica in known:
                    if replica.ready and replica.fingerprint != found:
                        self._check_health(replica)
                return
