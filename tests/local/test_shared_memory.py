"""The three stages behind real sockets, with and without shared memory: the same pictures."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from triptych.client import AsyncClient
from triptych.serving.server import Server, Service
from triptych.serving.settings import ServerSettings, read_settings
from triptych.v1.denoiser_pb2_grpc import add_DenoiserServiceServicer_to_server as add_denoiser
from triptych.v1.text_encoder_pb2_grpc import add_TextEncoderServiceServicer_to_server as add_text_encoder
from triptych.v1.vae_codec_pb2_grpc import add_VaeCodecServiceServicer_to_server as add_vae_codec
from triptych.wire import messages as wire
from triptych.wire.regions import Region
from triptych.wire.shared_memory import SharedMemory
from triptych_coordinator.fleet.connections import Wiring
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_local.running.direct import DirectStub
from triptych_local.running.fused import load_fused
from triptych_local.running.settings import FusedSettings

STEPS = 3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="regions are Linux's")


class CountingMemory(SharedMemory):
    """It counts the calls."""

    calls = 0

    @contextmanager
    def used(self, *reference: Any) -> Iterator[Region]:
        self.calls += 1
        with super().used(*reference) as region:
            yield region


async def pictures(coordinator: ImageGenerationServicer) -> list[bytes]:
    """Two pictures, then one like the first of them."""
    client = AsyncClient.from_stub(cast(Any, DirectStub(coordinator)))
    made = (await client.generate(["a cat", "a red dog"], seed=7, num_inference_steps=STEPS)).images
    edited = await client.generate("a dog", seed=7, num_inference_steps=STEPS, image=made[0].png)
    return [picture.png for picture in [*made, *edited.images]]


async def test_pictures_are_the_same_to_the_bit(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = read_settings(FusedSettings, "test", ["--model", str(tiny_checkpoint)])
    fused = await load_fused(told)
    expected = await pictures(fused.coordinator)
    monkeypatch.setattr(wire, "MIN_BYTES", 1)  # the pictures are small

    denoiser_memory, codec_memory = CountingMemory(16 << 20), CountingMemory(16 << 20)
    stages = [
        ("text", "TextEncoder", partial(add_text_encoder, fused.text_encoder), None),
        ("denoiser", "Denoiser", partial(add_denoiser, fused.denoiser), denoiser_memory),
        ("vae", "VaeCodec", partial(add_vae_codec, fused.vae_codec), codec_memory),
    ]
    servers = []
    for socket, name, add, memory in stages:
        settings = ServerSettings(listen=f"unix:{tmp_path}/{socket}", drain_seconds=0, grace_seconds=1)
        servers.append(Server([Service(f"triptych.v1.{name}Service", add)], settings, memory))
        await servers[-1].start()
    stubs = Wiring(64 << 20, 5.0).stubs(*(server.address for server in servers))
    coordinator = ImageGenerationServicer(told.open_checkpoint(), stubs, told)
    try:
        assert await pictures(coordinator) == expected
        assert denoiser_memory.calls > STEPS  # the edited picture takes some, too
        assert codec_memory.calls >= 3  # two decodings and an encoding
    finally:
        await coordinator.close()
        for server in servers:
            await server.stop()
        await fused.close()
