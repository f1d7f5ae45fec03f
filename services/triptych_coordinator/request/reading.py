"""From the wire's GenerationParameters to checked ones with every default filled in."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from triptych import errors
from triptych.families.family import GuidanceInput
from triptych.loras import MAX_LORAS, lora_violations, unknown_lora, weight_of
from triptych.v1 import guidance_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request import edits
from triptych_coordinator.request.checks import check_together
from triptych_coordinator.request.choices import Wrong, name_of, number, read, read_choice, shortest_decimal
from triptych_coordinator.request.output_formats import PNG, OutputFormat
from triptych_coordinator.request.parameters import (
    MAX_GUIDANCE_SCALE,
    MAX_NUM_INFERENCE_STEPS,
    Composition,
    Limits,
    Lora,
    Parameters,
    Reference,
)
from triptych_coordinator.request.prompt_weights import read_weighted
from triptych_coordinator.request.references import read_references
from triptych_coordinator.sampling.guidance.layers import (
    LayerGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.guidance.methods import (
    CLASSIFIER_FREE,
    GuidanceMethod,
    ZeroStarGuidance,
)
from triptych_coordinator.sampling.guidance.schedules import (
    ConstantGuidance,
    ExplicitGuidance,
    GuidanceSchedule,
)
from triptych_coordinator.sampling.progressive_resolution import ProgressiveResolution
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse.features import MagCache
from triptych_coordinator.sampling.reuse.input_changes import IDENTITY, TeaCache
from triptych_coordinator.sampling.reuse.step_reuse import NoReuse, StepReuse
from triptych_coordinator.sampling.sigma_schedules import CheckpointSigmas, LinearSigmas, SigmaSchedule
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.sampling.solvers.runge_kutta import EulerSolver
from triptych_coordinator.sampling.solvers.solution import Solver

MAX_ADDITIONAL_PROMPTS = 8
_SHOWN = 200  # characters of a name

L = TypeVar("L", bound=LayerGuidance)


def parameters_from_message(message: GenerationParameters, limits: Limits) -> Parameters:
    """Checks a request and fills in its defaults.

    Raises:
        TriptychError: NOT_FOUND for another model or an unknown LoRA; INVALID_ARGUMENT that names every wrong
            field, the first eight of them.
    """
    if message.model and message.model != limits.model:
        raise errors.not_found(
            f"the model {message.model[:_SHOWN]!r} is not served here; this server has {limits.model!r}"
        )
    wrong = Wrong()
    parameters = _Given(message, limits, wrong).parameters()
    if not wrong:
        check_together(parameters, limits, wrong)
        parameters = edits.with_latents(parameters, message, limits, wrong)
    if wrong:
        raise errors.invalid_argument(*wrong.items())
    for lora in parameters.loras:
        if lora.name not in limits.loras:
            raise unknown_lora(lora.name, limits.loras)
    return parameters


@dataclass(frozen=True)
class _Given:
    """The fields of a request one by one; `wrong` gets what is wrong: a field's path, what it must be."""

    message: GenerationParameters
    limits: Limits
    wrong: Wrong

    def parameters(self) -> Parameters:
        """All of them, checked one by one."""
        references = read_references(self.message, self.limits, self.wrong)
        size = edits.own_size(self.message, self.limits, self.wrong, references)
        seeds = self.seeds()
        solver: Solver = self.solver()
        return Parameters(
            model=self.limits.model,
            prompts=self.prompts(),
            negative_prompts=self.negative_prompts(),
            height=(height := self.size("height", size.height)),
            width=(width := self.size("width", size.width)),
            num_inference_steps=(steps := self.num_inference_steps()),
            guidance_scale=self.guidance_scale(),
            guidance_schedule=self.guidance_schedule(steps),
            num_images_per_prompt=self.given("num_images_per_prompt", 1),
            seeds=seeds,
            solver=solver,
            sigma_schedule=self.sigma_schedule(solver),
            step_reuse=self.step_reuse(solver),
            loras=self.loras(),
            guidance_method=self.guidance_method(steps),
            guidance_rescale=number(
                self.message.guidance_rescale, "guidance_rescale", Range(0, 1), self.wrong
            ),
            true_cfg_scale=self.true_cfg_scale(),
            skip_layer_guidance=self.layer_guidance("skip_layer_guidance", SkipLayerGuidance),
            perturbed_attention_guidance=self.layer_guidance(
                "perturbed_attention_guidance", PerturbedAttentionGuidance
            ),
            progressive_resolution=self.progressive_resolution(),
            compositions=self.compositions(),
            prompt_weighting=self.prompt_weighting(),
            variation=edits.read_variation(self.message, len(seeds), self.wrong),
            return_latents=self.message.return_latents,
            preview_every=self.preview_every(),
            output_format=self.output_format(),
            references=references,
            crop_to_reference=self.crop_to_reference(references, width, height),
            edit=edits.read_edit(self.message, self.wrong, self.limits.fills),
        )

    def given(self, field: str, default: int) -> int:
        """A number that the request says, or its default."""
        given = self.message.HasField(field)  # type: ignore[arg-type]
        return int(getattr(self.message, field)) if given else default

    def prompts(self) -> tuple[str, ...]:
        prompts = tuple(self.message.prompts)
        if not prompts:
            self.wrong["prompts"] = "must hold at least one prompt"
        if len(prompts) <= self.limits.max_images:  # else `seeds` says so
            for i, prompt in enumerate(prompts):
                self._check_prompt(f"prompts[{i}]", prompt)
        return prompts

    def negative_prompts(self) -> tuple[str, ...]:
        given, count = tuple(self.message.negative_prompts), len(self.message.prompts)
        if len(given) not in (0, 1, count):
            self.wrong["negative_prompts"] = (
                f"must be none, one, or one per prompt ({count}), not {len(given)}"
            )
            return given
        if len(given) <= self.limits.max_images:
            for i, prompt in enumerate(given):
                self._check_text(f"negative_prompts[{i}]", prompt)
        return given if len(given) == count else (given or (self.limits.default_negative_prompt,)) * count

    def size(self, field: str, default: int) -> int:
        """The size that is given, or `default`, which an input picture or latents may have decided."""
        size, multiple, largest = self.given(field, default), self.limits.size_multiple, self.limits.max_size
        below = min(max(size // multiple * multiple, multiple), largest)
        nearest = sorted({below, min(below + multiple, largest)} if multiple < size < largest else {below})
        if size != below:
            allowed = f"must be a multiple of {multiple} from {multiple} to {largest} pixels, not {size}"
            self.wrong[field] = f"{allowed}; nearest: {' or '.join(map(str, nearest))}"
        return size

    def crop_to_reference(self, references: Sequence[Reference], width: int, height: int) -> bool:
        """Whether pictures are cut to what their only reference, which was filled up, fills of them."""
        alone = references[0].size if len(references) == 1 and references[0].size.is_padded else None
        if not self.message.HasField("crop_to_reference"):
            decided = (self.message.HasField(field) for field in ("width", "height", "image", "latents"))
            return alone is not None and not any(decided)
        if self.message.crop_to_reference and (alone is None or alone.kept != (width, height)):
            self.wrong["crop_to_reference"] = (
                "needs one reference that is filled up, and pictures as large as that is then"
                + ("" if alone is None else f": {alone.kept[0]} x {alone.kept[1]}")
            )
        return self.message.crop_to_reference

    def num_inference_steps(self) -> int:
        listed = self.explicit_steps()
        default = self.limits.default_num_inference_steps if listed is None else listed
        steps = self.given("num_inference_steps", default)
        if listed is not None and not 1 <= listed <= MAX_NUM_INFERENCE_STEPS:
            self.wrong["sigma_schedule.explicit.sigmas"] = (
                f"must make 1 to {MAX_NUM_INFERENCE_STEPS} steps, not {listed}"
            )
        elif listed not in (None, steps):
            self.wrong["num_inference_steps"] = (
                f"must be left out or {listed}, the steps of sigma_schedule.explicit, not {steps}"
            )
        elif not 1 <= steps <= MAX_NUM_INFERENCE_STEPS:
            self.wrong["num_inference_steps"] = f"must be 1 to {MAX_NUM_INFERENCE_STEPS}, not {steps}"
        return steps

    def explicit_steps(self) -> int | None:
        """The number of steps that an explicit list of sigmas makes; None if there is none."""
        if not self.message.sigma_schedule.HasField("explicit"):
            return None
        sigmas = self.message.sigma_schedule.explicit.sigmas
        return len(sigmas) - (1 if sigmas and sigmas[-1] == 0 else 0)

    def guidance_scale(self) -> float:
        scale = self.limits.default_guidance_scale
        if self.message.HasField("guidance_scale"):
            allowed = Range(0, MAX_GUIDANCE_SCALE)
            scale = number(self.message.guidance_scale, "guidance_scale", allowed, self.wrong)
        constant = self.message.guidance_schedule.WhichOneof("schedule") in (None, "constant")
        if self.limits.guidance is GuidanceInput.EMBEDDED or not constant:
            return scale
        return max(scale, 1.0)  # what is done with less, so the answer says so

    def true_cfg_scale(self) -> float:
        if not self.message.HasField("true_cfg_scale"):
            return 1.0
        allowed = Range(0, MAX_GUIDANCE_SCALE)
        scale = max(number(self.message.true_cfg_scale, "true_cfg_scale", allowed, self.wrong), 1.0)
        if scale > 1 and self.limits.guidance is GuidanceInput.BRANCHES:
            self.wrong["true_cfg_scale"] = (
                "must be left out: this model's guidance_scale is that of classifier-free guidance already"
            )
        return scale

    def guidance_schedule(self, steps: int) -> GuidanceSchedule:
        schedule: GuidanceSchedule = read_choice(
            self.message, "guidance_schedule", ConstantGuidance(), self.wrong
        )
        if isinstance(schedule, ExplicitGuidance):
            listed = len(self.message.guidance_schedule.explicit.scales)
            if self.message.HasField("guidance_scale"):
                self.wrong["guidance_scale"] = (
                    "must not be set: guidance_schedule lists the scale of each step"
                )
            if listed != steps:
                path = "guidance_schedule.explicit.scales"
                self.wrong[path] = f"must be one per step ({steps}), not {listed}"
        return schedule

    def solver(self) -> Solver:
        solver: Solver = read_choice(self.message, "solver", EulerSolver(), self.wrong)
        if self.limits.flow_map and not solver.samples_flow_maps:
            fitting = " or ".join(name for name, known in SOLVERS.items() if known.samples_flow_maps)
            self.wrong["solver"] = (
                f"must be {fitting}: this model is a flow map, whose velocities lead to one level each,"
                f" and {name_of('solver', solver)} joins them or leads them elsewhere"
            )
        return solver

    def sigma_schedule(self, solver: Solver) -> SigmaSchedule:
        default = LinearSigmas() if solver.needs_even_levels else CheckpointSigmas()
        return read_choice(self.message, "sigma_schedule", default, self.wrong)

    def step_reuse(self, solver: Solver) -> StepReuse:
        reuse: StepReuse = read_choice(self.message, "step_reuse", NoReuse(), self.wrong)
        if reuse != NoReuse() and solver.chooses_steps:
            self.wrong["step_reuse"] = (
                "must be none: the adaptive solver measures its errors on fresh velocities"
            )
        elif reuse.extrapolates and solver.draws_noise:
            self.wrong[f"step_reuse.{name_of('step_reuse', reuse)}"] = (
                f"must not be set: {name_of('solver', solver)} draws fresh noise, behind which velocities do"
                " not go on"
            )
        elif reuse.extrapolates and self.limits.flow_map:
            self.wrong[f"step_reuse.{name_of('step_reuse', reuse)}"] = (
                "must not be set: this model is a flow map, and velocities on the way to one level do not"
                " tell those to another"
            )
        elif reuse.counts_steps and not solver.evaluates_once:
            fitting = " or ".join(
                name
                for name, known in SOLVERS.items()
                if known.evaluates_once and not (reuse.extrapolates and known.draws_noise)
            )
            self.wrong[f"step_reuse.{name_of('step_reuse', reuse)}"] = (
                f"must not be set: {name_of('solver', solver)} evaluates more than once a step, and it counts"
                f" in steps; with it the solver is {fitting}"
            )
        if isinstance(reuse, MagCache) and not reuse.mag_ratios:
            if not self.limits.mag_ratios:
                self.wrong["step_reuse.magcache.mag_ratios"] = (
                    "must be given: none are known for this model;"
                    " python -m benchmarks.quality.mag_ratios measures them"
                )
            return replace(reuse, mag_ratios=self.limits.mag_ratios)
        if isinstance(reuse, TeaCache):
            known = self.limits.teacache_coefficients or IDENTITY
            return replace(reuse, coefficients=reuse.coefficients or known)
        return reuse

    def progressive_resolution(self) -> ProgressiveResolution | None:
        if not self.message.HasField("progressive_resolution"):
            return None
        chosen = self.message.progressive_resolution
        return read(ProgressiveResolution, chosen, "progressive_resolution", self.wrong)

    def guidance_method(self, steps: int) -> GuidanceMethod | None:
        """None is classifier-free guidance, unless the model's own is another one: then it is said."""
        own = self.limits.default_guidance_method
        method: GuidanceMethod = read_choice(self.message, "guidance_method", own, self.wrong)
        if isinstance(method, ZeroStarGuidance) and not 0 <= method.zero_init_steps < max(steps, 1):
            self.wrong["guidance_method.zero_star.zero_init_steps"] = (
                f"must leave at least one of the {steps} steps: 0 to {steps - 1},"
                f" not {method.zero_init_steps}"
            )
        return None if method == own == CLASSIFIER_FREE else method

    def layer_guidance(self, path: str, kind: type[L]) -> L | None:
        if not self.message.HasField(path):  # type: ignore[arg-type]
            return None
        message, num_layers = getattr(self.message, path), self.limits.num_layers
        guidance = read(kind, message, path, self.wrong)
        if num_layers == 0:
            self.wrong[path] = "the served model's layers cannot be skipped or perturbed"
        for i, layer in enumerate(message.layers[:num_layers]):
            if not 0 <= layer < num_layers:
                self.wrong[f"{path}.layers[{i}]"] = f"must be 0 to {num_layers - 1}, not {layer}"
        return guidance

    def compositions(self) -> tuple[Composition, ...]:
        """One for each prompt, or none."""
        messages, prompts = self.message.compositions, len(self.message.prompts)
        if prompts > self.limits.max_images:
            return ()
        if len(messages) not in (0, 1, prompts):
            self.wrong["compositions"] = f"must be none, one, or one per prompt ({prompts})"
            return ()
        if len({len(message.prompts) for message in messages}) > 1:
            self.wrong["compositions"] = "must all have the same number of prompts"
            return ()
        given = tuple(self._composition(f"compositions[{i}]", message) for i, message in enumerate(messages))
        return given if len(given) == prompts else given * prompts

    def _composition(self, path: str, message: guidance_pb2.Composition) -> Composition:
        if not 1 <= len(message.prompts) <= MAX_ADDITIONAL_PROMPTS:
            self.wrong[f"{path}.prompts"] = f"must be 1 to {MAX_ADDITIONAL_PROMPTS} prompts"
            return Composition()
        for i, weighted in enumerate(message.prompts):
            self._check_prompt(f"{path}.prompts[{i}].prompt", weighted.prompt)
        return read(Composition, message, path, self.wrong)

    def prompt_weighting(self) -> bool:
        if self.message.prompt_weighting and not self.limits.prompt_weighting:
            self.wrong["prompt_weighting"] = "is not possible with the served model's text encoders"
        return self.message.prompt_weighting

    def seeds(self) -> tuple[int, ...]:
        given, prompts, most = tuple(self.message.seeds), len(self.message.prompts), self.limits.max_images
        per_prompt = self.given("num_images_per_prompt", 1)
        images = prompts * per_prompt
        if per_prompt < 1:
            self.wrong["num_images_per_prompt"] = f"must be at least 1, not {per_prompt}"
        elif images > most:
            field = "prompts" if prompts > most else "num_images_per_prompt"
            self.wrong[field] = f"prompts x num_images_per_prompt must be at most {most}, not {images}"
        if not 1 <= images <= most:
            return given
        if len(given) not in (0, 1, images):
            self.wrong["seeds"] = f"must be none, one, or one per picture ({images}), not {len(given)}"
        if len(given) == images:
            return given
        first = given[0] if given else secrets.randbelow(1 << 32)
        if self.message.HasField("variation"):
            return (first,) * images
        return tuple((first + k) % (1 << 64) for k in range(images))

    def loras(self) -> tuple[Lora, ...]:
        for field, words in lora_violations(self.message.loras):
            self.wrong[field] = words
        return tuple(
            Lora(message.name, shortest_decimal(weight_of(message)))
            for message in self.message.loras[:MAX_LORAS]
        )

    def output_format(self) -> OutputFormat:
        default: OutputFormat = PNG
        return read_choice(self.message, "output_format", default, self.wrong)

    def preview_every(self) -> int:
        every = self.message.preview_every
        if every < 0:
            self.wrong["preview_every"] = f"must be at least 0, not {every}"
        elif every and not self.limits.previews:
            self.wrong["preview_every"] = "must be 0: no map from this model's latents to colours is known"
        return every

    def _check_prompt(self, path: str, text: str) -> None:
        if not text.strip():
            self.wrong[path] = "must not be empty"
        else:
            self._check_text(path, text)
        if self.message.prompt_weighting and path not in self.wrong and not read_weighted(text).text.strip():
            self.wrong[path] = "must not be empty between its brackets"

    def _check_text(self, path: str, text: str) -> None:
        size = len(text.encode())
        if size > self.limits.max_prompt_bytes:
            self.wrong[path] = f"must be at most {self.limits.max_prompt_bytes} bytes of UTF-8, not {size}"
        elif "\0" in text:
            self.wrong[path] = "must not hold the character U+0000"
        elif self.message.prompt_weighting:
            try:
                read_weighted(text)
            except ValueError as error:
                self.wrong[path] = str(error)
