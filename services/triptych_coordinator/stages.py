"""The three stages as the coordinator sees them: numpy arrays in and out, messages and errors in between."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from triptych import errors
from triptych.errors import TriptychError
from triptych.tensors import array_to_message, message_to_array
from triptych.v1 import denoiser_pb2, lora_pb2, tensor_pb2, text_encoder_pb2, vae_codec_pb2
from triptych_coordinator.calls import Patience, Stage
from triptych_coordinator.conditioning import ConditioningCache, EncodedPrompt
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.guidance import Branch
from triptych_coordinator.models import Models
from triptych_coordinator.prompt_weighting import Span, WeightedText
from triptych_coordinator.reuse import LayerReuse
from triptych_coordinator.solvers import Latents, Sigma
from triptych_coordinator.stubs import Stubs

Conditionings: TypeAlias = Mapping[bytes, text_encoder_pb2.Conditioning]

_MAX_KNOWN_DIGESTS = 10_000


class Stages:
    """The stages that serve one checkpoint."""

    def __init__(self, stubs: Stubs, contact: Patience, patience: Patience, cache: ConditioningCache) -> None:
        """`contact` is for the first question to a stage, `patience` for the work."""
        self._stubs = stubs
        self._contact = contact
        self._patience = patience
        self._cache = cache
        self._known_digests: set[bytes] = set()
        self._text_encoder = Stage("text encoder", stubs.text_encoder_address)
        self._denoiser = Stage("denoiser", stubs.denoiser_address)
        self._vae_codec = Stage("VAE codec", stubs.vae_codec_address)

    async def models(self, deadline: Deadline) -> Models:
        """What the stages serve now.

        Raises:
            TriptychError: UNAVAILABLE that names a stage which is not up.
        """
        text_encoder, denoiser, vae_codec = await asyncio.gather(
            self._text_encoder.call(
                self._stubs.text_encoder.GetModel,
                text_encoder_pb2.TextEncoderServiceGetModelRequest(),
                self._contact,
                deadline,
            ),
            self._denoiser.call(
                self._stubs.denoiser.GetModel,
                denoiser_pb2.DenoiserServiceGetModelRequest(),
                self._contact,
                deadline,
            ),
            self._vae_codec.call(
                self._stubs.vae_codec.GetModel,
                vae_codec_pb2.VaeCodecServiceGetModelRequest(),
                self._contact,
                deadline,
            ),
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
        for start in range(0, len(new), most):
            encoded |= await self._encode_new(new[start : start + most], fingerprint, deadline)
        return encoded

    async def _encode_new(
        self, prompts: Sequence[WeightedText], fingerprint: str, deadline: Deadline
    ) -> dict[WeightedText, EncodedPrompt]:
        request = text_encoder_pb2.TextEncoderServiceEncodeRequest(prompts=[text for text, _ in prompts])
        if any(spans for _, spans in prompts):
            request.weights.extend(_weights(spans) for _, spans in prompts)
        response = await self._text_encoder.call(
            self._stubs.text_encoder.Encode, request, self._patience, deadline
        )
        if not len(prompts) == len(response.conditionings) == len(response.truncated):
            raise _nonsense(
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

    async def predict(
        self, request: denoiser_pb2.PredictRequest, conditionings: Conditionings, deadline: Deadline
    ) -> denoiser_pb2.PredictResponse:
        """Calls Predict, and sends what conditioning the denoiser lacks."""
        await self._put({d for b in request.branches for d in b.conditioning_digests} - self._known_digests,
                        conditionings, deadline)  # fmt: skip
        uploads = 1 + len(conditionings) + self._patience.attempts
        for _ in range(uploads):
            try:
                return await self._denoiser.call(
                    self._stubs.denoiser.Predict, request, self._patience, deadline
                )
            except TriptychError as error:
                missing = errors.missing_digests(error)
                if missing is None:
                    raise
                lacking = error
            await self._put(set(missing), conditionings, deadline)
        raise lacking

    async def _put(self, digests: set[bytes], conditionings: Conditionings, deadline: Deadline) -> None:
        for digest in sorted(digests & conditionings.keys()):
            conditioning = conditionings[digest]
            request = denoiser_pb2.PutConditioningRequest(
                digest=digest, sequence=conditioning.sequence, pooled=conditioning.pooled
            )
            await self._denoiser.call(self._stubs.denoiser.PutConditioning, request, self._patience, deadline)
        if len(self._known_digests) > _MAX_KNOWN_DIGESTS:
            self._known_digests.clear()
        self._known_digests |= digests

    async def decode(self, latents: Latents, deadline: Deadline) -> tuple[NDArray[np.uint8], str]:
        """Pictures, uint8 [B, H, W, 3], of latents [B, C, h, w], and the fingerprint of who made them."""
        request = vae_codec_pb2.VaeCodecServiceDecodeRequest(latents=array_to_message(latents))
        response = await self._vae_codec.call(self._stubs.vae_codec.Decode, request, self._patience, deadline)
        pixels = _array(response.pixels, "pixels", "uint8", (len(latents), "height", "width", 3))
        return pixels, response.fingerprint

    async def encode_picture(
        self, pixels: NDArray[np.uint8], deadline: Deadline
    ) -> tuple[Latents, Latents, str]:
        """Mean and standard deviation, [1, C, h, w] each, of a picture's latents, and the fingerprint of who
        made them. `pixels` are sRGB, uint8 [height, width, 3].
        """
        request = vae_codec_pb2.VaeCodecServiceEncodeRequest(pixels=array_to_message(pixels[None]))
        response = await self._vae_codec.call(self._stubs.vae_codec.Encode, request, self._patience, deadline)
        shape = (1, "channels", "height", "width")
        mean = _array(response.mean, "mean", "float32", shape)
        std = _array(response.std, "std", "float32", mean.shape)
        return mean, std, response.fingerprint


@dataclass
class RequestDenoiser:
    """The denoiser for the samples of one request, with its LoRAs.

    It remembers how much was computed, and by whom.
    """

    stages: Stages
    conditionings: Conditionings
    max_samples: int
    max_branches: int
    deadline: Deadline
    loras: Sequence[lora_pb2.Lora] = ()
    rows: int = 0
    evaluations: int = 0
    fingerprints: set[str] = field(default_factory=set)

    async def predict(
        self, latents: Latents, sigma: Sigma, branches: Sequence[Branch], guidance: float | None
    ) -> NDArray[np.float32]:
        """As sampler.Denoiser."""
        nothing = [None] * len(branches)
        return (await self.predict_reusing(latents, sigma, branches, guidance, nothing))[0]

    async def predict_reusing(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        reuses: Sequence[LayerReuse | None],
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """As reuse.LayerReuser. What the denoiser does not take at once goes in several calls."""
        sigmas = np.broadcast_to(np.ravel(sigma), len(latents)).tolist()
        velocities = np.empty((len(branches), *latents.shape), np.float32)
        reused = np.zeros(velocities.shape[:2], np.bool_)
        max_samples = self._max_samples(reuses)
        for first in range(0, len(branches), self.max_branches):
            some = slice(first, first + self.max_branches)
            for start in range(0, len(latents), max_samples):
                part = slice(start, start + max_samples)
                messages = [
                    _branch_message(branch, reuse, part)
                    for branch, reuse in zip(branches[some], reuses[some], strict=True)
                ]
                velocities[some, part], reused[some, part] = await self._predict_part(
                    latents[part], sigmas[part], messages, guidance
                )
        self.evaluations += len(latents) if branches else 0
        self.rows += int((~reused).sum())
        return velocities, reused

    def _max_samples(self, reuses: Sequence[LayerReuse | None]) -> int:
        """Samples in a call: max_samples fill a message with as many latents as max_branches velocities."""
        if not any(reuse and reuse.earlier for reuse in reuses):
            return self.max_samples
        return max(1, self.max_samples * self.max_branches // (1 + self.max_branches))

    async def _predict_part(
        self,
        latents: Latents,
        sigmas: Sequence[float],
        branches: Sequence[denoiser_pb2.Branch],
        guidance: float | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        request = denoiser_pb2.PredictRequest(
            latents=array_to_message(latents),
            sigmas=sigmas,
            branches=branches,
            guidance_scales=[] if guidance is None else [guidance] * len(latents),
            loras=self.loras,
        )
        response = await self.stages.predict(request, self.conditionings, self.deadline)
        velocities = _array(response.velocities, "velocities", "float32", (len(branches), *latents.shape))
        if not np.isfinite(velocities).all():
            raise _nonsense("the denoiser sent velocities that are not finite")
        rows = len(branches) * len(latents)
        reused = list(response.reused) or [False] * rows
        if len(reused) != rows:
            raise _nonsense(f"the denoiser says of {len(reused)} rows, not of {rows}, what it reused")
        self.fingerprints.add(response.fingerprint)
        return velocities, np.array(reused, np.bool_).reshape(velocities.shape[:2])


def _branch_message(branch: Branch, reuse: LayerReuse | None, part: slice) -> denoiser_pb2.Branch:
    """A branch of some of the samples."""
    message = denoiser_pb2.Branch(
        conditioning_digests=branch.digests[part],
        skipped_layers=branch.skipped_layers,
        perturbed_layers=branch.perturbed_layers,
    )
    if reuse is not None:
        message.feature_reuse.threshold = reuse.threshold
        if earlier := reuse.earlier:
            message.feature_reuse.latents.CopyFrom(array_to_message(earlier.latents[part]))
            message.feature_reuse.sigmas.extend(earlier.sigmas[part].tolist())
            message.feature_reuse.guidance_scales.extend(earlier.guidance_scales[part])
    return message


def _weights(spans: Sequence[Span]) -> text_encoder_pb2.PromptWeights:
    return text_encoder_pb2.PromptWeights(
        spans=[text_encoder_pb2.WeightedSpan(start=s.start, stop=s.stop, weight=s.weight) for s in spans]
    )


def _array(message: tensor_pb2.Tensor, field: str, dtype: str, shape: Sequence[int | str]) -> NDArray[Any]:
    try:
        return message_to_array(message, field, dtypes=[dtype], shape=shape)
    except TriptychError as error:
        raise _nonsense(f"a stage's answer: {error.message}") from error


def _nonsense(message: str) -> TriptychError:
    return TriptychError(grpc.StatusCode.INTERNAL, message)
