"""What the coordinator says to KEDA, over real sockets."""

import asyncio
from typing import Any

import grpc
import pytest

from tests.coordinator.conftest import House
from tests.coordinator.test_servicer import refused
from triptych.keda import externalscaler_pb2 as pb
from triptych.v1 import image_generation_pb2
from triptych_coordinator.settings import CoordinatorLimits

STAGES = ("text_encoder", "denoiser", "vae_codec")
KEDAS_OWN = {"scalerAddress": "coordinator:50050", "enableTLS": "true"}


def scaled(stage: str = "denoiser", **others: str) -> pb.ScaledObjectRef:
    metadata = KEDAS_OWN | {"stage": stage, "targetRows": "4", "lingerSeconds": "0"} | others
    return pb.ScaledObjectRef(name=f"triptych-{stage}", namespace="pictures", scalerMetadata=metadata)


async def needed(house: House) -> dict[str, bool]:
    return {stage: (await house.scaler.IsActive(scaled(stage))).result for stage in STAGES}


async def rows(house: House, stage: str = "denoiser") -> float:
    name = f"triptych-rows-{stage.replace('_', '-')}"
    asked = pb.GetMetricsRequest(scaledObjectRef=scaled(stage), metricName=name)
    (value,) = (await house.scaler.GetMetrics(asked)).metricValues
    assert value.metricName == name
    assert 0 <= value.metricValue - value.metricValueFloat < 1
    return float(value.metricValueFloat)


async def until_rows(house: House, least: float, most: float = 1e9) -> None:
    async with asyncio.timeout(60):
        while not least <= await rows(house) <= most:
            await asyncio.sleep(0.05)


async def until_idle(house: House) -> None:
    """A client has its answer a moment before the coordinator is done with it."""
    async with asyncio.timeout(60):
        while any((await needed(house)).values()):
            await asyncio.sleep(0.02)


@pytest.fixture
def limits() -> CoordinatorLimits:
    return CoordinatorLimits(max_running=2, health_check_seconds=5, max_wait_seconds=60)


async def test_the_metric_and_its_target_are_what_the_trigger_asks_for(house: House) -> None:
    (spec,) = (await house.scaler.GetMetricSpec(scaled(targetRows="2.5"))).metricSpecs
    assert (spec.metricName, spec.targetSizeFloat, spec.targetSize) == ("triptych-rows-denoiser", 2.5, 3)
    assert await rows(house) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"stage": "denoisr"},
            "scalerMetadata[stage]: is 'denoisr': input should be 'text_encoder', 'denoiser'",
        ),
        ({"targetRows": "none"}, "scalerMetadata[targetRows]: is 'none': input should be a valid number"),
        ({"targetRows": "0"}, "scalerMetadata[targetRows]: is '0': input should be greater than 0"),
        ({"targetRows": "nan"}, "scalerMetadata[targetRows]: is 'nan': input should be"),
        ({"lingerSeconds": "-1"}, "scalerMetadata[lingerSeconds]: is '-1': input should be greater than"),
    ],
)
async def test_wrong_metadata_is_refused_in_words(house: House, changes: dict[str, str], says: str) -> None:
    for method in (house.scaler.IsActive, house.scaler.GetMetricSpec):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, says):
            await method(scaled(**changes))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, says):
        await house.scaler.StreamIsActive(scaled(**changes)).read()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, says):
        asked = pb.GetMetricsRequest(scaledObjectRef=scaled(**changes), metricName="triptych-rows-denoiser")
        await house.scaler.GetMetrics(asked)


async def test_all_that_is_missing_is_named(house: House) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "") as caught:
        await house.scaler.IsActive(pb.ScaledObjectRef(scalerMetadata=KEDAS_OWN))
    assert caught[0].message == "scalerMetadata[stage]: is missing; scalerMetadata[targetRows]: is missing"


async def test_another_metrics_name_is_refused(house: House) -> None:
    with refused(
        grpc.StatusCode.INVALID_ARGUMENT, "metricName: is 'rows'; right is 'triptych-rows-denoiser'"
    ):
        await house.scaler.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=scaled(), metricName="rows"))


