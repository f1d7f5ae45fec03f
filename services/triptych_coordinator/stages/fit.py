"""What the stages serve: whether it fits together, and what it allows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from triptych import errors
from triptych.families.family import GuidanceInput
from triptych.families.reference_sizes import References
from triptych.v1 import denoiser_pb2, model_pb2, text_encoder_pb2, vae_codec_pb2
from triptych_coordinator.request.parameters import Limits
from triptych_coordinator.sampling_config import Sampling
from triptych_coordinator.settings import CoordinatorLimits

BATCH_INVARIANT = "batch-invariant"


def serves(model: model_pb2.ModelInfo, name: str, revision: str) -> bool:
    """Whether it is of the checkpoint with that name and, where both are known, that commit on the hub."""
    return model.name == name and revision in ("", model.revision or revision)


@dataclass(frozen=True)
class Models:
    """The answers of the three stages to GetModel."""

    text_encoder: text_encoder_pb2.TextEncoderServiceGetModelResponse
    denoiser: denoiser_pb2.DenoiserServiceGetModelResponse
    vae_codec: vae_codec_pb2.VaeCodecServiceGetModelResponse

    @property
    def determinism(self) -> str:
        """What the stages together promise of a picture's bits."""
        stages = (self.text_encoder, self.denoiser, self.vae_codec)
        promised = all(stage.model.determinism == BATCH_INVARIANT for stage in stages)
        return BATCH_INVARIANT if promised else "fast"

    def fits(self, name: str, revision: str, guidance: GuidanceInput, fills: bool = False) -> bool:
        """Whether check_fit has nothing against it."""
        return not any(self._misfits(name, revision, guidance, fills))

    def check_fit(self, name: str, revision: str, guidance: GuidanceInput, fills: bool = False) -> None:
        """Checks that the stages serve the parts of one checkpoint, the one called `name`.

        revision: the coordinator's commit of it on the hub. Stages may not have others; whoever serves a
            folder has none, "".
        guidance: how the coordinator's checkpoint takes the guidance scale.
        fills: whether it fills what a mask leaves of a picture.

        Raises:
            TriptychError: FAILED_PRECONDITION that says all that does not fit.
        """
        misfits = list(self._misfits(name, revision, guidance, fills))
        if misfits:
            raise errors.failed_precondition("the stages do not fit together: " + "; ".join(misfits))

    def _misfits(self, name: str, revision: str, guidance: GuidanceInput, fills: bool) -> Iterator[str]:
        text_encoder, denoiser, vae_codec = self.text_encoder, self.denoiser, self.vae_codec
        stages = {
            "text encoder": text_encoder.model,
            "denoiser": denoiser.model,
            "VAE codec": vae_codec.model,
        }
        for stage, info in stages.items():
            if info.name != name:
                yield f"the {stage} serves {info.name!r}, but the coordinator {name!r}"
        revisions = {"coordinator": revision} | {stage: info.revision for stage, info in stages.items()}
        revisions = {service: commit for service, commit in revisions.items() if commit}
        if len(set(revisions.values())) > 1:
            yield "revisions differ: " + ", ".join(f"{commit} in the {s}" for s, commit in revisions.items())
        for field in ("joint_attention_dim", "pooled_projection_dim"):
            given, taken = getattr(text_encoder, field), getattr(denoiser, field)
            if given != taken:
                yield f"{field} is {given} in the text encoder and {taken} in the denoiser"
        if denoiser.guidance_embedded != (guidance is GuidanceInput.EMBEDDED):
            takes = "takes" if denoiser.guidance_embedded else "does not take"
            yield f"the denoiser {takes} the guidance scale as an input, unlike the coordinator's checkpoint"
        channels = vae_codec.latent_channels + vae_codec.downscale**2 if fills else 0
        if (denoiser.reference_channels if denoiser.reference_same_size else 0) != channels:
            takes = "takes" if denoiser.reference_same_size else "does not take"
            yield f"the denoiser {takes} a masked picture as an input, unlike the coordinator's checkpoint"
        if denoiser.latent_channels != vae_codec.latent_channels:
            yield (
                f"latent_channels is {denoiser.latent_channels} in the denoiser"
                f" and {vae_codec.latent_channels} in the VAE codec"
            )

    def images_per_decode(self, shape: Sequence[int]) -> int:
        """How many images with latents of that shape, [..., h, w], the VAE codec takes in one call."""
        return max(1, self.vae_codec.max_pixels // self.pixels(shape[-2:]))

    def pixels(self, shape: Sequence[int]) -> int:
        """How many pixels the pictures of latents with that shape, [h, w] or [images, h, w], have."""
        return math.prod(shape) * self.vae_codec.downscale**2

    @property
    def pixel_channels(self) -> int:
        """Of a picture: 3, or 4 with an alpha channel."""
        return self.vae_codec.pixel_channels or 3  # 0: it does not know the field yet

    def image_tokens(self, height: int, width: int) -> int:
        """How many tokens the denoiser makes of a picture of that size in pixels."""
        size = self.denoiser.token_size or self.denoiser.latent_multiple  # 0: it does not know the field yet
        token = size * self.vae_codec.downscale
        return (height // token) * (width // token)

    def _references(self, sampling: Sampling) -> References | None:
        """The pictures that a model attends to, if all stages that have to do with them take some."""
        references, most = sampling.references, self.denoiser.max_references
        if references is not None and references.shown is not None:
            most = min(most, self.text_encoder.max_images)
        if references is None or not most:
            return None
        return replace(references, most=min(most, references.most))

    def limits(self, name: str, sampling: Sampling, server: CoordinatorLimits, previews: bool) -> Limits:
        """What a request may ask for."""
        denoiser, downscale = self.denoiser, self.vae_codec.downscale
        size_multiple = denoiser.latent_multiple * downscale
        return Limits(
            model=name,
            default_height=denoiser.default_latent_size * downscale,
            default_width=denoiser.default_latent_size * downscale,
            size_multiple=size_multiple,
            max_size=denoiser.max_latent_size * downscale // size_multiple * size_multiple,
            # With a mask a message has 4 bytes a pixel instead of 3.
            max_image_pixels=self.vae_codec.max_pixels * (3 if sampling.fills else 4) // 4,
            fills=sampling.fills,
            max_request_pixels=server.max_request_pixels,
            max_images=server.max_images,
            max_prompt_bytes=self.text_encoder.max_prompt_bytes,
            default_num_inference_steps=sampling.num_inference_steps,
            default_guidance_scale=sampling.guidance_scale,
            guidance=sampling.guidance,
            flow_map=denoiser.takes_target_sigma,
            default_guidance_method=sampling.guidance_method,
            default_negative_prompt=sampling.negative_prompt,
            num_layers=denoiser.num_layers,
            prompt_weighting=self.text_encoder.weighting,
            loras=tuple(denoiser.loras),
            references=self._references(sampling),
            latent_channels=denoiser.latent_channels,
            downscale=downscale,
            previews=previews,
            mag_ratios=sampling.mag_ratios,
            teacache_coefficients=sampling.teacache_coefficients,
        )
