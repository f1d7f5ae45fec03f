"""What a coordinator's metrics say of requests, over real sockets."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from tests import telemetry
from tests.coordinator.conftest import House
from tests.serving import refused
from triptych.client import AsyncClient
from triptych.errors import resource_exhausted
from triptych.telemetry.instruments import CACHE, HIT, PART, REASON, RPC_METHOD, RPC_STATUS, STAGE, STATE
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.fleet.demand import Demand
from triptych_coordinator.fleet.metrics import FleetMetrics

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
            part: telemetry.value("triptych.stage.call.time", {STAGE: "denoiser", PART: part})
            for part in ("queue", "compute", "wire")
        }

    house.denoiser.queue_milliseconds, house.denoiser.compute_milliseconds = 2.0, 5.0
    whole, parts = telemetry.total("rpc.client.call.duration", DENOISER), seconds()
    await house.images("a cat", num_inference_steps=2)
    took = {part: after - parts[part] for part, after in seconds().items()}
    assert took["queue"] == pytest.approx(0.004)
    assert took["compute"] == pytest.approx(0.010)
    passed = telemetry.total("rpc.client.call.duration", DENOISER) - whole
    assert passed - 0.0141 <= took["wire"] <= passed  # a call that was faster than it says has no wire


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
    error = await refused(house.images("a cat", seconds=1.0))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(60):
        while ended("DEADLINE_EXCEEDED") != late + 1:
            await asyncio.sleep(0.05)
        begun = house.denoiser.predictions
        call = asyncio.create_task(house.images("a cat"))
        while house.denoiser.predictions == begun:  # the coordinator has the call
            await asyncio.sleep(0.02)
        call.cancel()
        while ended("CANCELLED") != cancelled + 1:
            await asyncio.sleep(0.05)
    assert ended("DEADLINE_EXCEEDED") == late + 1


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


def test_what_never_failed_is_counted_from_zero() -> None:
    """A rate of a counter that begins at 1 misses that 1."""
    metrics, demand = FleetMetrics("stage of this test"), Demand()
    metrics.watch(demand, {}, demand)
    (ejections,) = telemetry.points("triptych.stage.ejections", metrics.attributes)
    retries = telemetry.points("triptych.stage.retries", metrics.attributes)
    assert ejections.value == 0
    assert {point.attributes[REASON]: point.value for point in retries} == dict.fromkeys(
        ("transient", "busy", "broken"), 0
    )


async def traced(
    house: House, number: int, steps: int, prompt: str = "a cat", **fields: Any
) -> list[ReadableSpan]:
    """The spans of a request whose client has a trace."""
    telemetry.span_exporter()
    trace_id = f"{number:032x}"
    parameters = GenerationParameters(prompts=[prompt], num_inference_steps=steps, **fields)
    request = pb.GenerateImagesRequest(parameters=parameters)
    await house.stub.GenerateImages(request, metadata=[("traceparent", f"00-{trace_id}-{7:016x}-01")])
    await asyncio.sleep(0.1)
    return telemetry.spans(trace_id)


async def test_a_trace_goes_from_the_client_through_every_step_to_every_stage(house: House) -> None:
    found = await traced(house, 0xA, 3, prompt="a secret cat")
    by_id = {one.context.span_id: one for one in found}
    names = Counter(one.name for one in found)
    assert steps_of(found) == [1, 2, 3]
    assert names["text encoder"] == names["VAE codec"] == 1
    predicted = [one for one in found if one.name == "triptych.v1.DenoiserService/Predict"]
    assert len(predicted) >= 3
    for one in predicted:
        path = [one.name]
        while one.parent.span_id in by_id:
            one = by_id[one.parent.span_id]
            path.append(one.name)
        assert path[1:] == ["denoiser", GENERATE_IMAGES]
        assert one.parent.span_id == 7
    assert "secret" not in "".join(one.to_json() for one in found)


def steps_of(spans: Sequence[ReadableSpan]) -> list[object]:
    """The steps that calls of the denoiser were made in."""
    return [(one.attributes or {})["triptych.step"] for one in spans if one.name == "denoiser"]


async def test_a_replay_is_an_attempt_of_one_span(house: House) -> None:
    house.denoiser.failures = [resource_exhausted("its queue is full", 0.05)]
    found = await traced(house, 0xB, 1)
    (call,) = [one for one in found if one.name == "denoiser"]
    address = house.address("denoiser")
    failed = {"server.address": address, RPC_STATUS: "RESOURCE_EXHAUSTED"}
    assert [dict(event.attributes or {}) for event in call.events] == [failed]
    assert (call.attributes or {})["server.address"] == address


async def test_many_steps_are_folded(house: House) -> None:
    found = await traced(house, 0xC, 150)
    assert steps_of(found) == [*range(1, 150, 2)]
    assert sum(one.name.endswith("/Predict") for one in found) == 75


async def test_every_call_of_a_step_says_which_one_it_is_of(house: House) -> None:
    found = await traced(house, 0xE, 3, solver={"heun": {}})
    assert steps_of(found) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("api_key", [None, "a-key"])
async def test_a_clients_own_span_is_where_the_trace_begins(house: House, api_key: str | None) -> None:
    telemetry.span_exporter()
    with trace.get_tracer("a client").start_as_current_span("mine") as mine:
        async with AsyncClient(house.address("coordinator"), api_key=api_key) as client:
            await client.generate("a cat", num_inference_steps=1)
    await asyncio.sleep(0.1)
    found = telemetry.spans(trace.format_trace_id(mine.get_span_context().trace_id))
    (request,) = [one for one in found if one.name.endswith("/Generate")]
    assert request.parent.span_id == mine.get_span_context().span_id


async def line_of(call: Awaitable[object], caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The line at the end of a request that may fail."""
    caplog.set_level(logging.INFO, "triptych.serving.logs")
    caplog.clear()
    await asyncio.gather(call, return_exceptions=True)
    async with asyncio.timeout(10):
        while not (lines := [one for one in caplog.records if hasattr(one, "figures")]):
            await asyncio.sleep(0.02)
    (line,) = lines
    return line


async def test_a_request_ends_with_one_line_that_has_its_figures(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.denoiser.failures = [resource_exhausted("its queue is full", 0.05)]
    asked = house.images("a cat", num_images_per_prompt=2, num_inference_steps=3, guidance_scale=3)
    line = await line_of(asked, caplog)
    figures = line.figures  # type: ignore[attr-defined]
    seconds = {name: value for name, value in figures.items() if name.startswith("seconds_")}
    assert set(seconds) == {f"seconds_{part}" for part in ("queued", "encoding", "denoising", "decoding")}
    assert seconds["seconds_denoising"] >= 0.05
    assert sum(seconds.values()) <= line.call["seconds"]  # type: ignore[attr-defined]
    counted = {name: figures[name] for name in ("images", "steps", "rows", "retries")}
    assert counted == {"images": 2, "steps": 3, "rows": 12, "retries": 1}
    assert "cat" not in line.getMessage() + str(figures)


async def test_a_request_that_fails_says_how_far_it_came(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.denoiser.seconds = 5.0
    line = await line_of(house.images("a cat", num_inference_steps=3, seconds=0.4), caplog)
    assert line.call["status"] == "DEADLINE_EXCEEDED"  # type: ignore[attr-defined]
    assert line.figures["steps"] == 0  # type: ignore[attr-defined]
    assert line.figures["seconds_denoising"] > 0.1  # type: ignore[attr-defined]
