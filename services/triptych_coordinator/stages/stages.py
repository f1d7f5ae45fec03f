"""The three stages as the coordinator sees them: numpy arrays in and out, messages and errors in between."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych.tensors import array_view
from triptych.v1 import denoiser_pb2, text_encoder_pb2, vae_codec_pb2
from triptych.v1.lora_pb2 import Lora
from triptych.wire.messages import with_tensor
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.connections import DenoiserStub, Stubs, TextEncoderStub, VaeCodecStub
from triptych_coordinator.fleet.membership import Fits, Fleet, Job
from triptych_coordinator.fleet.replica import Replica
from triptych_coordinator.fleet.retries import Patience, attempt
from triptych_coordinator.request.prompt_weights import Span, WeightedText
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.stages.answers import check_fingerprint, nonsense, read_array
from triptych_coordinator.stages.concurrent import in_order
from triptych_coordinator.stages.conditioning import ConditioningCache, EncodedPrompt
from triptych_coordinator.stages.denoiser import Conditionings, RequestDenoiser
from triptych_coordinator.stages.fit import Models

EncodeRequest = text_encoder_pb2.TextEncoderServiceEncodeRequest
EncodeResponse = text_encoder_pb2.TextEncoderServiceEncodeResponse
PixelsRequest = vae_codec_pb2.VaeCodecServiceEncodeRequest
PixelsResponse = vae_codec_pb2.VaeCodecServiceEncodeResponse
DecodeRequest = vae_codec_pb2.VaeCodecServiceDecodeRequest
DecodeResponse = vae_codec_pb2.VaeCodecServiceDecodeResponse

Picture: TypeAlias = NDArray[np.uint8]


class Stages:
    """The stages that serve one checkpoint."""

    def __init__(
        self, stubs: Stubs, contact: Patience, patience: Patience, cache: ConditioningCache, fits: Fits
    ) -> None:
        """`contact` is for the first question to a replica, `patience` for the work.

        `fits` says whether a replica's model is the checkpoint's.
        """
        self._patience = patience
        self._cache = cache
        self._text_encoders = Fleet("text encoder", stubs.text_encoder, _ask_text_encoder, contact, fits)
        self._denoisers = Fleet("denoiser", stubs.denoiser, _ask_denoiser, contact, fits)
        self._vae_codecs = Fleet("VAE codec", stubs.vae_codec, _ask_vae_codec, contact, fits)

    async def close(self) -> None:
        """Ends the connections; running calls are cancelled."""
        await asyncio.gather(self._text_encoders.close(), self._denoisers.close(), self._vae_codecs.close())

    async def models(self, deadline: Deadline) -> Models:
        """What the stages serve now. A request keeps to these fingerprints.

        Raises:
            TriptychError: UNAVAILABLE that names a stage which is not up.
        """
        text_encoder, denoiser, vae_codec = await asyncio.gather(
            self._text_encoders.description(deadline),
            self._denoisers.description(deadline),
            self._vae_codecs.description(deadline),
        )
        return Models(text_encoder, denoiser, vae_codec)

    async def encode(
        self, prompts: Sequence[WeightedText], models: Models, deadline: Deadline
    ) -> dict[WeightedText, EncodedPrompt]:
        """Encodes prompts, each once; those that were encoded before are remembered."""
        fingerprint, most = models.text_encoder.model.fingerprint, max(models.text_encoder.max_prompts, 1)
        found = {prompt: self._cache.get(fingerprint, prompt) for prompt in prompts}
        encoded = {prompt: entry for prompt, entry in found.items() if entry}
        new = [prompt for prompt, entry in found.items() if not entry]
        idle = max(1, self._text_encoders.idle(fingerprint))
        size = max(1, min(most, math.ceil(len(new) / idle)))
        parts = [
            partial(self._encode_new, new[start : start + size], fingerprint, deadline)
            for start in range(0, len(new), size)
        ]
        async for part in in_order(parts, idle):
            encoded |= part
        return encoded

    async def _encode_new(
        self, prompts: Sequence[WeightedText], fingerprint: str, deadline: Deadline
    ) -> dict[WeightedText, EncodedPrompt]:
        request = EncodeRequest(prompts=[text for text, _ in prompts])
        if any(spans for _, spans in prompts):
            request.weights.extend(_weights(spans) for _, spans in prompts)

        async def encode(replica: Replica[TextEncoderStub], seconds: float) -> EncodeResponse:
            return await attempt(replica.stub.Encode, request, seconds)

        job = Job[TextEncoderStub](len(prompts), fingerprint)
        response = await self._text_encoders.call(encode, job, self._patience, deadline)
        if not len(prompts) == len(response.conditionings) == len(response.truncated):
            raise nonsense(
                f"the text encoder sent {len(response.conditionings)} conditionings for {len(prompts)}"
            )
        encoded = {
            prompt: EncodedPrompt(conditioning, truncated)
            for prompt, conditioning, truncated in zip(
                prompts, response.conditionings, response.truncated, strict=True
            )
        }
        for prompt, entry in encoded.items():
            self._cache.put(fingerprint, prompt, entry)
        return encoded

    def denoiser(
        self, conditionings: Conditionings, models: Models, deadline: Deadline, loras: Sequence[Lora] = ()
    ) -> RequestDenoiser:
        """The denoisers, as the samples of one request see them."""
        return RequestDenoiser(
            self._denoisers, models.denoiser, conditionings, self._patience, deadline, loras
        )

    async def decode(
        self, latents: Latents, models: Models, deadline: Deadline
    ) -> AsyncGenerator[tuple[int, Picture], None]:
        """The picture, uint8 [H, W, 3], of each of the latents [B, C, h, w], in order, with its index.

        All idle codecs decode at once.
        """
        fingerprint, most = models.vae_codec.model.fingerprint, models.images_per_decode(latents.shape)
        idle = max(1, self._vae_codecs.idle(fingerprint))
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
        response = await self._vae_codecs.call(decode, job, self._patience, deadline, _codec_seconds)
        return read_array(response.pixels, "pixels", "uint8", (len(latents), "height", "width", 3))

    async def encode_picture(
        self, pixels: Picture, models: Models, deadline: Deadline
    ) -> tuple[Latents, Latents]:
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
        response = await self._vae_codecs.call(encode, job, self._patience, deadline, _codec_seconds)
        shape = (1, "channels", "height", "width")
        mean = read_array(response.mean, "mean", "float32", shape)
        return mean, read_array(response.std, "std", "float32", mean.shape)


async def _ask_text_encoder(
    stub: TextEncoderStub, seconds: float
) -> text_encoder_pb2.TextEncoderServiceGetModelResponse:
    return await attempt(stub.GetModel, text_encoder_pb2.TextEncoderServiceGetModelRequest(), seconds)


async def _ask_denoiser(stub: DenoiserStub, seconds: float) -> denoiser_pb2.DenoiserServiceGetModelResponse:
    return await attempt(stub.GetModel, denoiser_pb2.DenoiserServiceGetModelRequest(), seconds)


async def _ask_vae_codec(stub: VaeCodecStub, seconds: float) -> vae_codec_pb2.VaeCodecServiceGetModelResponse:
    return await attempt(stub.GetModel, vae_codec_pb2.VaeCodecServiceGetModelRequest(), seconds)


def _codec_seconds(response: DecodeResponse | PixelsResponse) -> float:
    return response.compute_milliseconds / 1000


def _weights(spans: Sequence[Span]) -> text_encoder_pb2.PromptWeights:
    return text_encoder_pb2.PromptWeights(
        spans=[text_encoder_pb2.WeightedSpan(start=s.start, stop=s.stop, weight=s.weight) for s in spans]
    )
