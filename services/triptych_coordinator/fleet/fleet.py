"""The replicas of one stage: who takes a call, and what becomes of a call that fails."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from triptych import errors
from triptych.errors import TriptychError
from triptych_coordinator.deadlines import Deadline, within
from triptych_coordinator.fleet.demand import Demand
from triptych_coordinator.fleet.membership import D, Fits, Membership
from triptych_coordinator.fleet.metrics import FleetMetrics
from triptych_coordinator.fleet.replica import Answer, Job, Replica, S, Source, StageTimes, trusted
from triptych_coordinator.fleet.retries import (
    Failure,
    HealthCheck,
    RetryPolicy,
    explained,
    failure_of,
    nobody,
    without_request,
)
from triptych_coordinator.fleet.routing import CLEARLY_BUSIER, Candidate, believed_paces, choose

R = TypeVar("R")
Work: TypeAlias = Callable[[Replica[S], float], Coroutine[Any, Any, R]]

FRESH_SECONDS = 1.0
"""For so long what a stage serves is not asked again."""
SILENT_SECONDS = 1.0
"""A request that waits longer for a replica is told so."""
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
        self.retries = retries
        self._address = source.address
        self._health_check = health_check
        self._members: Membership[S, D] = Membership(
            stage, source, question, positive, health_check, fits, self.metrics
        )
        self._refreshing: asyncio.Task[None] | None = None
        self._choices = itertools.count(1)
        self.metrics.watch(self, self._members.replicas, self.demand)

    @property
    def replicas(self) -> list[Replica[S]]:
        """All that are known."""
        return list(self._members.replicas.values())

    @property
    def described(self) -> bool:
        """Whether a replica ever said what it serves."""
        return self._members.leading is not None

    async def description(self, deadline: Deadline, fresh: bool = False) -> D:
        """What the stage serves: the model of most replicas that serve the wanted one.

        Asked anew if it must be fresh, or that was not done within FRESH_SECONDS; while nobody answers, it is
        the last known answer.

        Raises:
            TriptychError: UNAVAILABLE, or DEADLINE_EXCEEDED, when no replica ever answered.
        """
        await self._members.first_health_checks(deadline)
        if not self.described:
            await self._next_available(Job(), {}, deadline)
        elif fresh or time.monotonic() - self._members.described_at > FRESH_SECONDS:
            await self._refreshed()
        return self._members.description

    async def _refreshed(self) -> None:
        """Asks a replica again what it serves, once however many requests wait for that."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._members.in_background(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        replica = self._chosen(Job(fingerprint=self._members.leading), {})
        if replica is not None:
            try:
                await self._members.describe(replica)
            except TriptychError as error:
                self._members.eject(replica, error)

    def idle(self, fingerprint: str) -> int:
        """How many replicas with this model are idle and not clearly slower than the others, at least 1."""
        suitable = trusted([one for one in self._members.with_fingerprint(fingerprint) if one.ready])
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
        failures, busy_until = 0, dict[Replica[S], float]()
        while True:
            replica = self._chosen(job, busy_until)
            if replica is None:
                replica = await self._next_available(job, busy_until, deadline)
            limit, began = deadline.timeout(self.retries.attempt_timeout), time.monotonic()
            try:
                with replica.working(job.work) as outstanding:
                    answer = await self._watched(replica, job, work(replica, limit))
            except TriptychError as error:
                if deadline.left(math.inf) < _SHORTEST_PAUSE:
                    raise errors.deadline_exceeded("the request's deadline passed") from error
                failure, busy_until[replica] = self._failed(replica, error, began)
                if failure is Failure.TRANSIENT:
                    failures += 1
                hopeless = failure is Failure.OF_THE_REQUEST or failures == self.retries.attempts
                suitable = self._members.with_fingerprint(job.fingerprint)
                if hopeless or all(busy_until.get(one) == math.inf for one in suitable):
                    raise explained(error, self.stage, replica.address, self.retries) from error
                self.metrics.retried(failure)
            else:
                took = None if times is None else times(answer)
                self._answered(replica, time.monotonic() - began, outstanding, took)
                return answer

    def _failed(self, replica: Replica[S], error: TriptychError, began: float) -> tuple[Failure, float]:
        """What a replica's failed attempt says, and until when the call is not to come back to it."""
        failure, ended = failure_of(error), time.monotonic()
        self.metrics.failed(replica.address, ended - began, error.code.name)
        if failure is Failure.TRANSIENT:
            limit = self.retries.attempt_timeout
            if ended - began >= limit:  # it answers questions, but finishes nothing
                self._members.distrust(replica, f"it did not finish in {limit:g} s")
            self._members.eject(replica, error)
        elif failure is Failure.BROKEN:
            self._members.distrust(replica, without_request(error))
            return failure, math.inf
        return failure, ended + (errors.retry_after_seconds(error) or 0)

    def _answered(
        self, replica: Replica[S], seconds: float, outstanding: float, took: StageTimes | None
    ) -> None:
        """Notes that a replica did work as it should, and how fast it is."""
        replica.succeed()
        self.metrics.answered(replica.address, seconds, took)
        replica.answers.add(Answer(seconds, took or StageTimes()))
        if took is not None:
            replica.measure(took.queue + took.compute, outstanding)

    async def close(self) -> None:
        """Ends all connections; running calls are cancelled."""
        await self._members.close()

    async def _next_available(
        self, job: Job[S], busy_until: Mapping[Replica[S], float], deadline: Deadline
    ) -> Replica[S]:
        """Waits until a replica can take the job, and says so if that takes a while."""
        await self._members.first_look(deadline)
        began, told = time.monotonic(), False
        limit = deadline.left(self.retries.max_wait)
        while (replica := self._chosen(job, busy_until)) is None:
            waited = time.monotonic() - began
            if waited >= limit:
                deadline.timeout(self.retries.max_wait)
                others = any(one.ready for one in self.replicas)
                raise nobody(self.stage, self._address, others and job.fingerprint, self._members.last_error)
            if waited >= SILENT_SECONDS and not told:
                deadline.on_waiting(self.stage)
                told = True
            soonest = min((until - time.monotonic() for until in busy_until.values()), default=limit)
            pause = min(limit - waited, limit if told else SILENT_SECONDS, max(soonest, _SHORTEST_PAUSE))
            self._members.news.clear()
            await within(pause, self._members.news.wait())
        return replica

    def _chosen(self, job: Job[S], busy_until: Mapping[Replica[S], float]) -> Replica[S] | None:
        """The ready replica to take the job; None where all are away, or busy for a while."""
        now, suitable = time.monotonic(), self._members.with_fingerprint(job.fingerprint)
        ready = [one for one in suitable if one.ready and busy_until.get(one, now) <= now]
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

    async def _watched(self, replica: Replica[S], job: Job[S], work: Coroutine[Any, Any, R]) -> R:
        """The result of a replica's work. While it works, it is asked whether it is there at all.

        One that hangs is given up long before the time is over that work may take, if another could do it.
        """
        answer = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({answer}, timeout=self._health_check.timeout))[0]:
                others = self._members.with_fingerprint(job.fingerprint)
                if any(one.ready and one is not replica for one in others):
                    await self._check_answers(replica, answer)
            return answer.result()
        finally:
            answer.cancel()

    async def _check_answers(self, replica: Replica[S], answer: asyncio.Future[Any]) -> None:
        try:
            await self._members.ask(replica)
        except TriptychError:
            if not answer.done():
                raise
