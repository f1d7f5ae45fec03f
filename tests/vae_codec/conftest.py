"""A codec with random weights, and the same one as a checkpoint behind a socket."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import torch

from triptych.checkpoints.opening import open_checkpoint
from triptych.serving.channels import channel_options
from triptych.serving.server import Server
from triptych.serving.settings import read_settings
from triptych.v1 import vae_codec_pb2_grpc
from triptych_vae_codec.__main__ import load
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import build
from triptych_vae_codec.settings import VaeCodecSettings


@pytest.fixture(scope="session")
def codec(tiny_checkpoint: Path) -> VaeCodec:
    """The tiny checkpoint's: 4 latent channels, 8 pixels per latent pixel."""
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    return VaeCodec(build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", torch.float32))


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> VaeCodecSettings:
    options = {
        "--listen": f"unix:{tmp_path}/vae_codec.sock",
        "--model": str(tiny_checkpoint),
        "--drain-seconds": "0",
        "--grace-seconds": "1",
    }
    return read_settings(VaeCodecSettings, "test", [word for option in options.items() for word in option])


@pytest.fixture
async def stub(settings: VaeCodecSettings) -> AsyncIterator[Any]:
    loaded = await load(settings)
    server = Server(loaded.services, settings)
    await server.start()
    async with grpc.aio.insecure_channel(settings.listen, options=channel_options()) as channel:
        yield vae_codec_pb2_grpc.VaeCodecServiceStub(channel)
    await server.stop()
    await loaded.close()
