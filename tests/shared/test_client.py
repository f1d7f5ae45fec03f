"""Both clients against a scripted coordinator: same answers, the server's words, no stream left running."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.shared.conftest import Running
from tests.shared.scripted_coordinator import STEPS, ScriptedCoordinator
from triptych import errors
from triptych.client import AsyncClient, Client, Generation
from triptych.client import Image as ClientImage
from triptych.errors import TriptychError
from triptych.generation_options import GenerationOptions
from triptych.serving.channels import target
from triptych.v1 import guidance_pb2
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.lora_pb2 import Lora


class DirectStub:
    """A stub that calls the servicer in this process."""

    def __init__(self, servicer: ScriptedCoordinator) -> None:
        self._servicer = servicer

    def Generate(self, request: pb2.GenerateRequest, /, *, timeout: float | None = None) -> Any:
        return self._servicer.Generate(request, None)

    def GetModel(self, request: Any, /, *, timeout: float | None = None) -> Any:
        return self._servicer.GetModel(request, None)


async def generated(kind: str, coordinator: Running, prompt: str | list[str], **options: Any) -> Generation:
    """The same call by the async client, the sync client in a thread, or directly."""
    retry = options.pop("retry_seconds", 0)
    if kind == "sync":
        with Client(coordinator.address, retry_seconds=retry) as client:
            return await asyncio.to_thread(client.generate, prompt, **options)
    if kind == "direct":
        client = AsyncClient.from_stub(DirectStub(coordinator.servicer), retry)
        return await client.generate(prompt, **options)
    async with AsyncClient(coordinator.address, retry_seconds=retry) as client:
        return await client.generate(prompt, **options)


kinds = pytest.mark.parametrize("kind", ["async", "sync", "direct"])


@kinds
async def test_a_generation_has_everything_that_was_streamed(
    kind: str, coordinator: Running, tmp_path: Path
) -> None:
    steps: list[int] = []
    generation = await generated(
        kind,
        coordinator,
        ["a zebra", "a truck"],
        negative_prompt="blur",
        height=64,
        guidance_scale=0.0,
        guidance_schedule=guidance_pb2.GuidanceSchedule(linear=guidance_pb2.LinearGuidance(end_scale=1)),
        seed=2**64 - 1,
        loras={"oil": 0.5, "ink": 1},
        timeout=20,
        on_progress=lambda event: steps.append(event.step),
    )
    assert steps == list(range(1, STEPS + 1))
    assert [(image.index, image.prompt, image.seed) for image in generation.images] == [
        (0, "a zebra", 0),
        (1, "a truck", 1),
    ]
    assert generation.warnings == ["cut"]
    assert generation.finished.rows == 6
    assert generation.parameters == GenerationParameters(
        prompts=["a zebra", "a truck"],
        negative_prompts=["blur"],
        height=64,
        guidance_scale=0.0,
        guidance_schedule=guidance_pb2.GuidanceSchedule(linear=guidance_pb2.LinearGuidance(end_scale=1)),
        seeds=[2**64 - 1],
        loras=[Lora(name="oil", weight=0.5), Lora(name="ink", weight=1)],
    )
    assert not generation.parameters.HasField("width")
    generation.images[0].save(tmp_path / "zebra.png")
    assert (tmp_path / "zebra.png").read_bytes() == b"png"


@kinds
async def test_errors_are_the_servers_words(kind: str, coordinator: Running) -> None:
    with pytest.raises(TriptychError) as caught:
        await generated(kind, coordinator, "fail at the end")
    assert (caught.value.code, caught.value.message) == (grpc.StatusCode.UNAVAILABLE, "the VAE codec is away")
    with pytest.raises(TriptychError, match=r"prompts: is empty; parameters\.height: is 0"):
        await generated(kind, coordinator, [])


EVENTS = 1 + STEPS + 2 + 1
AWAY = errors.unavailable("the coordinator is away")


@kinds
@pytest.mark.parametrize("cut", range(EVENTS))
async def test_a_generation_that_is_lost_is_sent_again_with_its_seeds(
    kind: str, coordinator: Running, cut: int
) -> None:
    steps: list[int] = []
    coordinator.servicer.cuts = [(cut, AWAY), (max(0, cut - 1), AWAY)]
    generation = await generated(
        kind,
        coordinator,
        ["a zebra", "a truck"],
        retry_seconds=10,
        on_progress=lambda event: steps.append(event.step),
    )
    assert steps == list(range(1, STEPS + 1))
    assert [image.index for image in generation.images] == [0, 1]
    sent = [list(request.parameters.seeds) for request in coordinator.servicer.requests]
    assert sent == ([[], [7, 8], [7, 8]] if cut else [[], [], []])
    assert list(generation.parameters.seeds) == [7, 8]


async def test_who_streams_hears_of_its_place_in_the_queue(coordinator: Running) -> None:
    coordinator.servicer.turn.set()
    async with AsyncClient(coordinator.address) as client:
        events = [event async for event in client.stream("queue")]
    assert [event.queued.position for event in events[:3]] == [3, 1, 0]
    assert (await generated("async", coordinator, "queue")).finished.rows == 6


async def test_places_in_the_queue_are_no_progress(coordinator: Running) -> None:
    coordinator.servicer.turn.set()
    coordinator.servicer.cuts = [(2, AWAY)] * 50
    with pytest.raises(TriptychError, match="the coordinator is away"):
        await generated("async", coordinator, "queue", retry_seconds=0.5)


async def test_who_streams_is_told_once_that_it_waits(coordinator: Running) -> None:
    coordinator.servicer.cuts = [(2, AWAY), (0, AWAY), (1, AWAY)]
    async with AsyncClient(coordinator.address) as client:
        kinds = [event.WhichOneof("event") async for event in client.stream("a zebra")]
    assert kinds == ["accepted", "step_completed", "waiting", *["step_completed"] * 2, "image", "finished"]


@kinds
@pytest.mark.parametrize(
    "error",
    [errors.resource_exhausted("too many", 0.01), errors.deadline_exceeded("late"), errors.not_found("LoRA")],
)
async def test_what_is_no_outage_is_not_sent_again(kind: str, coordinator: Running, error: Any) -> None:
    coordinator.servicer.cuts = [(1, error)]
    with pytest.raises(TriptychError) as caught:
        await generated(kind, coordinator, "a zebra", retry_seconds=10)
    assert caught.value.code is error.code
    assert len(coordinator.servicer.requests) == 1


@kinds
async def test_the_servers_time_to_come_back_is_kept(kind: str, coordinator: Running) -> None:
    coordinator.servicer.cuts = [(1, errors.unavailable("away", 0.5))]
    began = time.monotonic()
    await generated(kind, coordinator, "a zebra", retry_seconds=10)
    assert time.monotonic() - began >= 0.5


@kinds
@pytest.mark.parametrize("bound", [{"retry_seconds": 0.5}, {"retry_seconds": 10, "timeout": 0.5}])
async def test_there_is_an_end_to_retries(kind: str, coordinator: Running, bound: dict[str, Any]) -> None:
    coordinator.servicer.cuts = [(1, AWAY)] * 100
    began = time.monotonic()
    with pytest.raises(TriptychError) as caught:
        await generated(kind, coordinator, "a zebra", **bound)
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - began < 3
    assert 2 <= len(coordinator.servicer.requests) <= 8


@kinds
async def test_a_stream_that_only_stops_is_an_error(kind: str, coordinator: Running) -> None:
    with pytest.raises(TriptychError, match="before it was finished"):
        await generated(kind, coordinator, "end early")


@kinds
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"height": 2**40}, "height"),
        ({"seed": -2}, "seeds"),
        ({"width": "wide"}, "width"),
        ({"wdith": 1}, "wdith"),
        ({"loras": {"ink": "much"}}, "loras"),
        ({"loras": "ink"}, "loras"),
    ],
)
async def test_values_that_no_field_can_hold_are_refused_by_name(
    kind: str, coordinator: Running, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(TriptychError, match=f"^{field}: "):
        await generated(kind, coordinator, "a zebra", **options)


def test_a_picture_is_saved_under_a_name_of_its_kind(tmp_path: Path) -> None:
    webp = ClientImage(0, b"", 1, "a", 8, 8, webp=b"webp")
    webp.save(tmp_path / "a.webp")
    webp.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "a.webp").read_bytes() == b"webp"
    with pytest.raises(ValueError, match=r"no name for this picture: ask for output_format=\{'jpeg': \{\}\}"):
        webp.save(tmp_path / "a.JPG")


@kinds
async def test_none_is_not_given(kind: str, coordinator: Running) -> None:
    nothing: dict[str, Any] = dict.fromkeys(GenerationOptions.__annotations__)
    generation = await generated(kind, coordinator, "a zebra", on_progress=None, **nothing)
    generation.parameters.ClearField("seeds")  # the server's
    assert generation.parameters == GenerationParameters(prompts=["a zebra"])


@kinds
async def test_minus_one_is_a_seed_that_is_drawn(kind: str, coordinator: Running) -> None:
    drawn = [
        (await generated(kind, coordinator, "a zebra", **options)).parameters.seeds
        for options in ({"seed": -1}, {"seed": -1}, {"seeds": [7, -1, -1]})
    ]
    assert drawn[2][0] == 7
    seeds = [drawn[0][0], drawn[1][0], *drawn[2][1:]]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("form", ["http://{}", "http://{}/", "{}/", "HTTP://{}"])
async def test_an_address_may_be_written_as_an_url(kind: str, coordinator: Running, form: str) -> None:
    if coordinator.address.startswith("unix:"):
        pytest.skip("a socket has no URL")
    if kind == "sync":
        with Client(form.format(coordinator.address)) as client:
            assert (await asyncio.to_thread(client.model)).name == "scripted"
    else:
        async with AsyncClient(form.format(coordinator.address)) as async_client:
            assert (await async_client.model()).name == "scripted"


@pytest.mark.parametrize(
    ("address", "is_or_says"),
    [
        ("http://here", "here:80"),
        ("http://[::1]", "[::1]:80"),
        ("http://[::1]:50050/", "[::1]:50050"),
        ("https://here/", "here:443"),
        ("dns:///here:50050", "dns:///here:50050"),
        ("unix:///tmp/socket", "unix:/tmp/socket"),
        ("unix:/tmp/50%#", "unix:/tmp/50%25%23"),
    ],
)
def test_what_an_address_connects_to(address: str, is_or_says: str) -> None:
    assert target(address) == is_or_says


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://here/api", "have no path"),
        ("http://", "is not http://host:port"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Client(address)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_answer_that_is_too_large_says_what_to_set(kind: str, coordinator: Running) -> None:
    says = r"larger than max .* a larger max_message_bytes"
    if kind == "sync":
        with (
            Client(coordinator.address, max_message_bytes=5) as client,
            pytest.raises(TriptychError, match=says) as caught,
        ):
            await asyncio.to_thread(client.generate, "a")
    else:
        async with AsyncClient(coordinator.address, max_message_bytes=5) as async_client:
            with pytest.raises(TriptychError, match=says) as caught:
                await async_client.generate("a")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_seed_and_seeds_exclude_each_other(coordinator: Running) -> None:
    with pytest.raises(TriptychError, match="either seed or seeds"):
        await generated("async", coordinator, "a zebra", seed=1, seeds=[1])


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_deadline_ends_the_call(kind: str, coordinator: Running) -> None:
    start = time.monotonic()
    await generated(kind, coordinator, "a zebra")
    enough_to_begin = max(0.3, 4 * (time.monotonic() - start))
    with pytest.raises(TriptychError) as caught:
        await generated(kind, coordinator, "hang", timeout=enough_to_begin)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(coordinator.servicer.cancelled.wait(), 30)


async def test_an_abandoned_async_stream_is_cancelled(coordinator: Running) -> None:
    async with AsyncClient(coordinator.address) as client:
        async with contextlib.aclosing(client.stream("hang")) as events:
            async for event in events:
                if event.WhichOneof("event") == "step_completed":
                    break
        await asyncio.wait_for(coordinator.servicer.cancelled.wait(), 30)


async def test_an_exception_in_on_progress_cancels(coordinator: Running) -> None:
    def refuse(event: pb2.StepCompleted) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await generated("sync", coordinator, "hang", on_progress=refuse)
    await asyncio.wait_for(coordinator.servicer.cancelled.wait(), 30)


async def test_a_cancelled_task_cancels_the_work(coordinator: Running) -> None:
    async with AsyncClient(coordinator.address) as client:
        task = asyncio.create_task(client.generate("hang"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(coordinator.servicer.cancelled.wait(), 30)


async def test_both_clients_describe_the_model(coordinator: Running) -> None:
    async with AsyncClient(coordinator.address) as client:
        assert (await client.model()).name == "scripted"
    with Client(coordinator.address) as sync_client:
        assert (await asyncio.to_thread(sync_client.model)).name == "scripted"


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/nobody") as client, pytest.raises(TriptychError) as caught:
        client.model()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_for_the_world_outside_is_left_alone(variable: str) -> None:
    """In processes of their own: gRPC reads the environment once."""
    server = """
import asyncio, sys
from functools import partial
from tests.shared.scripted_coordinator import ScriptedCoordinator, service
from triptych.client import AsyncClient
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings

async def main():
    server = Server([service(ScriptedCoordinator())], ServerSettings(listen="127.0.0.1:0", drain_seconds=0))
    await server.start()
    async with AsyncClient(server.address) as client:
        print((await client.model()).name)
    await server.stop()

asyncio.run(main())
"""
    environment = os.environ | {variable: "http://127.0.0.1:9"}
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", server]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "scripted\n", done.stderr
