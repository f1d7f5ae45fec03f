"""Servers over real sockets, and what tests ask of them."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import pytest

from triptych.compute.settings import QuantizedStageSettings
from triptych.compute.stage import Stage
from triptych.errors import TriptychError, from_rpc_error
from triptych.serving.channels import channel_options
from triptych.serving.server import Loaded, Server
from triptych.serving.settings import ServerSettings, read_settings

Settings = TypeVar("Settings", bound=QuantizedStageSettings)


@asynccontextmanager
async def channel_to(loaded: Loaded, settings: ServerSettings) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of what was loaded."""
    server = Server(loaded.services, settings, loaded.shared_memory)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address, options=channel_options()) as channel:
            yield channel
    finally:
        await server.stop()
        await loaded.close()


@asynccontextmanager
async def channel_to_stage(stage: Stage[Settings], settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a stage that was loaded as the settings say."""
    async with channel_to(await stage.load(settings), settings) as channel:
        yield channel


def stage_settings(stage: Stage[Settings], model: Path, folder: Path) -> Settings:
    """A stage that serves a checkpoint at a socket in the folder, and stops at once."""
    address = ("--listen", f"unix:{folder}/stage.sock")
    return read_settings(
        stage.settings,
        "test",
        ["--model", str(model), *address, "--drain-seconds", "0", "--grace-seconds", "1"],
    )


async def refused(call: Awaitable[Any]) -> TriptychError:
    """What a call was refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)
