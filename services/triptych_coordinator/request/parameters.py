"""A valid request, and what the served model and this server allow."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from triptych.v1 import tensor_pb2
from triptych_coordinator.request.edits import Edit, Variation
from triptych_coordinator.request.guidance_options import GuidanceOptions
from triptych_coordinator.request.prompt_weights import WeightedText, read_weighted
from triptych_coordinator.request.sampling_options import SamplingOptions
from triptych_coordinator.sampling.guidance import GuidanceInput, GuidanceSchedule

T = TypeVar("T")

MAX_NUM_INFERENCE_STEPS = 200
MAX_GUIDANCE_SCALE = 100.0


@dataclass(frozen=True)
class Limits:
    """What the served model and this server allow, and what a request gets that says nothing.

    Sizes in pixels.
    """

    model: str
    default_height: int
    default_width: int
    size_multiple: int
    max_size: int
    max_image_pixels: int
    max_request_pixels: int
    max_images: int
    max_prompt_bytes: int
    default_num_inference_steps: int
    default_guidance_scale: float
    latent_channels: int
    downscale: int
    previews: bool
    guidance: GuidanceInput
    num_layers: int = 0
    prompt_weighting: bool = False
    loras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lora:
    """A LoRA of the denoiser, by name, and how much of it."""

    name: str
    weight: float


@dataclass(frozen=True)
class Parameters:
    """A valid request. Pictures are numbered prompt by prompt; there is one seed per picture."""

    model: str
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    guidance_schedule: GuidanceSchedule
    num_images_per_prompt: int
    seeds: tuple[int, ...]
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    prompt_weighting: bool = False
    loras: tuple[Lora, ...] = ()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    edit: Edit | None = None
    noise: tensor_pb2.Tensor | None = None
    variation: Variation | None = None
    return_latents: bool = False
    preview_every: int = 0

    def guidance_scales(self) -> list[float]:
        """The guidance scale of each step."""
        return self.guidance_schedule.scales(self.num_inference_steps, self.guidance_scale)

    def per_image(self, per_prompt: Sequence[T]) -> list[T]:
        """Each prompt's value once for every picture of it."""
        return [value for value in per_prompt for _ in range(self.num_images_per_prompt)]

    def weighted(self, prompt: str) -> WeightedText:
        """A prompt of this request as the text encoder is given it."""
        return read_weighted(prompt) if self.prompt_weighting else WeightedText(prompt)

    def alone(self, image: int) -> "Parameters":
        """The request that gives picture number `image` alone."""
        variation = self.variation
        if variation is not None:
            variation = Variation((variation.seeds[image],), (variation.strengths[image],))
        return replace(
            self,
            prompts=(self.prompt(image),),
            negative_prompts=(self.negative_prompt(image),),
            guidance=self.guidance.alone(image // self.num_images_per_prompt),
            num_images_per_prompt=1,
            seeds=(self.seeds[image],),
            variation=variation,
            return_latents=False,
            preview_every=0,
        )

    def prompt(self, image: int) -> str:
        """The prompt of picture number `image`."""
        return self.prompts[image // self.num_images_per_prompt]

    def negative_prompt(self, image: int) -> str:
        """The negative prompt of picture number `image`."""
        return self.negative_prompts[image // self.num_images_per_prompt]
