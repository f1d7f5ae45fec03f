"""What a coordinator's metrics say of requests, over real sockets."""

import asyncio

import grpc
import pytest

from tests import telemetry
from tests.coordinator.conftest import House
from tests.serving import refused
from triptych.errors import resource_exhausted
from triptych.telemetry.instruments import CACHE, HIT, PART, REASON, RPC_METHOD, RPC_STATUS, STAGE, STATE

DENOISER = {STAGE: "denoiser"}
GENERATE_IMAGES = "triptych.v1.ImageGenerationService/GenerateImages"


@pytest.fixture(autouse=True)
def _recorded() -> None:
    telemetry.metric_reader()


async def test_a_request_is_counted_in_pictures_steps_and_calls(house: House) -> None:
    before = [telemetry.value(name) for name in ("triptych.pictures", "triptych.steps")]
    calls = telemetry.count("rpc.client.call.duration", DENOISER)
    await house.images("a cat", num_images_per_prompt=2, num_inference_steps=3)
    after = [telemetry.value(name) for name in ("triptych.pictures", "triptych.steps")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 3]
    assert telemetry.count("rpc.client.call.duration", DENOISER) == calls + 3


async def test_the_time_of_a_step_is_queue_compute_and_wire(house: House) -> None:
    def seconds() -> dict[str, float]:
        return {
            part: telemetry.total("triptych.stage.call.time", {STAGE: "denoiser", PART: part})
            for part in ("queue", "compute", "wire")
        }

    house.denoiser.queue_milliseconds, house.denoiser.compute_milliseconds = 2.0, 5.0
    whole, parts = telemetry.total("rpc.client.call.duration", DENOISER), seconds()
    await house.images("a cat", num_inference_steps=2)
    took = {part: after - parts[part] for part, after in seconds().items()}
    assert took["queue"] == pytest.approx(0.004)
    assert took["compute"] == pytest.approx(0.010)
    passed = telemetry.total("rpc.client.call.duration", DENOISER) - whole
    assert took["wire"] == pytest.approx(max(0.0, passed - 0.014), abs=0.005)


async def test_a_refusal_is_counted_by_its_reason(house: House) -> None:
    seen = {RPC_METHOD: GENERATE_IMAGES, REASON: "invalid_argument"}
    before = telemetry.value("triptych.refusals", seen)
    await refused(house.images("a cat", height=7))
    assert telemetry.value("triptych.refusals", seen) == before + 1


async def test_deadline_misses_and_cancellations_are_told_apart(house: House) -> None:
    def ended(status: str) -> int:
        return telemetry.count("rpc.server.call.duration", {RPC_METHOD: GENERATE_IMAGES, RPC_STATUS: status})

    late, cancelled = ended("DEADLINE_EXCEEDED"), ended("CANCELLED")
    house.denoiser.seconds = 5.0
    error = await refused(house.images("a cat", seconds=0.3))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    call = asyncio.create_task(house.images("a cat"))
    await asyncio.sleep(0.3)
    call.cancel()
    async with asyncio.timeout(10):
        while (ended("DEADLINE_EXCEEDED"), ended("CANCELLED")) != (late + 1, cancelled + 1):
            await asyncio.sleep(0.05)


async def test_a_repeated_call_is_a_retry(house: House) -> None:
    before = telemetry.value("triptych.stage.retries", {REASON: "busy"})
    house.denoiser.failures = [resource_exhausted("its queue is full", 0.05)]
    await house.images("a cat")
    assert telemetry.value("triptych.stage.retries", {REASON: "busy"}) == before + 1


async def test_a_fleet_says_how_many_replicas_are_ready_and_a_cache_what_it_holds(house: House) -> None:
    await house.images("a very particular cat")
    assert telemetry.value("triptych.stage.replicas", {STAGE: "vae_codec", STATE: "ready"}) >= 1
    assert telemetry.value("triptych.cache.size", {CACHE: "prompts"}) > 0
    hits = telemetry.value("triptych.cache.lookups", {CACHE: "prompts", HIT: True})
    await house.images("a very particular cat")
    again = telemetry.value("triptych.cache.lookups", {CACHE: "prompts", HIT: True})
    assert again > hits
