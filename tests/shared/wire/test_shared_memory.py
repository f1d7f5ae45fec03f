"""Shared memory between a server and a client: the same answers as without, whatever is lost."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from tests.serving import channel_to
from triptych.errors import StartError, from_rpc_error
from triptych.serving.channels import channel_options
from triptych.serving.server import Loaded, Service
from triptych.serving.settings import ServerSettings
from triptych.tensors import array_view, message_to_array
from triptych.v1 import denoiser_pb2, denoiser_pb2_grpc, shared_memory_pb2, shared_memory_pb2_grpc, tensor_pb2
from triptych.wire import shared_calls, shared_memory
from triptych.wire.messages import WithTensor, with_tensor
from triptych.wire.regions import create_region, open_region
from triptych.wire.shared_calls import SharedMemoryChannel
from triptych.wire.shared_memory import SharedMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="regions are Linux's")

MEGABYTE = 1 << 20
LATENTS = np.random.default_rng(5).standard_normal((1, 16, 128, 256), np.float32)  # 2 MB
ROOT = Path(__file__).parents[3]


class Halving(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Velocities that are half the latents. It remembers how it got them, and can be made to wait."""

    def __init__(self) -> None:
        self.in_region: list[bool] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def Predict(self, request: Any, context: Any) -> denoiser_pb2.PredictResponse:
        """Half of them, once for every branch."""
        self.in_region.append(isinstance(request, WithTensor))
        latents = message_to_array(request.latents, "latents", dtypes=["float32"])
        await self.go_on.wait()
        velocities = np.stack([latents / 2] * max(1, len(request.branches)))
        return with_tensor(denoiser_pb2.PredictResponse(fingerprint="half"), array_view(velocities))


@asynccontextmanager
async def serving(
    folder: Path, memory: SharedMemory | None
) -> AsyncIterator[tuple[Halving, grpc.aio.Channel]]:
    servicer = Halving()
    add = partial(denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server, servicer)
    settings = ServerSettings(listen=f"unix:{folder}/denoiser.sock", drain_seconds=0, grace_seconds=5)
    loaded = Loaded([Service("triptych.v1.DenoiserService", add)], "halves", shared_memory=memory)
    async with channel_to(loaded, settings) as channel:
        try:
            yield servicer, channel
        finally:
            servicer.go_on.set()


def stub_of(channel: grpc.aio.Channel) -> Any:
    return denoiser_pb2_grpc.DenoiserServiceStub(SharedMemoryChannel(channel))  # type: ignore[arg-type]


async def predict(stub: Any, latents: Any = LATENTS, branches: int = 1) -> Any:
    others = denoiser_pb2.PredictRequest(branches=[denoiser_pb2.Branch()] * branches)
    response = await stub.Predict(with_tensor(others, array_view(latents)), timeout=10)
    assert response.fingerprint == "half"
    return response, message_to_array(response.velocities, "velocities")


async def hold(channel: grpc.aio.Channel, size: int) -> tuple[Any, Any]:
    stub: Any = shared_memory_pb2_grpc.SharedMemoryServiceStub(channel)
    call = stub.HoldRegion(shared_memory_pb2.HoldRegionRequest(size=size))
    return call, await call.read()


async def until_free(memory: SharedMemory, size: int) -> None:
    async with asyncio.timeout(5):
        while memory._free_bytes != size:
            await asyncio.sleep(0.01)


def is_open(region: str) -> bool:
    """Whether this process, in which the servers are, has it."""
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return any(region in link for link in links)


async def test_answers_are_the_same_bits_and_come_through_memory(tmp_path: Path) -> None:
    async with serving(tmp_path, SharedMemory(64 * MEGABYTE)) as (servicer, channel):
        stub, usual = stub_of(channel), denoiser_pb2_grpc.DenoiserServiceStub(channel)
        for branches in (1, 4, 5):  # five branches' velocities have no room in the region
            response, velocities = await predict(stub, branches=branches)
            assert isinstance(response, WithTensor) == (branches < 5)
            assert np.array_equal(velocities, np.stack([LATENTS / 2] * branches))
        request = denoiser_pb2.PredictRequest()
        request.latents.CopyFrom(array_view(LATENTS).message())
        plain = await usual.Predict(request)  # type: ignore[misc]
        assert plain.velocities.data == ((await predict(stub))[1]).tobytes()
        assert servicer.in_region == [True, True, True, False, True]


