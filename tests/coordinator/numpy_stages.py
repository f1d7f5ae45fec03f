"""The three stages as small numpy functions behind the real contract, in this process or one of their own."""

import asyncio
import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.digests import conditioning_digest, reference_digest
from triptych.errors import TriptychError, invalid_argument, missing_conditioning
from triptych.serving.server import Server, Service
from triptych.serving.settings import ServerSettings
from triptych.tensors import array_to_message, message_to_array
from triptych.v1 import denoiser_pb2, model_pb2, text_encoder_pb2, vae_codec_pb2
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceServicer, add_DenoiserServiceServicer_to_server
from triptych.v1.text_encoder_pb2_grpc import (
    TextEncoderServiceServicer,
    add_TextEncoderServiceServicer_to_server,
)
from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceServicer, add_VaeCodecServiceServicer_to_server

MODEL = "numpy-model"
CHANNELS, DOWNSCALE, WIDTH, LAYERS = 4, 8, 6, 4
DEFAULT_SIZE, MAX_SAMPLES, MAX_BRANCHES = 8, 3, 2


def model_info(stage: str, name: str = MODEL, fingerprint: str | None = None) -> model_pb2.ModelInfo:
    return model_pb2.ModelInfo(
        name=name, family=stage, fingerprint=fingerprint or f"{stage}-fingerprint", dtype="float32"
    )


def velocity(
    latents: NDArray[np.float32],
    sigma: float,
    pooled: NDArray[np.float32],
    references: Sequence[NDArray[np.float32]] = (),
) -> NDArray[np.float32]:
    """A velocity that depends on all its arguments, the same for a sample whatever its neighbours are."""
    seen = sum((i + 1) * each.mean(dtype=np.float32) for i, each in enumerate(references))
    return latents * np.float32(0.3) + np.float32(sigma) - pooled.mean(dtype=np.float32) + np.float32(seen)


def weakened(branch: denoiser_pb2.Branch) -> np.float32:
    """What a branch's skipped and perturbed layers leave of a velocity."""
    skipped, perturbed = (sum(1 + layer for layer in layers) for layers in
                          (branch.skipped_layers, branch.perturbed_layers))  # fmt: skip
    return np.float32(1 / (1 + 0.1 * skipped + 0.01 * perturbed))


def sums_of(branch: denoiser_pb2.Branch, latents: NDArray[np.float32]) -> list[float]:
    """What an input_change adds up to, of the latents themselves, where it is below the threshold; else 0."""
    change = branch.feature_reuse.input_change
    if not branch.feature_reuse.HasField("input_change"):
        return [0.0] * len(latents)
    moved = np.abs(latents - message_to_array(change.latents, "latents")).mean(axis=(1, 2, 3))
    assert len(change.sigmas) == len(latents)
    added = np.array(change.sums) + np.polyval(np.array(change.coefficients), moved)
    return np.where(added < branch.feature_reuse.threshold, added, 0.0).tolist()  # type: ignore[no-any-return]


def reuses(branch: denoiser_pb2.Branch, latents: NDArray[np.float32]) -> list[bool]:
    """Which samples have moved from their references by at most the threshold, in the mean."""
    reuse = branch.feature_reuse
    if not reuse.HasField("latents"):
        return [False] * len(latents)
    if reuse.HasField("input_change"):
        return [added > 0 for added in sums_of(branch, latents)]
    moved = np.abs(latents - message_to_array(reuse.latents, "latents")).mean(axis=(1, 2, 3))
    assert len(reuse.sigmas) == len(latents)
    return [reuse.all_layers or bool(change <= reuse.threshold) for change in moved]


