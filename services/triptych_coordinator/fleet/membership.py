"""The replicas of one stage: who is there, who takes a call, and what becomes of a call that fails."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from triptych import errors
from triptych.errors import TriptychError
from triptych.v1 import model_pb2
from triptych_coordinator.deadlines import Deadline, within
from triptych_coordinator.fleet.demand import Demand
from triptych_coordinator.fleet.metrics import FleetMetrics
from triptych_coordinator.fleet.replica import (
    Answer,
    Description,
    Job,
    Replica,
    S,
    Source,
    StageTimes,
    trusted,
)
from triptych_coordinator.fleet.retries import (
    Failure,
    HealthCheck,
    RetryPolicy,
    attempt,
    explained,
    failure_of,
    nobody,
    without_request,
)
from triptych_coordinator.fleet.routing import CLEARLY_BUSIER, Candidate, believed_paces, choose, leading

log = logging.getLogger(__name__)

D = TypeVar("D", bound=Description)
R = TypeVar("R")
Work: TypeAlias = Callable[[Replica[S], float], Coroutine[Any, Any, R]]
Fits: TypeAlias = Callable[[model_pb2.ModelInfo], bool]

FRESH_SECONDS = 1.0
"""For so long what a stage serves is not asked again."""
SILENT_SECONDS = 1.0
"""A request that waits longer for a replica is told so."""
_SOONEST_LOOK = 1.0
_SHORTEST_PAUSE = 0.01


class Fleet(Generic[S, D]):
    """The replicas of a stage. They come and go, fail and return; a call goes to one that can do it."""

    def __init__(
        self,
        stage: str,
        source: Source[S],
        question: Message,
        positive: Collection[str],
        health_check: HealthCheck,
        retries: RetryPolicy,
        fits: Fits,
    ) -> None:
        """Nobody is called yet.

        Args:
            stage: its name in errors, e.g. "denoiser".
            source: where the replicas are.
            question: what GetModel is called with.
            positive: fields of its answer that are more than 0 in any that makes sense.
            health_check: how long and how often to wait for a replica's answer to that.
            retries: how calls of its work are repeated.
            fits: whether a model is the one that is wanted.
        """
        self.stage = stage
        self.demand = Demand()
        self.metrics = FleetMetrics(stage)
        self._source = source
        self._question = question
        self._positive = positive
        self._health_check = health_check
        self.retries = retries
        self._fits = fits
        self._replicas: dict[str, Replica[S]] = {}
        self._leading: str | None = None
        self._descriptions: dict[str, D] = {}
        """The last answer of a replica with each fingerprint."""
        self._described_at = -math.inf
        self._refreshing: asyncio.Task[None] | None = None
        self._first_round: asyncio.Task[None] | None = None
        self._last_error: str | None = None
        self._choices = itertools.count(1)
        self._looked_up = asyncio.Event()
        self._news = asyncio.Event()
        """Set when a replica is ready that was not."""
        self._checking: set[Replica[S]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._following = False
        self.metrics.watch(self, self._replicas, self.demand)

    @property
    def replicas(self) -> list[Replica[S]]:
        """All that are known."""
        return list(self._replicas.values())

    @property
    def described(self) -> bool:
        """Whether a replica ever said what it serves."""
        return self._leading is not None

    async def description(self, deadline: Deadline, fresh: bool = False) -> D:
        """What the stage serves: the model of most replicas that serve the wanted one.

        Asked anew if it must be fresh, or that was not done within FRESH_SECONDS; while nobody answers, it is
        the last known answer.

        Raises:
            TriptychError: UNAVAILABLE, or DEADLINE_EXCEEDED, when no replica ever answered.
        """
        await self._first_health_checks(deadline)
        if self._leading is None:
            await self._next_available(Job(), {}, deadline)
        elif fresh or time.monotonic() - self._described_at > FRESH_SECONDS:
            await self._refreshed()
        assert self._leading is not None  # someone is or was ready
        return self._descriptions[self._leading]

    async def _refreshed(self) -> None:
        """Asks a replica again what it serves, once however many requests wait for that."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._in_background(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        replica = self._chosen(Job(fingerprint=self._leading), {})
        if replica is not None:
            try:
                await self._describe(replica)
            except TriptychError as error:
                self._eject(replica, error)

    def idle(self, fingerprint: str) -> int:
        """How many replicas with this model are idle and not clearly slower than the others, at least 1."""
        suitable = trusted([one for one in self._suitable(Job(fingerprint=fingerprint)) if one.ready])
        paces = believed_paces([one.measured_pace() for one in suitable])
        fast = CLEARLY_BUSIER * min(paces, default=0.0)
        idle = sum(one.outstanding == 0 and pace <= fast for one, pace in zip(suitable, paces, strict=True))
        return max(1, idle)

    async def call(
        self,
        work: Work[S, R],
        job: Job[S],
        deadline: Deadline,
        times: Callable[[R], StageTimes] | None = None,
    ) -> R:
        """Has a replica do the work, in so many seconds; where it fails, another one, until one succeeds.

        While no replica is there it waits: up to the deadline, or max_wait seconds without one. A replica
        whose answer is wrong is not asked again. `times` are how long the replica took, by its own answer.

        Raises:
            TriptychError: DEADLINE_EXCEEDED when `deadline` passed; UNAVAILABLE when nobody came for so long,
                or so many replicas failed as the retry policy allows; else, when the failure is the request's
                or every replica answered wrongly, as retries.explained says.
        """
        failures, busy_until, retries = 0, dict[Replica[S], float](), self.retries
        while True:
            replica = self._chosen(job, busy_until)
            if replica is None:
                replica = await self._next_available(job, busy_until, deadline)
            limit, began = deadline.timeout(retries.attempt_timeout), time.monotonic()
            try:
                with replica.working(job.work) as outstanding:
                    answer = await self._watched(replica, job, work(replica, limit))
            except TriptychError as error:
                if deadline.left(math.inf) < _SHORTEST_PAUSE:
                    raise errors.deadline_exceeded("the request's deadline passed") from error
                failure, ended = failure_of(error), time.monotonic()
                self.metrics.failed(replica.address, ended - began, error.code.name)
                busy_until[replica] = ended + (errors.retry_after_seconds(error) or 0)
                if failure is Failure.TRANSIENT:
                    if ended - began >= retries.attempt_timeout:  # it answers questions, but finishes nothing
                        self._distrust(replica, f"it did not finish in {retries.attempt_timeout:g} s")
                    self._eject(replica, error)
                    failures += 1
                elif failure is Failure.BROKEN:
                    self._distrust(replica, without_request(error))
                    busy_until[replica] = math.inf
                hopeless = failure is Failure.OF_THE_REQUEST or failures == retries.attempts
                if hopeless or all(busy_until.get(one) == math.inf for one in self._suitable(job)):
                    raise explained(error, self.stage, replica.address, retries) from error
                self.metrics.retried(failure)
                continue
            replica.succeed()
            seconds = time.monotonic() - began
            took = None if times is None else times(answer)
            self.metrics.answered(replica.address, seconds, took)
            replica.answers.add(Answer(seconds, took or StageTimes()))
            if took is not None:
                replica.measure(took.queue + took.compute, outstanding)
            return answer

    async def close(self) -> None:
        """Ends all connections once their calls have ended."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))

    async def _next_available(
        self, job: Job[S], busy_until: Mapping[Replica[S], float], deadline: Deadline
    ) -> Replica[S]:
        """Waits until a replica can take the job, and says so if that takes a while."""
        await self._first_look(deadline)
        began, told = time.monotonic(), False
        limit = deadline.left(self.retries.max_wait)
        while (replica := self._chosen(job, busy_until)) is None:
            waited = time.monotonic() - began
            if waited >= limit:
                deadline.timeout(self.retries.max_wait)
                others = any(one.ready for one in self._replicas.values())
                raise nobody(self.stage, self._source.address, others and job.fingerprint, self._last_error)
            if waited >= SILENT_SECONDS and not told:
                deadline.on_waiting(self.stage)
                told = True
            soonest = min((until - time.monotonic() for until in busy_until.values()), default=limit)
            pause = min(limit - waited, limit if told else SILENT_SECONDS, max(soonest, _SHORTEST_PAUSE))
            self._news.clear()
            await within(pause, self._news.wait())
        return replica

    def _chosen(self, job: Job[S], busy_until: Mapping[Replica[S], float]) -> Replica[S] | None:
        """The ready replica to take the job; None where all are away, or busy for a while."""
        now = time.monotonic()
        ready = [one for one in self._suitable(job) if one.ready and busy_until.get(one, now) <= now]
        if not ready:
            return None
        ready = trusted(ready)
        paces = believed_paces([one.measured_pace() for one in ready])
        candidates = [
            Candidate(one.outstanding, pace, job.prepared(one), one.last_chosen)
            for one, pace in zip(ready, paces, strict=True)
        ]
        chosen = ready[choose(candidates, job.work)]
        if job.work:
            chosen.last_chosen = next(self._choices)
        return chosen

    def _suitable(self, job: Job[S]) -> list[Replica[S]]:
        return [one for one in self._replicas.values() if job.fingerprint in (None, one.fingerprint)]

    async def _watched(self, replica: Replica[S], job: Job[S], work: Coroutine[Any, Any, R]) -> R:
        """The result of a replica's work. While it works, it is asked whether it is there at all.

        One that hangs is given up long before the time is over that work may take, if another could do it.
        """
        answer = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({answer}, timeout=self._health_check.timeout))[0]:
                if any(one.ready and one is not replica for one in self._suitable(job)):
                    await self._check_answers(replica, answer)
            return answer.result()
        finally:
            answer.cancel()

    async def _check_answers(self, replica: Replica[S], answer: asyncio.Future[Any]) -> None:
        try:
            await self._ask(replica)
        except TriptychError:
            if not answer.done():
                raise

    async def _first_health_checks(self, deadline: Deadline) -> None:
        """Waits until all replicas that were found first have said what they serve or had the time."""
        await self._first_look(deadline)
        if self._first_round is None:
            checked = asyncio.gather(*(one.checked.wait() for one in self._replicas.values()))
            self._first_round = self._in_background(within(self._health_check.timeout, checked))
        if not self._first_round.done():
            await within(deadline.timeout(self._health_check.timeout), asyncio.shield(self._first_round))

    def _distrust(self, replica: Replica[S], mistake: str) -> None:
        """Others are preferred to it for a while."""
        seconds = replica.distrust()
        if seconds is not None:
            self.metrics.ejected()
            log.warning("the %s at %s is ejected for %g s: %s", self.stage, replica.address, seconds, mistake)
            self._last_error = mistake

    def _eject(self, replica: Replica[S], error: TriptychError) -> None:
        """It gets no work until it has answered a question."""
        if replica.ready:
            self.metrics.ejected()
            log.warning("the %s at %s is ejected: %s", self.stage, replica.address, without_request(error))
            self._last_error = without_request(error)
            replica.fail()
            self._lead()
            self._check_health(replica)

    def _check_health(self, replica: Replica[S]) -> None:
        if replica not in self._checking:
            self._checking.add(replica)
            self._in_background(self._check_until_it_gets_work(replica))

    def _gets_work(self, replica: Replica[S]) -> bool:
        return replica.ready and replica.fingerprint == self._leading

    async def _check_until_it_gets_work(self, replica: Replica[S]) -> None:
        """Asks with a backoff that grows while it keeps failing.

        One that computes otherwise than the others is asked on: no call would find out that it was restarted.
        """
        while self._replicas.get(replica.address) is replica and not self._gets_work(replica):
            check = self._health_check
            await asyncio.sleep(check.longest_backoff if replica.ready else check.backoff(replica.failures))
            try:
                await self._describe(replica)
            except TriptychError as error:
                self._eject(replica, error)
                self._last_error = error.message
                if not replica.failures:
                    self._in_background(replica.say_not_there(self.stage, error))
                replica.failures += 1
            replica.checked.set()
        self._checking.discard(replica)

    async def _ask(self, replica: Replica[S]) -> D:
        described: D = await attempt(replica.stub.GetModel, self._question, self._health_check.timeout)
        lacking = [field for field in self._positive if getattr(described, field) <= 0]
        lacking += [field for field in ("name", "fingerprint") if not getattr(described.model, field)]
        if lacking:
            raise errors.internal(f"what it says of its model lacks {', '.join(lacking)}")
        return described

    async def _describe(self, replica: Replica[S]) -> None:
        """Asks a replica what it serves; it is ready when it has answered."""
        described = await self._ask(replica)
        before, was_ready = replica.fingerprint, replica.ready
        replica.description, replica.ready = described, True
        self._descriptions[described.model.fingerprint] = described
        if not was_ready or before != replica.fingerprint:
            log.info("the %s at %s is ready", self.stage, replica.address)
            self._news.set()
            self._lead()
            if replica.fingerprint != self._leading:
                log.warning(
                    "the %s at %s computes otherwise than the others (%s, fingerprint %s): requests go to it "
                    "only when more replicas do as it does",
                    self.stage, replica.address, described.model.name, replica.fingerprint,
                )  # fmt: skip
        if replica.fingerprint == self._leading:
            self._described_at = time.monotonic()

    def _lead(self) -> None:
        """Decides on which fingerprint requests begin: the usual one of those that fit and are ready."""
        known = [one for one in self._replicas.values() if one.description is not None]
        fitting = [one for one in known if one.description and self._fits(one.description.model)]
        for group in ([one for one in fitting if one.ready], fitting, known):
            found = leading([one.fingerprint for one in group if one.fingerprint is not None], self._leading)
            if found is not None:
                if self._leading not in (None, found):
                    log.warning("requests of a %s begin on fingerprint %s from now on", self.stage, found)
                self._leading = found
                for replica in known:
                    if replica.ready and replica.fingerprint != found:
                        self._check_health(replica)
                return

    async def _first_look(self, deadline: Deadline) -> None:
        """Begins to look where the replicas are, or waits until that was done once."""
        if not self._following:
            self._following = True
            self._in_background(self._keep_looking())
        if not self._looked_up.is_set():
            await within(deadline.timeout(self._health_check.timeout), self._looked_up.wait())

    async def _keep_looking(self) -> None:
        """Looks often while nobody is ready: who was scaled to zero may come with a new address."""
        found = True
        while True:
            try:
                self._update(await self._source.look_up())
                found = True
            except OSError as error:  # those that are known stay
                if found:
                    log.warning("cannot look up the %s at %s: %s", self.stage, self._source.address, error)
                found = False
            self._looked_up.set()
            period = self._source.look_up_seconds
            if period is None:
                return
            ready = any(one.ready for one in self._replicas.values())
            await asyncio.sleep(period if ready else min(period, _SOONEST_LOOK))

    def _update(self, addresses: Sequence[str]) -> None:
        """Takes in who joined, and lets go who left once their calls have ended."""
        for address in addresses:
            if address not in self._replicas:
                replica: Replica[S] = Replica(address, self._source.connect(address))
                self._replicas[address] = replica
                self._check_health(replica)
        for address in self._replicas.keys() - set(addresses):
            log.info("the %s at %s left", self.stage, address)
            self._in_background(self._replicas.pop(address).leave())
            self._lead()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, context=Context())  # no request's own
        self._background.add(task)
        task.add_done_callback(partial(set.discard, self._background))
        return task
