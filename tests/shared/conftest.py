"""A scripted coordinator, served in this process over a real socket."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from tests.shared.scripted_coordinator import ScriptedCoordinator, service
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

MAX_MESSAGE_BYTES = 1_000_000


@dataclass
class Running:
    """The server's address, its servicer, and a channel and a stub to it."""

    address: str
    servicer: ScriptedCoordinator
    channel: grpc.aio.Channel
    stub: ImageGenerationServiceStub


@pytest.fixture(params=["unix", "tcp"])
async def coordinator(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    """A running scripted coordinator."""
    servicer = ScriptedCoordinator()
    listen = f"unix:{tmp_path}/coordinator" if request.param == "unix" else "127.0.0.1:0"
    settings = ServerSettings(
        listen=listen, max_message_bytes=MAX_MESSAGE_BYTES, drain_seconds=0, grace_seconds=0
    )
    server = Server([service(servicer)], settings)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Running(server.address, servicer, channel, ImageGenerationServiceStub(channel))
    await server.stop()