class TextEncoder(TextEncoderServiceServicer):
    """Random vectors from the prompt's hash; words past the tenth are cut off."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.scopes: list[bytes] = []
        self.failures: list[Exception] = []
        self.loras: list[str] = []
        self.lora_calls: list[dict[str, float]] = []
        self.name = MODEL
        self.pooled_projection_dim = WIDTH
        self.max_images = 0
        self.shown: list[tuple[tuple[int, ...], ...]] = []

    async def Encode(self, request: Any, context: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        self.encoded += request.prompts
        self.scopes.append(request.cache_scope)
        pictures = [message_to_array(image, "images") for image in request.images]
        self.shown.append(tuple(picture.shape for picture in pictures))
        seen = "".join(f"\0{picture.mean():.6g}" for picture in pictures)
        self.lora_calls.append({lora.name: lora.weight for lora in request.loras})
        with_loras = "".join(f" with {lora.name}" for lora in request.loras)
        weights = request.weights or [text_encoder_pb2.PromptWeights()] * len(request.prompts)
        weighted = zip(request.prompts, weights, strict=True)
        return text_encoder_pb2.TextEncoderServiceEncodeResponse(
            conditionings=[
                self.conditioning(prompt + with_loras + seen, spans.spans, range(len(pictures)))
                for prompt, spans in weighted
            ],
            truncated=[" ".join(prompt.split()[10:]) for prompt in request.prompts],
            fingerprint=f"text-encoder-fingerprint{with_loras}",
            warnings=[f"half of {lora.name}" for lora in request.loras],
        )

    def conditioning(
        self,
        prompt: str,
        spans: Iterable[text_encoder_pb2.WeightedSpan] = (),
        places: Sequence[int] = (),
    ) -> text_encoder_pb2.Conditioning:
        said = prompt + "".join(f"\0{prompt[s.start : s.stop]}\0{s.weight:.6g}" for s in spans)
        rng = np.random.default_rng(list(hashlib.sha256(said.encode()).digest()))
        sequence = array_to_message(rng.standard_normal((3, WIDTH), np.float32))
        pooled = array_to_message(rng.standard_normal(WIDTH, np.float32))
        digest = conditioning_digest(sequence, pooled, places)
        return text_encoder_pb2.Conditioning(
            digest=digest, sequence=sequence, pooled=pooled, reference_positions=places
        )

    async def GetModel(self, request: Any, context: Any) -> Any:
        return text_encoder_pb2.TextEncoderServiceGetModelResponse(
            model=model_info("text-encoder", self.name),
            joint_attention_dim=WIDTH,
            pooled_projection_dim=self.pooled_projection_dim,
            max_prompts=2,
            max_prompt_bytes=1000,
            tokens=3,
            weighting=True,
            loras=self.loras,
            max_images=self.max_images,
            image_multiple=8,
            max_image_pixels=1 << 21,
        )


class Denoiser(DenoiserServiceServicer):
    """velocity() for every row, while it is `open`. `failures` are raised by the next calls, one each."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.name, self.fingerprint = MODEL, "denoiser-fingerprint"
        self.open = asyncio.Event()
        self.open.set()
        self.failures: list[TriptychError] = []
        self.pooled: dict[bytes, NDArray[np.float32]] = {}
        self.predictions = 0
        self.rows = 0
        self.branches: list[int] = []
        self.uploads = 0
        self.guidance_embedded = False
        self.guidance_scales: list[list[float]] = []
        self.loras: list[dict[str, float]] = []
        self.earlier: list[list[denoiser_pb2.FeatureReuse]] = []
        self.pictures: dict[bytes, NDArray[np.float32]] = {}
        self.max_references = 0
        self.places: dict[bytes, int] = {}
        self.reference_same_size = False
        self.takes_target_sigma = False
        self.target_sigmas: list[list[float]] = []
        self.queue_milliseconds = self.compute_milliseconds = 0.0

    async def Predict(self, request: Any, context: Any) -> Any:
        self.predictions += 1
        self.loras.append({lora.name: lora.weight for lora in request.loras})
        await self.open.wait()
        await asyncio.sleep(self.seconds)
        if self.failures:
            raise self.failures.pop(0)
        wanted = [digest for branch in request.branches for digest in branch.conditioning_digests]
        seen = [digest for branch in request.branches for one in branch.references for digest in one.digests]
        missing = [digest for digest in (*wanted, *seen) if digest not in self.pooled | self.pictures]
        if missing:
            raise missing_conditioning(missing)
        self.guidance_scales.append(list(request.guidance_scales))
        self.target_sigmas.append(list(request.target_sigmas))
        latents = message_to_array(request.latents, "latents")
        if len(latents) > MAX_SAMPLES or not 1 <= len(request.branches) <= MAX_BRANCHES:
            raise invalid_argument(("latents", "at most 3 samples, 1 or 2 branches"))
        sent = 1 + sum(branch.feature_reuse.HasField("latents") for branch in request.branches)
        in_message = latents.size * max(sent, len(request.branches))
        alone = len(latents) == len(request.branches) == 1
        if in_message > MAX_SAMPLES * MAX_BRANCHES * CHANNELS * DEFAULT_SIZE**2 and not alone:
            raise invalid_argument(("latents", "fit into no message"))
        reused = [reuses(branch, latents) for branch in request.branches]
        velocities = [
            [
                velocity(*row) * weakened(branch) * np.float32(0.9 if again else 1)
                for *row, again in zip(
                    *(latents, request.sigmas, self._branch(branch), self._references(branch), rows),
                    strict=True,
                )
            ]
            for branch, rows in zip(request.branches, reused, strict=True)
        ]
        self.branches.append(len(request.branches))
        self.rows += len(wanted) - sum(map(sum, reused))
        self.earlier.append([branch.feature_reuse for branch in request.branches])
        return denoiser_pb2.PredictResponse(
            velocities=array_to_message(np.array(velocities, np.float32)),
            fingerprint=self.fingerprint,
            reused=[again for rows in reused for again in rows],
            sums=[added for branch in request.branches for added in sums_of(branch, latents)],
            queue_milliseconds=self.queue_milliseconds,
            compute_milliseconds=self.compute_milliseconds,
            warnings=[f"a third of {lora.name}" for lora in request.loras],
            text_encoder_loras=[lora.name for lora in request.loras if lora.name == "ink"],
        )

    def _branch(self, branch: denoiser_pb2.Branch) -> list[NDArray[np.float32]]:
        return [self.pooled[digest] for digest in branch.conditioning_digests]

    def _references(self, branch: denoiser_pb2.Branch) -> list[list[NDArray[np.float32]]]:
        listed = branch.references or [denoiser_pb2.ReferenceList()] * len(branch.conditioning_digests)
        return [[self.pictures[digest] for digest in one.digests] for one in listed]

    async def PutConditioning(self, request: Any, context: Any) -> Any:
        self.uploads += 1
        if request.HasField("reference"):
            assert request.digest == reference_digest(request.reference)
            self.pictures[request.digest] = message_to_array(request.reference, "reference")
            return denoiser_pb2.PutConditioningResponse()
        places = list(request.reference_positions)
        assert request.digest == conditioning_digest(request.sequence, request.pooled, places)
        self.places[request.digest] = len(places)
        self.pooled[request.digest] = message_to_array(request.pooled, "pooled")
        return denoiser_pb2.PutConditioningResponse()

    async def GetModel(self, request: Any, context: Any) -> Any:
        return denoiser_pb2.DenoiserServiceGetModelResponse(
            model=model_info("denoiser", self.name, self.fingerprint),
            latent_channels=CHANNELS,
            latent_multiple=2,
            max_latent_size=32,
            default_latent_size=DEFAULT_SIZE,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            max_samples=MAX_SAMPLES,
            max_branches=MAX_BRANCHES,
            num_layers=LAYERS,
            guidance_embedded=self.guidance_embedded,
            max_references=self.max_references,
            reference_channels=CHANNELS,
            reference_same_size=self.reference_same_size,
            takes_target_sigma=self.takes_target_sigma,
            loras=["ink", "oil paint"],
        )