class TestFromZero:
    @pytest.fixture
    def stages(self) -> tuple[str, ...]:
        return ()

    async def test_a_request_needs_every_stage_at_once_and_waits_for_them(self, house: House) -> None:
        assert not any((await needed(house)).values())
        streams = [house.scaler.StreamIsActive(scaled(stage)) for stage in STAGES]
        assert [(await stream.read()).result for stream in streams] == [False] * 3
        call = asyncio.create_task(house.images("a cat", seeds=[1]))
        async with asyncio.timeout(60):
            assert [(await stream.read()).result for stream in streams] == [True] * 3
            await house.start_stage("denoiser")
            while not house.servicer.stages.denoisers.described:
                await asyncio.sleep(0.02)
            assert all((await needed(house)).values())  # who is up waits for the others
            for stage in ("text", "vae"):
                await house.start_stage(stage)
            assert len((await call).images) == 1
            for stream in streams:  # what is told twice is a change each time
                said = True
                while said:
                    said = (await stream.read()).result
                stream.cancel()
        assert not any((await needed(house)).values())


async def test_at_zero_again_the_last_known_answer_serves_and_a_request_waits(house: House) -> None:
    expected = list((await house.images("a cat", seeds=[1])).images)
    model = await house.stub.GetModel(image_generation_pb2.ImageGenerationServiceGetModelRequest())
    for stage in ("text", "denoiser", "vae"):
        await house.stop_stage(stage)
    again = await house.stub.GetModel(image_generation_pb2.ImageGenerationServiceGetModelRequest())
    assert again == model
    await until_idle(house)
    call = asyncio.create_task(house.images("a cat", seeds=[1]))
    async with asyncio.timeout(60):
        while not (await needed(house))["denoiser"]:
            await asyncio.sleep(0.02)
        # The prompt is remembered: nobody waits for a text encoder. The VAE codec starts beside the denoiser.
        assert await needed(house) == {"text_encoder": False, "denoiser": True, "vae_codec": True}
        for stage in ("denoiser", "vae"):
            await house.start_stage(stage)
        assert list((await call).images) == expected


async def test_rows_count_that_run_and_that_wait_for_their_turn(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych_coordinator.fleet.demand.MEAN_SECONDS", 0.2)
    await house.images("a cat", seeds=[1])
    house.denoiser.open.clear()
    calls: list[Any] = [
        asyncio.create_task(house.images("a cat", seeds=[seed], guidance_scale=4)) for seed in range(5)
    ]
    await until_rows(house, 9.5, 10)  # 5 requests of 2 branches, 2 of which run at a time
    assert await rows(house, "vae_codec") < 1  # the first request's, and hardly that
    house.denoiser.open.set()
    await asyncio.gather(*calls)
    await until_rows(house, 0, 1)
    await until_idle(house)


async def test_a_stage_lingers_for_as_long_as_the_trigger_says(house: House) -> None:
    await house.images("a cat", seeds=[1])
    await until_idle(house)
    assert (await house.scaler.IsActive(scaled(lingerSeconds="600"))).result
    assert not (await house.scaler.IsActive(scaled())).result


async def test_a_coordinator_that_stops_ends_its_streams_in_order(house: House) -> None:
    stream = house.scaler.StreamIsActive(scaled())
    assert not (await stream.read()).result
    server = house.servers.pop("coordinator")
    server._settings.grace_seconds = 600
    async with asyncio.timeout(60):
        await server.stop()
        assert await stream.read() is grpc.aio.EOF


async def test_streams_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych_coordinator.external_scaler.MAX_STREAMS", 2)
    streams = [house.scaler.StreamIsActive(scaled()) for _ in range(2)]
    for stream in streams:
        await stream.read()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "2 streams are open"):
        await house.scaler.StreamIsActive(scaled()).read()
    for stream in streams:
        stream.cancel()
    async with asyncio.timeout(60):
        while True:
            stream = house.scaler.StreamIsActive(scaled())
            try:
                await stream.read()
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
                continue
            stream.cancel()
            break
