"""The FleetService: how a coordinator's fleet does, now and in the last minute."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc.aio

from triptych.errors import TriptychError
from triptych.v1 import fleet_pb2 as pb
from triptych.v1.fleet_pb2_grpc import FleetServiceServicer
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.fleet import Fleet
from triptych_coordinator.fleet.replica import Replica
from triptych_coordinator.servicer import ImageGenerationServicer

NAME = "triptych.v1.FleetService"
_ANSWER_SECONDS = 1.0
"""How long the replicas may take to say whether they are there."""


class FleetServicer(FleetServiceServicer):
    """Tells of the fleet of a coordinator."""

    def __init__(self, coordinator: ImageGenerationServicer) -> None:
        self._coordinator = coordinator

    async def GetFleet(
        self,
        request: pb.GetFleetRequest,
        context: grpc.aio.ServicerContext[pb.GetFleetRequest, pb.GetFleetResponse],
    ) -> pb.GetFleetResponse:
        """See fleet.proto."""
        stages, admission = self._coordinator.stages, self._coordinator.admission
        with suppress(TriptychError):  # the answer says who is away
            await stages.models(Deadline(_ANSWER_SECONDS))
        return pb.GetFleetResponse(
            model=self._coordinator.name,
            running_requests=admission.num_running(),
            waiting_requests=admission.num_waiting(),
            oldest_waiting_milliseconds=1000 * admission.oldest_seconds(),
            pictures=len(self._coordinator.pictures.all()),
            steps=_spread(self._coordinator.steps.all()),
            stages=[_stage(fleet) for fleet in stages.fleets],
        )


def _stage(fleet: Fleet[Any, Any]) -> pb.FleetStage:
    replicas = sorted(fleet.replicas, key=lambda one: one.address)
    return pb.FleetStage(
        name=fleet.stage,
        outstanding_rows=fleet.demand.rows,
        retries=len(fleet.metrics.retries.all()),
        ejections=len(fleet.metrics.ejections.all()),
        replicas=[_replica(one) for one in replicas],
    )


def _replica(replica: Replica[Any]) -> pb.FleetReplica:
    answers = replica.answers.all()
    told = pb.FleetReplica(
        address=replica.address,
        state=_state(replica),
        fingerprint=replica.fingerprint or "",
        running_calls=replica.calls,
        calls=_spread([answer.seconds for answer in answers]),
    )
    if answers:
        queue, compute = (
            statistics.fmean(getattr(answer.times, part) for answer in answers)
            for part in ("queue", "compute")
        )
        told.queue_milliseconds, told.compute_milliseconds = 1000 * queue, 1000 * compute
        whole = statistics.fmean(answer.seconds for answer in answers)
        told.wire_milliseconds = 1000 * max(0.0, whole - queue - compute)
        told.batch_rows = statistics.fmean(answer.times.batch_rows for answer in answers)
        told.waiting_rows = answers[-1].times.waiting_rows
        told.oldest_row_milliseconds = 1000 * answers[-1].times.oldest_row
    return told


def _state(replica: Replica[Any]) -> pb.FleetReplica.State.ValueType:
    if not replica.ready:
        return pb.FleetReplica.STATE_AWAY
    return pb.FleetReplica.STATE_READY if replica.trusted else pb.FleetReplica.STATE_EJECTED


def _spread(seconds: Sequence[float]) -> pb.Spread:
    if not seconds:
        return pb.Spread()
    p50, longest = statistics.median(seconds), max(seconds)
    return pb.Spread(count=len(seconds), p50_milliseconds=1000 * p50, max_milliseconds=1000 * longest)