class VaeCodec(VaeCodecServiceServicer):
    """Each latent pixel becomes a square of one colour, and the other way round, known to a hundredth."""

    def __init__(self) -> None:
        self.decoded: list[NDArray[np.float32]] = []
        self.encodings = 0
        self.pixel_channels = 3

    async def Decode(self, request: Any, context: Any) -> Any:
        latents = message_to_array(request.latents, "latents")
        colours = np.clip(latents[:, :3] * 40 + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        self.decoded.append(latents)
        return vae_codec_pb2.VaeCodecServiceDecodeResponse(
            pixels=array_to_message(colours.repeat(DOWNSCALE, 1).repeat(DOWNSCALE, 2)),
            fingerprint="vae-codec-fingerprint",
        )

    async def Encode(self, request: Any, context: Any) -> Any:
        self.encodings += 1
        pixels = message_to_array(request.pixels, "pixels")
        images, height, width, _ = pixels.shape
        grid = (images, height // DOWNSCALE, DOWNSCALE, width // DOWNSCALE, DOWNSCALE, 3)
        colours = pixels.reshape(grid).mean((2, 4), np.float32).transpose(0, 3, 1, 2)
        mean = np.concatenate([(colours - 128) / 40, np.zeros_like(colours[:, :1])], axis=1)
        return vae_codec_pb2.VaeCodecServiceEncodeResponse(
            mean=array_to_message(mean.astype(np.float32)),
            std=array_to_message(np.full_like(mean, 0.01, np.float32)),
            fingerprint="vae-codec-fingerprint",
        )

    async def GetModel(self, request: Any, context: Any) -> Any:
        return vae_codec_pb2.VaeCodecServiceGetModelResponse(
            model=model_info("vae-codec"),
            latent_channels=CHANNELS,
            downscale=DOWNSCALE,
            max_pixels=20_000,
            pixel_channels=self.pixel_channels,
        )


_ADD: dict[str, Callable[..., None]] = {
    "TextEncoder": add_TextEncoderServiceServicer_to_server,
    "Denoiser": add_DenoiserServiceServicer_to_server,
    "VaeCodec": add_VaeCodecServiceServicer_to_server,
}


async def serve(servicer: TextEncoder | Denoiser | VaeCodec, address: str, **tls: Any) -> Server:
    """Starts a stage; it stops at once when it is told to."""
    kind = type(servicer).__name__
    service = Service(f"triptych.v1.{kind}Service", partial(_ADD[kind], servicer))
    server = Server([service], ServerSettings(listen=address, drain_seconds=0, grace_seconds=0, **tls))
    await server.start()
    return server


async def serve_denoiser_for_ever(address: str, seconds: str) -> None:
    server = await serve(Denoiser(float(seconds)), address)  # a server that nobody holds stops
    await asyncio.Event().wait()
    await server.stop()


if __name__ == "__main__":
    asyncio.run(serve_denoiser_for_ever(*sys.argv[1:]))
