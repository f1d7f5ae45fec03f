"""A valid request, and what the served model and this server allow."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray

from triptych.families.family import GuidanceInput
from triptych.families.reference_sizes import References, ReferenceSize
from triptych_coordinator.request.output_formats import PNG, OutputFormat
from triptych_coordinator.request.prompt_weights import WeightedText, read_weighted
from triptych_coordinator.sampling.guidance.layers import (
    LayerGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.guidance.methods import CLASSIFIER_FREE, GuidanceMethod
from triptych_coordinator.sampling.guidance.schedules import GuidanceSchedule
from triptych_coordinator.sampling.inpainting import NO_MARGINS, Margins
from triptych_coordinator.sampling.progressive_resolution import ProgressiveResolution
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse.step_reuse import StepReuse
from triptych_coordinator.sampling.sigma_schedules import SigmaSchedule
from triptych_coordinator.sampling.solvers.solution import Latents, Solver

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
    flow_map: bool = False
    default_guidance_method: GuidanceMethod = CLASSIFIER_FREE
    default_negative_prompt: str = ""
    num_layers: int = 0
    prompt_weighting: bool = False
    loras: tuple[str, ...] = ()
    references: References | None = None
    fills: bool = False
    mag_ratios: tuple[float, ...] = ()
    teacache_coefficients: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lora:
    """A LoRA of the denoiser, by name, and how much of it."""

    name: str
    weight: float


@dataclass(frozen=True)
class WeightedPrompt:
    """A prompt that is composed with others, and its weight."""

    prompt: str
    weight: Annotated[float, Range(-10, 10)] = 1.0


@dataclass(frozen=True)
class Composition:
    """Prompts composed with a prompt, and the weight of the prompt itself."""

    prompt_weight: Annotated[float, Range(-10, 10)] = 1.0
    prompts: tuple[WeightedPrompt, ...] = ()


@dataclass(frozen=True)
class Variation:
    """The second seed of each picture, and the strength of its noise."""

    seeds: tuple[int, ...]
    strengths: tuple[Annotated[float, Range(0, 1)], ...]


@dataclass(frozen=True)
class Reference:
    """A picture to attend to: the bytes of its file, and what size it is brought to.

    shown: the size in which text encoders are shown it, if they are.
    """

    file: bytes
    size: ReferenceSize
    shown: ReferenceSize | None = None


@dataclass(frozen=True)
class Edit:
    """What a request starts from, the bytes of a picture's file or clean latents, and how."""

    strength: float
    image: bytes = b""
    mask: bytes = b""
    margins: Margins = NO_MARGINS
    read_as_diffusers: bool = False
    preserve: bool = False
    clean: Latents | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Parameters:
    """A valid request, each field under its name in GenerationParameters.

    Pictures are numbered prompt by prompt; there is one seed per picture. Fields with a default are said of a
    request only where they differ from it; without a guidance method it is classifier-free. `edit` holds all
    that a request starts from, `noise` the latents that take the place of its seeds' first noise.
    """

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
    solver: Solver
    sigma_schedule: SigmaSchedule
    step_reuse: StepReuse
    loras: tuple[Lora, ...]
    guidance_method: GuidanceMethod | None = None
    guidance_rescale: Annotated[float, Range(0, 1)] = 0.0
    true_cfg_scale: Annotated[float, Range(0, MAX_GUIDANCE_SCALE)] = 1.0
    skip_layer_guidance: SkipLayerGuidance | None = None
    perturbed_attention_guidance: PerturbedAttentionGuidance | None = None
    progressive_resolution: ProgressiveResolution | None = None
    compositions: tuple[Composition, ...] = ()
    prompt_weighting: bool = False
    variation: Variation | None = None
    return_latents: bool = False
    preview_every: int = 0
    output_format: OutputFormat = PNG
    references: tuple[Reference, ...] = ()
    crop_to_reference: bool = False
    edit: Edit | None = None
    noise: NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns of a decoded picture that are the request's."""
        if not self.crop_to_reference:
            return slice(None), slice(None)
        left, top, right, bottom = self.references[0].size.box
        return slice(top, bottom), slice(left, right)

    def guidance_scales(self) -> list[float]:
        """The guidance scale of each step."""
        return self.guidance_schedule.over(self.num_inference_steps, self.guidance_scale)

    def branch_scales(self, takes: GuidanceInput) -> list[float]:
        """The scale of each step at which a model that takes guidance so has its branches joined.

        Up to 1 there is no guidance.
        """
        if takes is GuidanceInput.BRANCHES:
            return self.guidance_scales()
        return [self.true_cfg_scale] * self.num_inference_steps

    def guided(self, takes: GuidanceInput) -> bool:
        """Whether some step joins branches."""
        return any(scale > 1 for scale in self.branch_scales(takes))

    @property
    def layer_guidances(self) -> tuple[LayerGuidance, ...]:
        """Those by weakened models."""
        chosen = (self.skip_layer_guidance, self.perturbed_attention_guidance)
        return tuple(guidance for guidance in chosen if guidance is not None)

    def per_image(self, per_prompt: Sequence[T]) -> list[T]:
        """Each prompt's value once for every picture of it."""
        return [value for value in per_prompt for _ in range(self.num_images_per_prompt)]

    def weighted(self, prompt: str) -> WeightedText:
        """A prompt of this request as the text encoder is given it."""
        return read_weighted(prompt) if self.prompt_weighting else WeightedText(prompt)

    def composed_prompts(self) -> list[list[str]]:
        """The first additional text of every prompt, the second of every prompt, and so on."""
        texts = ([weighted.prompt for weighted in one.prompts] for one in self.compositions)
        return [list(row) for row in zip(*texts, strict=True)]

    def composition_weights(self) -> list[list[float]]:
        """The weight of every prompt, that of every prompt's first additional text, and so on."""
        rows = (
            (one.prompt_weight, *(weighted.weight for weighted in one.prompts)) for one in self.compositions
        )
        return [list(row) for row in zip(*rows, strict=True)]

    def alone(self, image: int) -> "Parameters":
        """The request that gives picture number `image` alone."""
        prompt, variation = image // self.num_images_per_prompt, self.variation
        if variation is not None:
            variation = Variation((variation.seeds[image],), (variation.strengths[image],))
        return replace(
            self,
            prompts=(self.prompt(image),),
            negative_prompts=(self.negative_prompt(image),),
            compositions=self.compositions[prompt : prompt + 1],
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
