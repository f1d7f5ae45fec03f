"""Every field of every request, with every odd value, sent to the real services over a socket.

No mistake of a caller is UNKNOWN or INTERNAL, every call is answered soon, and a good request gets the same
bits afterwards.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.fuzz.messages import Hostile, hostile_messages
from tests.fuzz.services import REFUSALS, Method, methods
from tests.serving import channel_to
from triptych.serving.settings import read_settings
from triptych.wire.shared_memory import SharedMemory
from triptych_local.running.fused import load
from triptych_local.running.settings import FusedSettings

NAMES = (
    "text encoder",
    "conditioning",
    "denoiser",
    "decoder",
    "encoder",
    "pictures",
    "edited pictures",
    "shared memory",
)
SECONDS = 60.0
AT_ONCE = 8


@pytest.fixture
async def channel(tiny_checkpoint: Path, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """To a server of all services."""
    options = ("--model", str(tiny_checkpoint), "--listen", f"unix:{tmp_path}/all.sock")
    settings = read_settings(FusedSettings, "test", [*options, "--drain-seconds", "0", "--max-waiting", "99"])
    loaded = replace(await load(settings), shared_memory=SharedMemory(1 << 20))
    async with channel_to(loaded, settings) as channel:
        yield channel


async def wrong_answer(method: Method, hostile: Hostile, channel: grpc.aio.Channel) -> str | None:
    """What is wrong with the answer to a message, if anything is."""
    try:
        await method.call(channel, hostile.message.SerializeToString(), SECONDS)
    except TimeoutError:
        return f"{hostile.what}: no answer"
    except grpc.aio.AioRpcError as error:
        if error.code() not in REFUSALS or not error.details():
            return f"{hostile.what}: {error.code()}: {error.details()}"
    return None


@pytest.mark.parametrize("name", NAMES)
async def test_odd_values_of_every_field_are_refused_or_served(
    name: str, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    method = (await methods(channel))[name]
    good = method.good.SerializeToString()
    before = await method.call(channel, good, SECONDS)
    few = asyncio.Semaphore(AT_ONCE)

    async def ask(hostile: Hostile) -> str | None:
        async with few:
            return await wrong_answer(method, hostile, channel)

    with caplog.at_level(logging.ERROR):
        answers = await asyncio.gather(*map(ask, hostile_messages(method.good)))
    assert not [answer for answer in answers if answer]
    assert not caplog.records
    assert await method.call(channel, good, SECONDS) == before
