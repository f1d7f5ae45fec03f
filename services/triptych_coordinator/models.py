"""What the stages serve: whether it fits together, and what it allows."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych import errors
from triptych.errors import StartError
from triptych.v1 import denoiser_pb2, text_encoder_pb2, vae_codec_pb2
from triptych_coordinator.requests import MAX_GUIDANCE_SCALE, MAX_NUM_INFERENCE_STEPS, Limits


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint is sampled with when a request does not say. diffusers' SD3 pipeline has the same."""

    num_inference_steps: int = 28
    guidance_scale: float = 7.0

    @classmethod
    def from_folder(cls, path: Path) -> "Defaults":
        """Reads a checkpoint's triptych.json, if any: default_num_inference_steps, default_guidance_scale.

        Raises:
            StartError: the file is no JSON object, or its values are out of range.
        """
        file = path / "triptych.json"
        if not file.exists():
            return cls()
        try:
            settings = dict(json.loads(file.read_text("utf-8")))
            steps = int(settings.get("default_num_inference_steps", cls.num_inference_steps))
            scale = float(settings.get("default_guidance_scale", cls.guidance_scale))
        except (ValueError, TypeError) as error:
            raise StartError(f"{file} cannot be read: {error}") from error
        if not 1 <= steps <= MAX_NUM_INFERENCE_STEPS:
            raise StartError(
                f"{file}: default_num_inference_steps must be 1 to {MAX_NUM_INFERENCE_STEPS}, not {steps}"
            )
        if not (math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE_SCALE):
            raise StartError(
                f"{file}: default_guidance_scale must be 0 to {MAX_GUIDANCE_SCALE:g}, not {scale}"
            )
        return cls(steps, scale)


@dataclass(frozen=True)
class Models:
    """The answers of the three stages to GetModel."""

    text_encoder: text_encoder_pb2.TextEncoderServiceGetModelResponse
    denoiser: denoiser_pb2.DenoiserServiceGetModelResponse
    vae_codec: vae_codec_pb2.VaeCodecServiceGetModelResponse

    def check_fit(self, name: str) -> None:
        """Checks that the stages serve the parts of one checkpoint, the one called `name`.

        Raises:
            TriptychError: FAILED_PRECONDITION that says all that does not fit.
        """
        misfits = list(self._misfits(name))
        if misfits:
            raise errors.failed_precondition("the stages do not fit together: " + "; ".join(misfits))

    def _misfits(self, name: str) -> Iterator[str]:
        text_encoder, denoiser, vae_codec = self.text_encoder, self.denoiser, self.vae_codec
        for stage, info in (
            ("text encoder", text_encoder.model),
            ("denoiser", denoiser.model),
            ("VAE codec", vae_codec.model),
        ):
            if info.name != name:
                yield f"the {stage} serves {info.name!r}, but the coordinator {name!r}"
        for field in ("joint_attention_dim", "pooled_projection_dim"):
            given, taken = getattr(text_encoder, field), getattr(denoiser, field)
            if given != taken:
                yield f"{field} is {given} in the text encoder and {taken} in the denoiser"
        if denoiser.latent_channels != vae_codec.latent_channels:
            yield (
                f"latent_channels is {denoiser.latent_channels} in the denoiser"
                f" and {vae_codec.latent_channels} in the VAE codec"
            )

    def limits(
        self, name: str, defaults: Defaults, max_images: int, max_request_pixels: int, previews: bool
    ) -> Limits:
        """What a request may ask for."""
        denoiser, downscale = self.denoiser, self.vae_codec.downscale
        return Limits(
            model=name,
            default_height=denoiser.default_latent_size * downscale,
            default_width=denoiser.default_latent_size * downscale,
            size_multiple=denoiser.latent_multiple * downscale,
            max_size=denoiser.max_latent_size
            // denoiser.latent_multiple
            * denoiser.latent_multiple
            * downscale,
            max_image_pixels=self.vae_codec.max_pixels,
            max_request_pixels=max_request_pixels,
            max_images=max_images,
            max_prompt_bytes=self.text_encoder.max_prompt_bytes,
            default_num_inference_steps=defaults.num_inference_steps,
            default_guidance_scale=defaults.guidance_scale,
            latent_channels=denoiser.latent_channels,
            downscale=downscale,
            previews=previews,
        )
