"""How a checkpoint is sampled: what its configs say, and what is known of its family besides."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError
from triptych.families import FAMILIES, family_of
from triptych.families.family import Defaults, Family, GuidanceInput, steps_by_name
from triptych.families.reference_sizes import References
from triptych_coordinator.request.parameters import MAX_GUIDANCE_SCALE, MAX_NUM_INFERENCE_STEPS
from triptych_coordinator.sampling.guidance.methods import (
    CLASSIFIER_FREE,
    GUIDANCE_METHODS,
    GuidanceMethod,
)
from triptych_coordinator.sampling.sigmas import FixedMu, FlowSchedule, Grid
from triptych_coordinator.scheduler_config import flow_schedule

D = TypeVar("D", bound=Defaults)


@dataclass(frozen=True)
class Sampling(Defaults):
    """A checkpoint's noise levels, how it takes guidance and references, and what a request gets that says
    nothing.
    """

    schedule: FlowSchedule
    guidance_method: GuidanceMethod = CLASSIFIER_FREE
    negative_prompt: str = ""
    references: References | None = None
    fills: bool = False
    family: Family | None = None
    distilling_loras: Mapping[str, int] = field(default_factory=dict)
    """The checkpoint's own: steps without guidance, by what a LoRA's name has in it."""

    def with_loras(self, names: Iterable[str]) -> "Sampling":
        """The sampling of what LoRAs of these names make of the model: of few steps, or itself.

        The checkpoint's own LoRAs were distilled at its levels, those that are known of its family at theirs.
        """
        names = list(names)
        if (own := steps_by_name(self.distilling_loras, names)) is not None:
            return _of_few_steps(self, own)
        steps = self.family.steps_with_loras(names) if self.family else None
        if self.family is None or self.family.distilled_mu is None or steps is None:
            return self
        schedule = replace(self.schedule, shift=FixedMu(self.family.distilled_mu), terminal=None)
        return replace(_of_few_steps(self, steps), schedule=schedule)


def sampling_of(checkpoint: Checkpoint) -> Sampling:
    """Reads model_index.json, triptych.json and the configs of scheduler and transformer.

    Raises:
        StartError: the pipeline or the scheduler is not supported, or a file cannot be read.
    """
    name = str(checkpoint.index.get("_class_name"))
    family = family_of(name)
    config = checkpoint.config("transformer")
    if family is None or not family.has(config):
        supported = ", ".join(family.pipeline for family in FAMILIES)
        raise StartError(f"{checkpoint.path} is a {name}; supported are {supported}")
    distilled = family.distilled if checkpoint.index.get("is_distilled") is True else None
    defaults = distilled or family.defaults[bool(config.get("guidance_embeds"))]
    levels = _sample_sigmas(checkpoint)
    steps = len(levels) or family.steps_if_distilled(checkpoint.published_names)
    if steps is not None and not distilled:
        defaults = _of_few_steps(defaults, steps)
    defaults = _with_own_defaults(defaults, checkpoint)
    fixed_mu = None if distilled is None and steps is None else family.distilled_mu
    mu = family.mu if fixed_mu is None else fixed_mu
    made = family.makes_its_scheduler and not checkpoint.has("scheduler")
    scheduler = family.original.scheduler({}) if made else checkpoint.config("scheduler")
    schedule = flow_schedule(scheduler, Grid(family.grid), mu)
    if fixed_mu is not None:
        schedule = replace(schedule, terminal=None)
    return Sampling(
        **vars(defaults),
        schedule=replace(schedule, distilled=levels),
        guidance_method=GUIDANCE_METHODS[family.guidance_method](),
        negative_prompt=family.negative_prompt,
        references=family.references,
        fills=family.fills,
        family=family,
        distilling_loras=_distilling_loras(checkpoint),
    )


def _of_few_steps(defaults: D, steps: int) -> D:
    """Those of a model that was distilled to so many: of it nothing was measured that reuse needs."""
    return replace(
        defaults,
        num_inference_steps=steps,
        guidance_scale=1.0,
        mag_ratios=(),
        teacache_coefficients=(),
    )


def _sample_sigmas(checkpoint: Checkpoint) -> tuple[float, ...]:
    """The levels that a model was distilled to, by model_index.json; () for none.

    Raises StartError for what are no levels: they fall, from at most 1 to above 0.
    """
    named = checkpoint.index.get("sample_sigmas")
    if named is None:
        return ()
    numbers = isinstance(named, list) and all(type(level) in (int, float) for level in named)
    falling = numbers and all(before > after for before, after in pairwise([*named, 0.0]))
    if not falling or not 1 <= len(named) <= MAX_NUM_INFERENCE_STEPS or named[0] > 1:
        raise StartError(
            f"sample_sigmas of {checkpoint.path} must list at most {MAX_NUM_INFERENCE_STEPS} levels that "
            f"fall from at most 1 to above 0, not {json.dumps(named)}"
        )
    return tuple(map(float, named))


def _with_own_defaults(defaults: Defaults, checkpoint: Checkpoint) -> Defaults:
    """Reads a triptych.json, if there is one: default_num_inference_steps, default_guidance_scale and
    mag_ratios.

    A model that was distilled to few steps is used with other defaults than its pipeline's, and no file of
    diffusers' layout says so.
    """
    file, settings = checkpoint.own_defaults, checkpoint.own_settings()
    steps = settings.get("default_num_inference_steps", defaults.num_inference_steps)
    scale = settings.get("default_guidance_scale", defaults.guidance_scale)
    if not _is_number_of_steps(steps):
        raise StartError(
            f"{file}: default_num_inference_steps must be a whole number from 1 to "
            f"{MAX_NUM_INFERENCE_STEPS}, not {json.dumps(steps)}"
        )
    if type(scale) not in (int, float) or not 0 <= scale <= MAX_GUIDANCE_SCALE:
        raise StartError(
            f"{file}: default_guidance_scale must be a number from 0 to {MAX_GUIDANCE_SCALE:g}, "
            f"not {json.dumps(scale)}"
        )
    if defaults.guidance is GuidanceInput.NONE and scale > 1:
        raise StartError(
            f"{file}: default_guidance_scale must be 1 for a model without guidance, not {scale}"
        )
    ratios = settings.get("mag_ratios", list(defaults.mag_ratios))
    if not (
        isinstance(ratios, list) and len(ratios) <= MAX_NUM_INFERENCE_STEPS and all(map(_is_ratio, ratios))
    ):
        raise StartError(
            f"{file}: mag_ratios must list at most {MAX_NUM_INFERENCE_STEPS} numbers from 0.01 to 100, "
            f"not {json.dumps(ratios)}"
        )
    return replace(
        defaults,
        num_inference_steps=steps,
        guidance_scale=float(scale),
        mag_ratios=tuple(map(float, ratios)),
    )


def _distilling_loras(checkpoint: Checkpoint) -> Mapping[str, int]:
    """What a triptych.json says of LoRAs that distil the model to few steps. Raises StartError."""
    named = checkpoint.own_settings().get("distilling_loras", {})
    if not (isinstance(named, dict) and all(map(_is_number_of_steps, named.values()))):
        raise StartError(
            f"{checkpoint.own_defaults}: distilling_loras must give names of LoRAs their numbers of steps, "
            f"from 1 to {MAX_NUM_INFERENCE_STEPS}, not {json.dumps(named)}"
        )
    return named


def _is_number_of_steps(number: object) -> bool:
    return type(number) is int and 1 <= number <= MAX_NUM_INFERENCE_STEPS


def _is_ratio(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0.01 <= number <= 100