async def test_a_small_tensor_goes_in_its_message(tmp_path: Path) -> None:
    memory = SharedMemory(64 * MEGABYTE)
    async with serving(tmp_path, memory) as (servicer, channel):
        small = LATENTS[:, :, :4]
        assert np.array_equal((await predict(stub_of(channel), small))[1], small[None] / 2)
        assert servicer.in_region == [False]
        assert memory._free_bytes == 64 * MEGABYTE


async def test_calls_at_the_same_time_have_regions_of_their_own(tmp_path: Path) -> None:
    memory = SharedMemory(24 * MEGABYTE)  # for three calls of five
    async with serving(tmp_path, memory) as (servicer, channel):
        stub = stub_of(channel)
        servicer.go_on.clear()
        calls = [asyncio.create_task(predict(stub, LATENTS * scale)) for scale in range(5)]
        async with asyncio.timeout(5):
            while len(servicer.in_region) < 5:
                await asyncio.sleep(0.01)
        servicer.go_on.set()
        for scale, (_, velocities) in enumerate(await asyncio.gather(*calls)):
            assert np.array_equal(velocities[0], LATENTS * scale / 2)
        assert sorted(servicer.in_region) == [False, False, True, True, True]
        await predict(stub)
        assert memory._free_bytes == 0, "the same regions are used again"


async def test_without_the_option_the_bytes_are_in_the_message(tmp_path: Path) -> None:
    async with serving(tmp_path, None) as (servicer, channel):
        _, velocities = await predict(stub_of(channel))
        assert np.array_equal(velocities[0], LATENTS / 2)
        assert servicer.in_region == [False]
        request = denoiser_pb2.PredictRequest(
            latents=tensor_pb2.Tensor(dtype="DTYPE_FLOAT32", shape=[1], shared={"region": "x", "length": 4})
        )
        with pytest.raises(grpc.aio.AioRpcError, match=r"latents\.shared: .*shared memory"):
            await denoiser_pb2_grpc.DenoiserServiceStub(channel).Predict(request)  # type: ignore[misc]


async def test_on_another_host_the_bytes_are_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SharedMemory(64 * MEGABYTE)
    async with serving(tmp_path, memory) as (servicer, channel):
        monkeypatch.setattr(shared_memory.os, "getpid", lambda: 2**22 + 1)  # no process has this id here
        _, velocities = await predict(stub_of(channel))
        assert np.array_equal(velocities[0], LATENTS / 2)
        assert servicer.in_region == [False]
        await until_free(memory, 64 * MEGABYTE)


