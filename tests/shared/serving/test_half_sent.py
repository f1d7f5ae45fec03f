"""Calls, messages and connections that are begun and not ended: each has a bound."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.shared.conftest import Running
from tests.shared.raw_http2 import connected
from tests.shared.scripted_coordinator import NAME, ScriptedCoordinator, service
from triptych.serving import arrivals, server
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych.v1 import image_generation_pb2 as pb2

METHODS = [f"/{NAME}/GenerateImages", f"/{NAME}/Generate", f"/{NAME}/GetModel"]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HALF = b"\0\0\0\x03\xe8" + b"half"  # of a message of a thousand bytes


@asynccontextmanager
async def listening(folder: Path, servicer: ScriptedCoordinator | None = None) -> AsyncIterator[str]:
    """A server's address."""
    settings = ServerSettings(listen=f"unix:{folder}/server", drain_seconds=0, grace_seconds=0)
    running = Server([service(servicer or ScriptedCoordinator())], settings)
    await running.start()
    yield running.address
    await running.stop()


async def serves(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{NAME}/GetModel")
        request = pb2.ImageGenerationServiceGetModelRequest().SerializeToString()
        return (
            len(await call(request, timeout=10, wait_for_ready=True)) > 0
        )  # others may still count as connected


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_that_ends_without_a_message_is_refused(coordinator: Running, method: str) -> None:
    async with connected(coordinator.address) as connection:
        assert await connection.code(await connection.call(method, end=True)) is (
            grpc.StatusCode.INVALID_ARGUMENT
        )


@pytest.mark.parametrize("data", [b"", b"\0", HALF], ids=["nothing", "one byte", "half a message"])
@pytest.mark.parametrize("method", [*METHODS, REFLECTION])
async def test_a_message_that_does_not_come_is_not_waited_for(
    coordinator: Running, method: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MESSAGE_SECONDS", 0.2)
    async with connected(coordinator.address) as connection:
        assert await connection.code(await connection.call(method, data)) is grpc.StatusCode.CANCELLED
    assert await serves(coordinator.address)


@pytest.mark.parametrize("data", [b"\0", HALF], ids=["one byte", "half a message"])
async def test_a_message_that_ends_in_its_middle_is_refused(coordinator: Running, data: bytes) -> None:
    async with connected(coordinator.address) as connection:
        code = await connection.code(await connection.call(METHODS[0], data, end=True))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_of_too_many_messages_on_their_way_the_longest_awaited_is_given_up(
    coordinator: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_ARRIVING", 3)
    async with connected(coordinator.address) as connection:
        calls = [await connection.call(METHODS[0], HALF) for _ in range(3)]
        while not connection.ended.intersection(calls):  # they begin in no order
            last = await connection.call(METHODS[2], bytes(5), end=True)
            assert await connection.code(last) is grpc.StatusCode.OK
        (given_up,) = connection.ended.intersection(calls)
        assert await connection.code(given_up) is grpc.StatusCode.CANCELLED
        assert await serves(coordinator.address)


async def test_more_connections_than_the_limit_are_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    async with listening(tmp_path) as address, AsyncExitStack() as stack:
        first, *_ = [await stack.enter_async_context(connected(address)) for _ in range(3)]
        assert await first.code(await first.call(METHODS[2], bytes(5), end=True)) is grpc.StatusCode.OK
        await (await stack.enter_async_context(connected(address, silent=True))).closed()
        await stack.aclose()
        assert await serves(address)


async def test_more_calls_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server, "MAX_CALLS", 2)
    async with listening(tmp_path) as address, connected(address) as connection:
        for _ in range(5):
            await connection.call(METHODS[0], HALF)
        codes = {await connection.code(call) for call in await connection.ends(3)}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert connection.max_streams == server.MAX_STREAMS


async def test_a_connection_that_says_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.5)
    async with listening(tmp_path) as address, connected(address, silent=True) as connection:
        await connection.closed()


async def test_who_watches_health_is_bounded(coordinator: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_WATCHERS", 2)
    stub = health_pb2_grpc.HealthStub(coordinator.channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "unknown")]
    for call in watching:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in watching:
        call.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(health_pb2.HealthCheckRequest(service="n" * 1000)).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_work_for_a_client_that_fell_silent_is_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(server, "PING_SECONDS", 1.0)
    servicer = ScriptedCoordinator()
    data = pb2.GenerateRequest(parameters={"prompts": ["hang"]}).SerializeToString()
    async with listening(tmp_path, servicer) as address, connected(address) as connection:
        await connection.call(METHODS[1], len(data).to_bytes(5, "big") + data, end=True)
        async with asyncio.timeout(20):  # nobody reads the connection any more, or answers a ping
            await servicer.cancelled.wait()
