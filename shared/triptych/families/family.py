"""What is known of a family of models beside what its checkpoints say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from triptych.families.layouts import Shapes, Table
from triptych.families.reference_sizes import References


class GuidanceInput(StrEnum):
    """How a model takes the guidance scale."""

    BRANCHES = "two branches, the negative prompt's and the prompt's, are joined with it"
    EMBEDDED = "it is an input of the model, which was distilled from two branches to one"
    NONE = "not at all: the model was distilled with guidance inside"


GridName: TypeAlias = Literal["training", "even", "even by torch"]
"""The noise levels of n steps before they are shifted: evenly from the largest to the smallest level of
training; 1, (n - 1) / n, ..., 1 / n; the same, rounded as torch.linspace rounds."""

MuName: TypeAlias = Literal["by tokens", "by tokens and steps"]
"""How a pipeline makes mu for a scheduler that shifts dynamically: by a line over a picture's tokens that the
scheduler's config gives, or by a fit over tokens and steps."""


GuidanceMethodName: TypeAlias = Literal["classifier_free", "norm_preserving"]
"""How a pipeline joins the velocities of two branches, as guidance.proto names it."""


@dataclass(frozen=True)
class Defaults:
    """How a model takes guidance, and what a request gets that says neither steps nor scale.

    mag_ratios: those of a request for MagCache that says none; () where none are known.
    teacache_coefficients: those of a request for TeaCache that says none; () where none are known.
    """

    guidance: GuidanceInput
    num_inference_steps: int
    guidance_scale: float
    mag_ratios: tuple[float, ...] = field(default=(), kw_only=True)
    teacache_coefficients: tuple[float, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, kw_only=True)
class LatentColours:
    """Colours from -1 to 1 of a VAE's latent pixel: rgb = latents . factors + bias, three numbers a channel.

    vae: the VAE's class in diffusers.
    patch: the VAE's latent pixels in each direction that are channels of one of the denoiser's.
    """

    vae: str
    rgb_factors: tuple[tuple[float, float, float], ...]
    rgb_bias: tuple[float, float, float]
    patch: int = 1

    @property
    def vae_config(self) -> Mapping[str, Any]:
        """What a VAE's config says of such latents, unless its weights do."""
        return {}


@dataclass(frozen=True, kw_only=True)
class LatentSpace(LatentColours):
    """The latents of a VAE with one shift and scale: the denoiser's are (z - shift) scale."""

    scaling_factor: float
    shift_factor: float

    @property
    def vae_config(self) -> Mapping[str, Any]:
        """See LatentColours."""
        return {"scaling_factor": self.scaling_factor, "shift_factor": self.shift_factor}


@dataclass(frozen=True, kw_only=True)
class NormalizedLatents(LatentColours):
    """The latents of a VAE with statistics of each channel: the denoiser's are (z - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def vae_config(self) -> Mapping[str, Any]:
        """See LatentColours."""
        return {"latents_mean": list(self.mean), "latents_std": list(self.std)}


@dataclass(frozen=True)
class OriginalFile:
    """A file with the names that the family's authors gave its tensors.

    mark: a tensor that no other family's transformer has.
    config: the config of diffusers' transformer, from shapes. Raises KeyError for a tensor that is missing.
    table: what the names of a transformer of such shapes and config give in diffusers.
    scheduler: the scheduler_config.json that a transformer of such shapes was published with; {} if shapes do
        not tell.
    text_encoders: what the names of text encoders begin with behind `text_encoders.`, where they are inside.
    vae_file: the name of the VAE's own file beside the transformer's; None where it is inside.
    """

    mark: str
    config: Callable[[Shapes], dict[str, Any]]
    table: Callable[[Shapes, Mapping[str, Any]], Table]
    scheduler: Callable[[Shapes], dict[str, Any]]
    text_encoders: Mapping[str, str]
    vae_file: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of models.

    pipeline: its class in model_index.json.
    transformer: the class of its transformer there.
    grid: the levels that its pipeline gives the scheduler.
    mu: how that pipeline shifts them.
    defaults: by whether the transformer's config has guidance_embeds; those that the family has.
    guidance_method: how the pipeline joins two branches.
    negative_prompt: what a request gets that names none.
    distilled: those of a model whose model_index.json has is_distilled.
    distilled_mu: the mu of a distilled model, whatever its picture, whose levels are not stretched to a last
        one; None for those of the others.
    latents: those of its published VAE.
    lora_names: what LoRA files call linears besides diffusers' names, of their weights' shapes by those.
    mark: a tensor that no other family has in diffusers.
    original: how its authors publish it.
    flow_map: whether its transformers are told the level that a step goes to.
    makes_its_scheduler: whether its pipelines make the scheduler, the published one, and do not name it.
    references: the pictures that it attends to, if it does.
    fills: whether a picture and a mask are its input: it makes anew what is masked.
    named: what the name of a repository or file has in it, if another family has the same transformer.
    distilling_loras: steps of the model without guidance that a LoRA makes of it, by what the LoRA's name has
        in it.
    distilled_steps: steps of models without guidance whose configs are those of the models that they were
        distilled from, by what the name of their repository or file has in it: nothing else tells them apart.
    """

    pipeline: str
    transformer: str
    grid: GridName
    defaults: Mapping[bool, Defaults]
    latents: LatentColours
    lora_names: Callable[[Shapes], Table]
    mark: str
    original: OriginalFile
    mu: MuName = "by tokens"
    guidance_method: GuidanceMethodName = "classifier_free"
    negative_prompt: str = ""
    distilled: Defaults | None = None
    distilled_mu: float | None = None
    flow_map: bool = False
    makes_its_scheduler: bool = False
    references: References | None = None
    fills: bool = False
    named: tuple[str, ...] = ()
    distilling_loras: Mapping[str, int] = field(default_factory=dict)
    distilled_steps: Mapping[str, int] = field(default_factory=dict)

    def steps_if_distilled(self, names: Iterable[str]) -> int | None:
        """The steps of a model that goes by these names, of which one has a distilled model's in it."""
        return steps_by_name(self.distilled_steps, names)

    def steps_with_loras(self, names: Iterable[str]) -> int | None:
        """The steps of the model that LoRAs of these names make, if one of them distils it."""
        return steps_by_name(self.distilling_loras, names)

    def has(self, config: Mapping[str, Any]) -> bool:
        """Whether a transformer of its class with such a config may be one of its."""
        guided, flow_map = (bool(config.get(key)) for key in ("guidance_embeds", "flow_map"))
        return guided in self.defaults and flow_map == self.flow_map

    def is_named(self, names: Iterable[str]) -> bool:
        """Whether a model that goes by these names has one of `named` in it."""
        names = list(names)
        return any(_in_names(known, names) for known in self.named)


def steps_by_name(steps: Mapping[str, int], names: Iterable[str]) -> int | None:
    """The steps of the first that is in one of the names, word by word."""
    names = list(names)
    return next((number for known, number in steps.items() if _in_names(known, names)), None)


def _in_names(known: str, names: Iterable[str]) -> bool:
    return any(f"-{_words(known)}-" in f"-{_words(name)}-" for name in names)


def _words(name: str) -> str:
    """A name in lower case with its words apart: "sd3.5_large_turbo-Q4_0" is "sd3-5-large-turbo-q4-0"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())
