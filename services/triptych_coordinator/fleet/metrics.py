"""What the metrics say of a stage's replicas."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from opentelemetry.trace import get_current_span

from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import (
    COMPUTE_SECONDS,
    PART,
    QUEUE_SECONDS,
    REASON,
    RPC_STATUS,
    RPC_SYSTEM,
    SERVER_ADDRESS,
    STAGE,
    STATE,
)
from triptych_coordinator.fleet.demand import Demand
from triptych_coordinator.fleet.replica import Replica, StageTimes
from triptych_coordinator.fleet.retries import Failure
from triptych_coordinator.last_minute import LastMinute
from triptych_coordinator.timings import current_timings


class FleetMetrics:
    """The metrics of one stage."""

    def __init__(self, stage: str) -> None:
        """`stage` as in errors, e.g. "text encoder"."""
        self._stage = stage
        self.retries, self.ejections = LastMinute[Failure](), LastMinute[None]()
        self.attributes = {STAGE: stage.lower().replace(" ", "_")}
        self._ended = {RPC_SYSTEM: "grpc", **self.attributes}
        self._answered = self._ended | {RPC_STATUS: "OK"}
        self._parts = [self.attributes | {PART: part} for part in ("queue", "compute", "wire")]

    def watch(self, fleet: object, replicas: Mapping[str, Replica[Any]], demand: Demand) -> None:
        """Counts the replicas, and what they have to do, for as long as the fleet lives."""

        def of_state(ready: bool, _: object) -> int:
            return sum(one.ready is ready for one in list(replicas.values()))

        for ready, state in ((True, "ready"), (False, "away")):
            instruments.replicas.watch(fleet, partial(of_state, ready), self.attributes | {STATE: state})
        instruments.stage_calls_running.watch(
            fleet, lambda _: sum(one.calls for one in list(replicas.values())), self.attributes
        )
        instruments.stage_rows_outstanding.watch(fleet, lambda _: demand.rows, self.attributes)
        # A counter that begins at 1 has no rate: the first event would not be seen.
        instruments.ejections.add(0, self.attributes)
        for failure in (Failure.TRANSIENT, Failure.BUSY, Failure.BROKEN):
            instruments.retries.add(0, self._retries_of(failure))

    def failed(self, address: str, seconds: float, status: str) -> None:
        """The replica at an address failed after so long: an attempt of the current span."""
        get_current_span().add_event("attempt", {SERVER_ADDRESS: address, RPC_STATUS: status})
        instruments.client_call_duration.record(seconds, self._ended | {RPC_STATUS: status})

    def answered(self, address: str, seconds: float, times: StageTimes | None) -> None:
        """The replica at an address answered after so long, and by its own account took these times."""
        instruments.client_call_duration.record(seconds, self._answered)
        timings = current_timings().stages[self._stage]
        timings.calls += 1
        timings.seconds += seconds
        if times is None:
            tracing.note({SERVER_ADDRESS: address})
            return
        tracing.note({SERVER_ADDRESS: address, QUEUE_SECONDS: times.queue, COMPUTE_SECONDS: times.compute})
        timings.queue_seconds += times.queue
        timings.compute_seconds += times.compute
        wire = max(0.0, seconds - times.queue - times.compute)
        for attributes, each in zip(self._parts, (times.queue, times.compute, wire), strict=True):
            instruments.stage_call_time.add(each, attributes)

    def retried(self, failure: Failure) -> None:
        """A failed attempt is repeated."""
        self.retries.add(failure)
        current_timings().stages[self._stage].retries += 1
        instruments.retries.add(1, self._retries_of(failure))

    def _retries_of(self, failure: Failure) -> dict[str, str]:
        return self.attributes | {REASON: failure.name.lower()}

    def ejected(self) -> None:
        """A replica gets no work for a while."""
        self.ejections.add(None)
        instruments.ejections.add(1, self.attributes)
