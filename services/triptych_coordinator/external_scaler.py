"""KEDA's external scaler: how many replicas each stage should have, by the rows that wait for it here.

Metadata of a trigger: `stage` (text_encoder, denoiser or vae_codec), `targetRows` (rows outstanding for each
replica; see Demand), and `lingerSeconds` (30): a stage without rows is needed for so long yet, which is more
than `pollingInterval`, so that polling misses none. All else in it is KEDA's own.

A coordinator answers for the rows that it has itself.
"""

import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Literal

import grpc.aio
from pydantic import BaseModel, Field, ValidationError

from triptych.errors import invalid_argument, resource_exhausted
from triptych.keda import externalscaler_pb2 as pb
from triptych.keda.externalscaler_pb2_grpc import ExternalScalerServicer as KedaServicer
from triptych_coordinator.fleet.demand import Demand

NAME = "externalscaler.ExternalScaler"
MAX_STREAMS = 256

Context = grpc.aio.ServicerContext[Any, Any]


class Trigger(BaseModel):
    """What the metadata of a trigger says, by its names there."""

    stage: Literal["text_encoder", "denoiser", "vae_codec"]
    target_rows: float = Field(alias="targetRows", gt=0, le=1e6)
    linger_seconds: float = Field(30.0, alias="lingerSeconds", ge=0, le=86_400)

    @property
    def metric(self) -> str:
        """The name of the number that is held at target_rows."""
        return f"triptych-rows-{self.stage.replace('_', '-')}"


class ExternalScalerServicer(KedaServicer):
    """See externalscaler.proto."""

    def __init__(self, demands: Mapping[str, Demand]) -> None:
        """`demands` by stage."""
        self._demands = demands
        self._streams = 0

    def end_streams(self) -> None:
        """Streams end, which otherwise last for ever: this coordinator stops."""
        for demand in self._demands.values():
            demand.end_changes()

    async def IsActive(self, request: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        """Whether the stage should have a replica at all."""
        trigger = trigger_of(request)
        needed = self._demands[trigger.stage].needed(trigger.linger_seconds)
        return pb.IsActiveResponse(result=needed)

    async def StreamIsActive(
        self, request: pb.ScaledObjectRef, context: Context
    ) -> AsyncIterator[pb.IsActiveResponse]:
        """The same now, and whenever it changes."""
        trigger = trigger_of(request)
        changes = self._demands[trigger.stage].changes(trigger.linger_seconds)
        with self._stream():
            async with aclosing(changes):
                async for needed in changes:
                    yield pb.IsActiveResponse(result=needed)

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Context) -> pb.GetMetricSpecResponse:
        """The metric, and what it should be for each replica."""
        trigger = trigger_of(request)
        target = trigger.target_rows
        spec = pb.MetricSpec(metricName=trigger.metric, targetSize=math.ceil(target), targetSizeFloat=target)
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        """Rows outstanding of late."""
        trigger = trigger_of(request.scaledObjectRef)
        if request.metricName != trigger.metric:
            raise invalid_argument(
                (
                    "metricName",
                    f"is {request.metricName!r}; right is {trigger.metric!r}, as GetMetricSpec says",
                )
            )
        rows = round(self._demands[trigger.stage].mean_rows, 3)
        value = pb.MetricValue(metricName=trigger.metric, metricValue=math.ceil(rows), metricValueFloat=rows)
        return pb.GetMetricsResponse(metricValues=[value])

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """Raises TriptychError with RESOURCE_EXHAUSTED for one stream too many."""
        if self._streams >= MAX_STREAMS:
            raise resource_exhausted(f"{MAX_STREAMS} streams are open, which is the limit", 10.0)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def trigger_of(asked: pb.ScaledObjectRef) -> Trigger:
    """What a trigger asks for. Raises TriptychError with INVALID_ARGUMENT that names all that is wrong."""
    try:
        return Trigger.model_validate(dict(asked.scalerMetadata))
    except ValidationError as error:
        raise invalid_argument(*(_violation(asked, one) for one in error.errors())) from error


def _violation(asked: pb.ScaledObjectRef, wrong: Any) -> tuple[str, str]:
    key = str(wrong["loc"][0])
    if key not in asked.scalerMetadata:
        return f"scalerMetadata[{key}]", "is missing"
    return f"scalerMetadata[{key}]", f"is {asked.scalerMetadata[key][:40]!r}: {wrong['msg'].lower()}"