async def test_who_is_on_another_host_is_given_no_memory_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_memory, "host_id", lambda: "another")
    monkeypatch.setattr(shared_memory, "create_region", None)  # nobody asks for memory
    monkeypatch.setattr(shared_calls, "_REFUSED_SECONDS", 0)
    caplog.set_level("INFO")
    async with serving(tmp_path, SharedMemory(64 * MEGABYTE)) as (servicer, channel):
        stub = stub_of(channel)
        for _ in range(3):
            _, velocities = await predict(stub)
            assert np.array_equal(velocities[0], LATENTS / 2)
        assert servicer.in_region == [False] * 3
    why = "the caller is on another host than this server, or in another container"
    assert [record.getMessage() for record in caplog.records if record.name == shared_calls.__name__] == [
        f"large tensors pass to and from a server through the socket: {why}"
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"region": "unknown"}, r"latents\.shared\.region: there is no region 'unknown'"),
        ({"length": MEGABYTE + 1}, r"latents\.shared\.length: is 1048577; the region has 1048576 bytes"),
        ({"length": -4}, r"latents\.shared\.length: is -4"),
        ({"length": 12}, r"latents\.data: shape \[4\] of float32 needs 16 bytes, got 12"),
        ({"data": b"1234567890123456"}, r"latents\.data: is set, and so is shared"),
    ],
)
async def test_a_wrong_reference_is_refused_by_its_field(
    tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    async with serving(tmp_path, SharedMemory(MEGABYTE)) as (_, channel):
        _call, found = await hold(channel, MEGABYTE)
        reference = {"region": found.region, "length": 16} | {k: v for k, v in wrong.items() if k != "data"}
        tensor = tensor_pb2.Tensor(
            dtype="DTYPE_FLOAT32", shape=[4], shared=reference, data=wrong.get("data", b"")
        )
        with pytest.raises(grpc.aio.AioRpcError, match=said) as caught:
            await denoiser_pb2_grpc.DenoiserServiceStub(channel).Predict(  # type: ignore[misc]
                denoiser_pb2.PredictRequest(latents=tensor)
            )
        assert from_rpc_error(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_region_is_for_one_call_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path, SharedMemory(MEGABYTE)) as (servicer, channel):
        _call, found = await hold(channel, MEGABYTE)
        tensor = tensor_pb2.Tensor(
            dtype="DTYPE_FLOAT32", shape=[4], shared={"region": found.region, "length": 16}
        )
        request = denoiser_pb2.PredictRequest(latents=tensor)
        stub: Any = denoiser_pb2_grpc.DenoiserServiceStub(channel)
        servicer.go_on.clear()
        first = asyncio.ensure_future(answer(stub, request))
        while not servicer.in_region:
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError, match="in use by another call"):
            await stub.Predict(request)
        servicer.go_on.set()
        assert (await first).velocities.data == bytes(16)


async def answer(stub: Any, request: Any) -> Any:
    return await stub.Predict(request)


@pytest.mark.parametrize("size", [0, -1, MEGABYTE + 1])
async def test_a_region_of_impossible_size_is_refused(tmp_path: Path, size: int) -> None:
    async with serving(tmp_path, SharedMemory(MEGABYTE)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError, match=f"size: is {size}; allowed are 1 to 1048576 bytes"):
            await hold(channel, size)


async def test_regions_are_bounded_however_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 2)
    async with serving(tmp_path, SharedMemory(MEGABYTE)) as (_, channel):
        _held = [await hold(channel, 1) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError, match="2 regions are held, which is the limit") as caught:
            await hold(channel, 1)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_memory_in_use_is_not_given_twice_and_comes_back(tmp_path: Path) -> None:
    memory = SharedMemory(MEGABYTE)
    async with serving(tmp_path, memory) as (_, channel):
        call, found = await hold(channel, MEGABYTE)
        with pytest.raises(
            grpc.aio.AioRpcError, match="0 of 1048576 bytes of shared memory are free"
        ) as caught:
            await hold(channel, 1)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert is_open(found.region)
        call.cancel()
        await until_free(memory, MEGABYTE)
        assert not is_open(found.region)


async def test_a_client_that_leaves_lets_go_of_its_regions(tmp_path: Path) -> None:
    memory = SharedMemory(MEGABYTE)
    async with serving(tmp_path, memory) as (_, channel):
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/denoiser.sock") as another:
            _call, _found = await hold(another, MEGABYTE)
            assert memory._free_bytes == 0
        await until_free(memory, MEGABYTE)
        await hold(channel, MEGABYTE)


async def test_a_region_that_is_not_used_is_taken_back_and_the_next_call_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "UNUSED_SECONDS", 0.2)
    memory = SharedMemory(8 * MEGABYTE)
    async with serving(tmp_path, memory) as (servicer, channel):
        stub = stub_of(channel)
        await predict(stub)
        assert memory._free_bytes == 0
        await until_free(memory, 8 * MEGABYTE)
        await predict(stub)
        assert servicer.in_region == [True, True]


