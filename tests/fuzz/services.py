"""Methods of every service with a good request each, and what of an answer must never change."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from PIL import Image

from triptych.digests import conditioning_digest
from triptych.tensors import array_to_message
from triptych.v1 import denoiser_pb2, image_generation_pb2, shared_memory_pb2, text_encoder_pb2, vae_codec_pb2
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych.v1.generation_parameters_pb2 import GenerationParameters

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What a caller's mistake may be answered with."""


@dataclass(frozen=True)
class Method:
    """A method and a good request; `bits` is what of an answer is always the same.

    endless: the answers are a stream without an end, of which the first one is read.
    """

    path: str
    good: Message
    answer: Any
    bits: Callable[[Any], Any]
    streams: bool = False
    endless: bool = False

    async def call(self, channel: grpc.aio.Channel, data: bytes, timeout: float) -> list[Any]:
        """The bits of the answers to a request's bytes. Raises AioRpcError; TimeoutError if none comes."""
        path, reader = f"/triptych.v1.{self.path}", self.answer.FromString
        async with asyncio.timeout(timeout):
            if not self.streams:
                answer = await channel.unary_unary(path, response_deserializer=reader)(data)
                return [self.bits(answer)]
            stream = channel.unary_stream(path, response_deserializer=reader)(data)
            try:
                if not self.endless:
                    return [self.bits(answer) async for answer in stream]
                answer = await stream.read()
                return [self.bits(answer)]
            finally:
                stream.cancel()


async def methods(denoiser: grpc.aio.Channel) -> dict[str, Method]:
    """By a name of their own. The denoiser is asked for its model and sent conditioning."""
    stub: Any = DenoiserServiceStub(denoiser)
    model = await stub.GetModel(denoiser_pb2.DenoiserServiceGetModelRequest())
    size = 4 * model.latent_multiple
    latents = array_to_message(np.ones((1, model.latent_channels, size, size), np.float32))
    sequence = array_to_message(np.ones((3, model.joint_attention_dim), np.float32))
    pooled = array_to_message(np.ones(model.pooled_projection_dim, np.float32))
    digest = conditioning_digest(sequence, pooled)
    conditioning = denoiser_pb2.PutConditioningRequest(digest=digest, sequence=sequence, pooled=pooled)
    await stub.PutConditioning(conditioning)
    reuse = denoiser_pb2.FeatureReuse(threshold=0.1, latents=latents, sigmas=[0.6])
    branches = [
        denoiser_pb2.Branch(conditioning_digests=[digest]),
        denoiser_pb2.Branch(conditioning_digests=[digest], skipped_layers=[0], feature_reuse=reuse),
    ]
    plain = GenerationParameters(prompts=["a cat"], seeds=[7], num_inference_steps=2, height=64, width=64)
    edited = GenerationParameters(image=_png(), mask=_png(), strength=0.5)
    edited.MergeFrom(plain)
    text, vae, image = text_encoder_pb2, vae_codec_pb2, image_generation_pb2
    return {
        "text encoder": Method(
            "TextEncoderService/Encode",
            text.TextEncoderServiceEncodeRequest(
                prompts=["a cat"], weights=[{"spans": [{"start": 2, "stop": 5, "weight": 1.5}]}]
            ),
            text.TextEncoderServiceEncodeResponse,
            lambda answer: answer.conditionings,
        ),
        "conditioning": Method(
            "DenoiserService/PutConditioning",
            conditioning,
            denoiser_pb2.PutConditioningResponse,
            lambda answer: answer,
        ),
        "denoiser": Method(
            "DenoiserService/Predict",
            denoiser_pb2.PredictRequest(latents=latents, sigmas=[0.5], branches=branches),
            denoiser_pb2.PredictResponse,
            lambda answer: answer.velocities,
        ),
        "decoder": Method(
            "VaeCodecService/Decode",
            vae.VaeCodecServiceDecodeRequest(latents=latents),
            vae.VaeCodecServiceDecodeResponse,
            lambda answer: answer.pixels,
        ),
        "encoder": Method(
            "VaeCodecService/Encode",
            vae.VaeCodecServiceEncodeRequest(pixels=array_to_message(np.full((1, 64, 64, 3), 99, np.uint8))),
            vae.VaeCodecServiceEncodeResponse,
            lambda answer: (answer.mean, answer.std),
        ),
        "pictures": Method(
            "ImageGenerationService/GenerateImages",
            image.GenerateImagesRequest(parameters=plain),
            image.GenerateImagesResponse,
            lambda answer: answer.images,
        ),
        "edited pictures": Method(
            "ImageGenerationService/Generate",
            image.GenerateRequest(parameters=edited),
            image.GenerateResponse,
            lambda answer: answer.image,
            streams=True,
        ),
        "shared memory": Method(
            "SharedMemoryService/HoldRegion",
            shared_memory_pb2.HoldRegionRequest(size=1 << 16),
            shared_memory_pb2.HoldRegionResponse,
            lambda answer: answer.size,
            streams=True,
            endless=True,
        ),
    }


def _png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()
