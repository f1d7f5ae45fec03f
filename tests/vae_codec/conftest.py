"""A codec with random weights, and the same one as a checkpoint behind a socket."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serving import channel_to_stage, stage_settings
from triptych.checkpoints.opening import open_checkpoint
from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceStub
from triptych_vae_codec.__main__ import STAGE
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
    return stage_settings(STAGE, tiny_checkpoint, tmp_path)


@pytest.fixture
async def stub(settings: VaeCodecSettings) -> AsyncIterator[Any]:
    async with channel_to_stage(STAGE, settings) as channel:
        yield VaeCodecServiceStub(channel)
