"""The VAE codecs as the coordinator sees them: latents to pictures and back."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych.tensors import array_view
from triptych.v1 import vae_codec_pb2
from triptych.wire.messages import with_tensor
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.connections import VaeCodecStub
from triptych_coordinator.fleet.membership import Fits, Fleet, Job
from triptych_coordinator.fleet.replica import Replica, Source
from triptych_coordinator.fleet.retries import HealthCheck, RetryPolicy, attempt
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.stages.answers import check_fingerprint, read_array
from triptych_coordinator.stages.concurrent import in_order
from triptych_coordinator.stages.fit import Models

DecodeRequest = vae_codec_pb2.VaeCodecServiceDecodeRequest
DecodeResponse = vae_codec_pb2.VaeCodecServiceDecodeResponse
PixelsRequest = vae_codec_pb2.VaeCodecServiceEncodeRequest
PixelsResponse = vae_codec_pb2.VaeCodecServiceEncodeResponse
VaeCodecModel = vae_codec_pb2.VaeCodecServiceGetModelResponse

Picture: TypeAlias = NDArray[np.uint8]


class VaeCodecs:
    """The replicas of the VAE codec."""

    def __init__(
        self,
        source: Source[VaeCodecStub],
        health_check: HealthCheck,
        retries: RetryPolicy,
        fits: Fits,
    ) -> None:
        """As stages.Stages."""
        self._fleet = Fleet("VAE codec", source, _ask, health_check, fits, retries.max_wait)
        self._retries = retries
        self.close = self._fleet.close
        self.description = self._fleet.description

    async def decode(
        self, latents: Latents, models: Models, deadline: Deadline
    ) -> AsyncGenerator[tuple[int, Picture], None]:
        """The picture, uint8 [H, W, 3], of each of the latents [B, C, h, w], in order, with its index.

        All idle codecs decode at once.
        """
        fingerprint, most = models.vae_codec.model.fingerprint, models.images_per_decode(latents.shape)
        idle = max(1, self._fleet.idle(fingerprint))
        size = min(most, math.ceil(len(latents) / idle))
        parts = [
            partial(self._decode_part, latents[start : start + size], models, deadline)
            for start in range(0, len(latents), size)
        ]
        index = 0
        async with aclosing(in_order(parts, idle)) as decoded:
            async for pictures in decoded:
                for picture in pictures:
                    yield index, picture
                    index += 1

    async def _decode_part(self, latents: Latents, models: Models, deadline: Deadline) -> NDArray[np.uint8]:
        fingerprint = models.vae_codec.model.fingerprint
        request = with_tensor(DecodeRequest(), array_view(latents))

        async def decode(replica: Replica[VaeCodecStub], seconds: float) -> DecodeResponse:
            response = await attempt(replica.stub.Decode, request, seconds)
            check_fingerprint(response.fingerprint, fingerprint)
            return response

        job = Job[VaeCodecStub](models.pixels((len(latents), *latents.shape[2:])), fingerprint)
        response = await self._fleet.call(decode, job, self._retries, deadline, _codec_seconds)
        return read_array(response.pixels, "pixels", "uint8", (len(latents), "height", "width", 3))

    async def encode(self, pixels: Picture, models: Models, deadline: Deadline) -> tuple[Latents, Latents]:
        """Mean and standard deviation, [1, C, h, w] each, of a picture's latents.

        `pixels` are sRGB, uint8 [height, width, 3].
        """
        fingerprint = models.vae_codec.model.fingerprint
        request = with_tensor(PixelsRequest(), array_view(pixels[None]))

        async def encode(replica: Replica[VaeCodecStub], seconds: float) -> PixelsResponse:
            response = await attempt(replica.stub.Encode, request, seconds)
            check_fingerprint(response.fingerprint, fingerprint)
            return response

        job = Job[VaeCodecStub](pixels.size // 3, fingerprint)
        response = await self._fleet.call(encode, job, self._retries, deadline, _codec_seconds)
        shape = (1, "channels", "height", "width")
        mean = read_array(response.mean, "mean", "float32", shape)
        return mean, read_array(response.std, "std", "float32", mean.shape)


async def _ask(stub: VaeCodecStub, seconds: float) -> VaeCodecModel:
    return await attempt(stub.GetModel, vae_codec_pb2.VaeCodecServiceGetModelRequest(), seconds)


def _codec_seconds(response: DecodeResponse | PixelsResponse) -> float:
    return response.compute_milliseconds / 1000