async def test_a_region_that_was_lost_unnoticed_costs_one_refused_call(tmp_path: Path) -> None:
    memory = SharedMemory(8 * MEGABYTE)
    async with serving(tmp_path, memory) as (servicer, channel):
        stub = stub_of(channel)
        await predict(stub)
        lost = dict(memory._held)
        memory._held.clear()
        _, velocities = await predict(stub)
        assert np.array_equal(velocities[0], LATENTS / 2)
        assert servicer.in_region == [True, False]
        memory._held.update(lost)


async def test_after_a_call_that_timed_out_its_region_is_not_used_again(tmp_path: Path) -> None:
    memory = SharedMemory(16 * MEGABYTE)
    async with serving(tmp_path, memory) as (servicer, channel):
        stub = stub_of(channel)
        servicer.go_on.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(with_tensor(denoiser_pb2.PredictRequest(), array_view(LATENTS)), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_free(memory, 16 * MEGABYTE)
        servicer.go_on.set()
        _, velocities = await predict(stub, LATENTS * 3)
        assert np.array_equal(velocities[0], LATENTS * 3 / 2)


async def test_a_server_that_stops_ends_running_calls_well_and_gives_all_back(tmp_path: Path) -> None:
    memory = SharedMemory(16 * MEGABYTE)
    async with asyncio.timeout(4):  # holding a region does not keep it for its grace_seconds
        async with serving(tmp_path, memory) as (servicer, channel):
            stub = stub_of(channel)
            await predict(stub)
            servicer.go_on.clear()
            running = asyncio.create_task(predict(stub))
            while len(servicer.in_region) < 2:
                await asyncio.sleep(0.01)
            memory.close()
            await until_free(memory, 16 * MEGABYTE)
            servicer.go_on.set()
            _, velocities = await running
            assert np.array_equal(velocities[0], LATENTS / 2)


async def test_a_server_that_is_killed_leaves_nothing_and_its_successor_serves(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/echo.sock"
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        stub = stub_of(channel)
        first = await start_echo(address)
        assert np.array_equal(await echoed(stub), LATENTS)
        first.send_signal(signal.SIGSTOP)  # the request is under way, and the answer never comes
        running = asyncio.create_task(echoed(stub))
        await asyncio.sleep(0.3)
        first.kill()
        await first.communicate()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        Path(f"{tmp_path}/echo.sock.raw").unlink()
        second = await start_echo(address)
        try:
            async with asyncio.timeout(20):
                await channel.channel_ready()
            assert np.array_equal(await echoed(stub), LATENTS)
        finally:
            second.kill()
            await second.communicate()


async def start_echo(address: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.speed.echo_server",
        *("--listen", address, "--shared-memory-mb", "32"),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"ready" not in await process.stderr.readline():
            pass
    return process


async def echoed(stub: Any) -> Any:
    response = await stub.Predict(with_tensor(denoiser_pb2.PredictRequest(), array_view(LATENTS)), timeout=10)
    assert isinstance(response, WithTensor), "it came through memory"
    return message_to_array(response.velocities, "velocities")


def test_what_is_opened_is_the_region_and_nothing_else(tmp_path: Path) -> None:
    region, descriptor = create_region(4096)
    with (tmp_path / "another").open("w+b") as another:
        another.truncate(4096)
        with pytest.raises(OSError, match="not the region"):
            open_region(region.name, 4096, os.getpid(), another.fileno())
    with pytest.raises(OSError, match="not sealed at 8192 bytes"):
        open_region(region.name, 8192, os.getpid(), descriptor)
    same = open_region(region.name, 4096, os.getpid(), descriptor)
    region.write(b"latents")
    assert same.read(7) == b"latents"
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    for size in (0, 4095, 8192):  # cut off, it would end whoever reads it
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    os.close(descriptor)
    assert same.read(7) == b"latents", "whoever has mapped it keeps it"


def test_another_system_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert SharedMemory.of_megabytes(0) is None
    with pytest.raises(StartError, match="--shared-memory-mb needs Linux, this is darwin"):
        SharedMemory.of_megabytes(1)
