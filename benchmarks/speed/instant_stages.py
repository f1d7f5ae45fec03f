"""Stages that answer at once, for what a coordinator can do: the real interfaces, nothing computed, no torch.

python -m benchmarks.speed.instant_stages --stage denoiser --height 64 --width 128 --listen unix:/tmp/one.sock
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field

from triptych.digests import conditioning_digest
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import ServerSettings, read_settings
from triptych.tensors import array_to_message, array_view, message_to_array
from triptych.v1 import denoiser_pb2, model_pb2, text_encoder_pb2, vae_codec_pb2
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceServicer, add_DenoiserServiceServicer_to_server
from triptych.v1.text_encoder_pb2_grpc import (
    TextEncoderServiceServicer,
    add_TextEncoderServiceServicer_to_server,
)
from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceServicer, add_VaeCodecServiceServicer_to_server
from triptych.wire.messages import with_tensor

MODEL = "triptych-small"
"""Whose configs the coordinator reads."""
CHANNELS, DOWNSCALE = 16, 8
TOKENS, WIDTH, POOLED_WIDTH = 333, 4096, 2048
"""SD3's conditioning: 5.5 MB in float32, uploaded once."""


class InstantSettings(ServerSettings):
    """The server's command line."""

    stage: Literal["text-encoder", "denoiser", "vae-codec"] = Field(description="Which one it is.")
    height: int = Field(32, gt=0, description="Of the latents of a picture.")
    width: int = Field(32, gt=0, description="Likewise.")


def _info(stage: str) -> model_pb2.ModelInfo:
    return model_pb2.ModelInfo(name=MODEL, family="instant", fingerprint=stage, dtype="float32")


class InstantTextEncoder(TextEncoderServiceServicer):
    """One conditioning for all prompts."""

    def __init__(self) -> None:
        sequence = array_to_message(np.ones((TOKENS, WIDTH), np.float32))
        pooled = array_to_message(np.ones(POOLED_WIDTH, np.float32))
        digest = conditioning_digest(sequence, pooled)
        self._conditioning = text_encoder_pb2.Conditioning(digest=digest, sequence=sequence, pooled=pooled)

    async def Encode(self, request: Any, context: Any) -> text_encoder_pb2.TextEncoderServiceEncodeResponse:
        """As a text encoder."""
        return text_encoder_pb2.TextEncoderServiceEncodeResponse(
            conditionings=[self._conditioning] * len(request.prompts),
            truncated=[""] * len(request.prompts),
            fingerprint="text-encoder",
        )

    async def GetModel(
        self, request: Any, context: Any
    ) -> text_encoder_pb2.TextEncoderServiceGetModelResponse:
        """As a text encoder."""
        return text_encoder_pb2.TextEncoderServiceGetModelResponse(
            model=_info("text-encoder"),
            joint_attention_dim=WIDTH,
            pooled_projection_dim=POOLED_WIDTH,
            max_prompts=16,
            max_prompt_bytes=1000,
            tokens=TOKENS,
        )


class InstantDenoiser(DenoiserServiceServicer):
    """Velocities that are the latents."""

    def __init__(self, height: int, width: int) -> None:
        self._size, self._largest = min(height, width), max(height, width)

    async def Predict(self, request: Any, context: Any) -> denoiser_pb2.PredictResponse:
        """Reads the tensor as a denoiser does, and sends one back for each branch."""
        latents = message_to_array(request.latents, "latents", dtypes=["float32"])
        velocities = np.broadcast_to(latents, (len(request.branches), *latents.shape))
        others = denoiser_pb2.PredictResponse(fingerprint="denoiser")
        return with_tensor(others, array_view(np.ascontiguousarray(velocities)))

    async def PutConditioning(self, request: Any, context: Any) -> denoiser_pb2.PutConditioningResponse:
        """Forgets it."""
        return denoiser_pb2.PutConditioningResponse()

    async def GetModel(self, request: Any, context: Any) -> denoiser_pb2.DenoiserServiceGetModelResponse:
        """As a denoiser."""
        return denoiser_pb2.DenoiserServiceGetModelResponse(
            model=_info("denoiser"),
            latent_channels=CHANNELS,
            latent_multiple=2,
            token_size=2,
            max_latent_size=self._largest,
            default_latent_size=self._size,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=POOLED_WIDTH,
            max_samples=8,
            max_branches=4,
            num_layers=1,
        )


class InstantVaeCodec(VaeCodecServiceServicer):
    """One picture for all: squares of a colour with some grain."""

    def __init__(self, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(64, 0).repeat(64, 1)
        picture = np.clip(coarse + rng.integers(-4, 5, coarse.shape), 0, 255).astype(np.uint8)
        self._pixels = picture[None]

    async def Decode(self, request: Any, context: Any) -> vae_codec_pb2.VaeCodecServiceDecodeResponse:
        """As a VAE codec."""
        latents = message_to_array(request.latents, "latents", dtypes=["float32"])
        pixels = np.ascontiguousarray(np.broadcast_to(self._pixels, (len(latents), *self._pixels.shape[1:])))
        return with_tensor(
            vae_codec_pb2.VaeCodecServiceDecodeResponse(fingerprint="vae-codec"), array_view(pixels)
        )

    async def GetModel(self, request: Any, context: Any) -> vae_codec_pb2.VaeCodecServiceGetModelResponse:
        """As a VAE codec."""
        return vae_codec_pb2.VaeCodecServiceGetModelResponse(
            model=_info("vae-codec"), latent_channels=CHANNELS, downscale=DOWNSCALE, max_pixels=1 << 22
        )


def _service(settings: InstantSettings) -> Service:
    size = settings.height, settings.width
    if settings.stage == "text-encoder":
        encoder = InstantTextEncoder()
        return Service(
            "triptych.v1.TextEncoderService", partial(add_TextEncoderServiceServicer_to_server, encoder)
        )
    if settings.stage == "denoiser":
        denoiser = InstantDenoiser(*size)
        return Service(
            "triptych.v1.DenoiserService", partial(add_DenoiserServiceServicer_to_server, denoiser)
        )
    codec = InstantVaeCodec(*size)  # type: ignore[abstract]
    return Service("triptych.v1.VaeCodecService", partial(add_VaeCodecServiceServicer_to_server, codec))


async def load(settings: InstantSettings) -> Loaded:
    """The stage."""
    return Loaded([_service(settings)], f"instant {settings.stage}")


def main() -> None:
    """Reads the options and serves."""
    settings = read_settings(InstantSettings, "python -m benchmarks.speed.instant_stages")
    run("instant", settings, partial(load, settings))


if __name__ == "__main__":
    main()
