"""The VAE codecs as the coordinator sees them: latents to pictures and back."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from triptych.telemetry.tracing import span
from triptych.tensors import array_to_message, array_view
from triptych.v1 import vae_codec_pb2
from triptych.wire.messages import with_tensor
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.fleet import Fleet
from triptych_coordinator.fleet.replica import Job, Replica, StageTimes
from triptych_coordinator.fleet.retries import Method, attempt
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.stages.answers import check_fingerprint, read_array
from triptych_coordinator.stages.concurrent import in_order
from triptych_coordinator.stages.fit import Models

if TYPE_CHECKING:
    from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceAsyncStub

DecodeRequest = vae_codec_pb2.VaeCodecServiceDecodeRequest
DecodeResponse = vae_codec_pb2.VaeCodecServiceDecodeResponse
EncodeRequest = vae_codec_pb2.VaeCodecServiceEncodeRequest
EncodeResponse = vae_codec_pb2.VaeCodecServiceEncodeResponse

Picture: TypeAlias = NDArray[np.uint8]
VaeCodecFleet: TypeAlias = "Fleet[VaeCodecServiceAsyncStub, vae_codec_pb2.VaeCodecServiceGetModelResponse]"
Response = TypeVar("Response", DecodeResponse, EncodeResponse)
R = TypeVar("R")


@dataclass(frozen=True)
class VaeCodecs:
    """The replicas of the VAE codec."""

    fleet: VaeCodecFleet

    async def decode(
        self, latents: Latents, models: Models, deadline: Deadline
    ) -> AsyncGenerator[tuple[int, Picture], None]:
        """The picture of each of the latents [B, C, h, w], in order, with its index.

        It is uint8 [H, W, models.pixel_channels].

        All idle codecs decode at once.
        """
        idle = self.fleet.idle(models.vae_codec.model.fingerprint)
        size = min(models.images_per_decode(latents.shape), math.ceil(len(latents) / idle))
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
        request = with_tensor(DecodeRequest(), array_view(latents))
        height, width = (size * models.vae_codec.downscale for size in latents.shape[2:])
        shape = (len(latents), height, width, models.pixel_channels)

        def read(response: DecodeResponse) -> NDArray[np.uint8]:
            return read_array(response.pixels, "pixels", ["uint8"], shape)

        sizes = len(latents), height * width
        return await self._call(lambda stub: stub.Decode, request, read, sizes, models, deadline)

    async def encode(
        self,
        pixels: Picture,
        models: Models,
        deadline: Deadline,
        masked: NDArray[np.bool_] | None = None,
    ) -> tuple[Latents, Latents]:
        """Mean and standard deviation, [1, C, h, w] each, of a picture's latents.

        `pixels` are sRGB, uint8 [height, width, models.pixel_channels]; those that are `masked`, [height,
        width], are taken as the middle between black and white.
        """
        others = EncodeRequest()
        if masked is not None:
            others.masked.CopyFrom(array_to_message(masked[None].astype(np.uint8)))
        request = with_tensor(others, array_view(pixels[None]))
        codec = models.vae_codec
        shape = (1, codec.latent_channels, *(size // codec.downscale for size in pixels.shape[:2]))

        def read(response: EncodeResponse) -> tuple[Latents, Latents]:
            mean = read_array(response.mean, "mean", ["float32"], shape)
            return mean, read_array(response.std, "std", ["float32"], shape)

        sizes = 1, math.prod(pixels.shape[:2])
        return await self._call(lambda stub: stub.Encode, request, read, sizes, models, deadline)

    async def _call(
        self,
        method: Callable[[VaeCodecServiceAsyncStub], Method[Any, Response]],
        request: Any,
        read: Callable[[Response], R],
        sizes: tuple[int, int],
        models: Models,
        deadline: Deadline,
    ) -> R:
        """What `read` makes of the answer; it raises TriptychError for nonsense.

        `sizes` are the pictures of the request, and the pixels of each.
        """
        fingerprint, (pictures, pixels) = models.vae_codec.model.fingerprint, sizes

        async def call(replica: Replica[VaeCodecServiceAsyncStub], seconds: float) -> tuple[R, StageTimes]:
            response = await attempt(method(replica.stub), request, seconds)
            check_fingerprint(response.fingerprint, fingerprint)
            return read(response), StageTimes(0.0, response.compute_milliseconds / 1000)

        work = pictures * pixels
        with span("VAE codec", {"triptych.pixels": work}), self.fleet.demand.outstanding(pictures):
            return (await self.fleet.call(call, Job(work, fingerprint), deadline, itemgetter(1)))[0]
