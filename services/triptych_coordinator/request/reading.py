"""From the wire's GenerationParameters to checked ones with every default filled in, and back."""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from triptych import errors
from triptych.loras import lora_violations, unknown_lora, weight_of
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1 import lora_pb2
from triptych_coordinator.request import edits
from triptych_coordinator.request.guidance_messages import GuidanceReader, write_options
from triptych_coordinator.request.guidance_options import GuidanceOptions
from triptych_coordinator.request.parameters import (
    MAX_GUIDANCE_SCALE,
    MAX_NUM_INFERENCE_STEPS,
    Limits,
    Lora,
    Parameters,
)
from triptych_coordinator.request.pictures import Size
from triptych_coordinator.request.prompt_weights import read_weighted
from triptych_coordinator.request.sampling_options import (
    explicit_steps,
    read_sampling,
    write_sampling,
)
from triptych_coordinator.sampling.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    GuidanceInput,
    GuidanceSchedule,
)


def parameters_from_message(message: pb.GenerationParameters, limits: Limits) -> Parameters:
    """Checks a request and fills in its defaults.

    Raises:
        TriptychError: NOT_FOUND for another model or an unknown LoRA; INVALID_ARGUMENT that names every wrong
            field.
    """
    if message.model and message.model != limits.model:
        raise errors.not_found(
            f"the model {message.model!r} is not served here; this server has {limits.model!r}"
        )
    wrong: dict[str, str] = {}
    given = _Given(message, limits, wrong)
    size = edits.own_size(message, limits, wrong)
    seeds = given.seeds()
    parameters = Parameters(
        model=limits.model,
        prompts=given.prompts(),
        negative_prompts=given.negative_prompts(),
        height=given.size("height", size.height),
        width=given.size("width", size.width),
        num_inference_steps=given.num_inference_steps(),
        guidance_scale=given.guidance_scale(),
        guidance_schedule=given.guidance_schedule(),
        num_images_per_prompt=given.num_images_per_prompt(),
        seeds=seeds,
        guidance=given.guidance(),
        prompt_weighting=given.prompt_weighting(),
        edit=edits.read_edit(message, given.number, wrong),
        noise=edits.read_noise(message),
        variation=edits.read_variation(message, len(seeds), given.number, wrong),
        return_latents=message.return_latents,
        preview_every=given.preview_every(),
        loras=given.loras(),
        sampling=read_sampling(message, given.number, wrong),
    )
    if not wrong:
        given.check_pixels(parameters)
        given.check_guidance(parameters)
        given.check_sampling(parameters)
        canvas = Size(parameters.width, parameters.height)
        edits.check_latents(message, limits, canvas, len(seeds), wrong)
    if wrong:
        raise errors.invalid_argument(*wrong.items())
    for lora in parameters.loras:
        if lora.name not in limits.loras:
            raise unknown_lora(lora.name, limits.loras)
    return parameters


def parameters_to_message(parameters: Parameters) -> pb.GenerationParameters:
    """The request with every default filled in: sent again, it gives the same pictures."""
    schedule = parameters.guidance_schedule
    message = pb.GenerationParameters(
        prompts=parameters.prompts,
        negative_prompts=parameters.negative_prompts,
        height=parameters.height,
        width=parameters.width,
        num_inference_steps=parameters.num_inference_steps,
        guidance_scale=parameters.guidance_scale,
        num_images_per_prompt=parameters.num_images_per_prompt,
        seeds=parameters.seeds,
        model=parameters.model,
        prompt_weighting=parameters.prompt_weighting,
        return_latents=parameters.return_latents,
        preview_every=parameters.preview_every,
        loras=loras_to_messages(parameters.loras),
    )
    if schedule.name == "explicit":
        message.ClearField("guidance_scale")
    if parameters.edit is not None:
        edits.write_edit(parameters.edit, message)
    if parameters.variation is not None:
        message.variation.seeds.extend(parameters.variation.seeds)
        message.variation.strengths.extend(parameters.variation.strengths)
    chosen = getattr(message.guidance_schedule, schedule.name)
    chosen.MergeFrom(type(chosen)(**schedule.parameters))
    chosen.SetInParent()
    write_options(parameters.guidance, message)
    write_sampling(parameters.sampling, message)
    return message


def loras_to_messages(loras: Sequence[Lora]) -> list[lora_pb2.Lora]:
    """As requests name them, to the coordinator and to the denoiser."""
    return [lora_pb2.Lora(name=lora.name, weight=lora.weight) for lora in loras]


@dataclass(frozen=True)
class _Given:
    """The fields of a request one by one; `wrong` gets what is wrong: a field's path, what it must be."""

    message: pb.GenerationParameters
    limits: Limits
    wrong: dict[str, str]

    def prompts(self) -> tuple[str, ...]:
        prompts = tuple(self.message.prompts)
        if not prompts:
            self.wrong["prompts"] = "must hold at least one prompt"
        for i, prompt in enumerate(prompts[: self.limits.max_images]):
            self._check_prompt(f"prompts[{i}]", prompt)
        return prompts

    def negative_prompts(self) -> tuple[str, ...]:
        given, count = tuple(self.message.negative_prompts), len(self.message.prompts)
        if len(given) not in (0, 1, count):
            self.wrong["negative_prompts"] = (
                f"must be none, one, or one per prompt ({count}), not {len(given)}"
            )
            return given
        for i, prompt in enumerate(given[: self.limits.max_images]):
            self._check_text(f"negative_prompts[{i}]", prompt)
        return given if len(given) == count else (given or ("",)) * count

    def size(self, field: str, default: int) -> int:
        """The size that is given, or `default`, which an input picture or latents may have decided."""
        given = self.message.HasField(field)  # type: ignore[arg-type]
        size: int = getattr(self.message, field) if given else default
        multiple, largest = self.limits.size_multiple, self.limits.max_size
        below = min(max(size // multiple * multiple, multiple), largest)
        nearest = sorted({below, min(below + multiple, largest)} if multiple < size < largest else {below})
        if size != below:
            allowed = f"must be a multiple of {multiple} from {multiple} to {largest} pixels, not {size}"
            self.wrong[field] = f"{allowed}; nearest: {' or '.join(map(str, nearest))}"
        return size

    def num_inference_steps(self) -> int:
        listed = explicit_steps(self.message)
        if not self.message.HasField("num_inference_steps"):
            steps = self.limits.default_num_inference_steps if listed is None else listed
        else:
            steps = self.message.num_inference_steps
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

    def guidance_scale(self) -> float:
        if not self.message.HasField("guidance_scale"):
            return self.limits.default_guidance_scale
        return self.number("guidance_scale", self.message.guidance_scale, 0, MAX_GUIDANCE_SCALE)

    def guidance_schedule(self) -> GuidanceSchedule:
        name = self.message.guidance_schedule.WhichOneof("schedule") or "constant"
        fields = _SCHEDULE_PARAMETERS[name](self, getattr(self.message.guidance_schedule, name))
        return GuidanceSchedule(name, fields)

    def end_scale(self, path: str, schedule: pb.LinearGuidance | pb.CosineGuidance) -> dict[str, float]:
        return {"end_scale": self.number(f"{path}.end_scale", schedule.end_scale, 0, MAX_GUIDANCE_SCALE)}

    def interval(self, schedule: pb.IntervalGuidance) -> dict[str, float]:
        start = self.number("guidance_schedule.interval.start", schedule.start, 0, 1)
        stop = self.number("guidance_schedule.interval.stop", schedule.stop, 0, 1)
        if stop < start:
            self.wrong["guidance_schedule.interval.stop"] = f"must be at least start ({start}), not {stop}"
        return {"start": start, "stop": stop}

    def explicit_scales(self, schedule: pb.ExplicitGuidance) -> dict[str, tuple[float, ...]]:
        path, scales, steps = "guidance_schedule.explicit.scales", schedule.scales, self.num_inference_steps()
        if self.message.HasField("guidance_scale"):
            self.wrong["guidance_scale"] = "must not be set: guidance_schedule lists the scale of each step"
        if len(scales) != steps:
            self.wrong[path] = f"must be one per step ({steps}), not {len(scales)}"
            return {"scales": ()}
        numbers = [
            self.number(f"{path}[{i}]", scale, 0, MAX_GUIDANCE_SCALE) for i, scale in enumerate(scales)
        ]
        return {"scales": tuple(numbers)}

    def guidance(self) -> GuidanceOptions:
        reader = GuidanceReader(self.number, self._check_prompt, self.wrong)
        return reader.options(self.message, self.num_inference_steps(), self.limits.num_layers)

    def prompt_weighting(self) -> bool:
        if self.message.prompt_weighting and not self.limits.prompt_weighting:
            self.wrong["prompt_weighting"] = "is not possible with the served model's text encoders"
        return self.message.prompt_weighting

    def num_images_per_prompt(self) -> int:
        return self.message.num_images_per_prompt if self.message.HasField("num_images_per_prompt") else 1

    def seeds(self) -> tuple[int, ...]:
        given, prompts, most = tuple(self.message.seeds), len(self.message.prompts), self.limits.max_images
        images = prompts * self.num_images_per_prompt()
        if self.num_images_per_prompt() < 1:
            self.wrong["num_images_per_prompt"] = f"must be at least 1, not {self.num_images_per_prompt()}"
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
        self.wrong.update(lora_violations(self.message.loras))
        return tuple(
            Lora(message.name, shortest_decimal(weight_of(message))) for message in self.message.loras
        )

    def preview_every(self) -> int:
        every = self.message.preview_every
        if every < 0:
            self.wrong["preview_every"] = f"must be at least 0, not {every}"
        elif every and not self.limits.previews:
            self.wrong["preview_every"] = "must be 0: no map from this model's latents to colours is known"
        return every

    def check_pixels(self, parameters: Parameters) -> None:
        image = parameters.height * parameters.width
        if image > self.limits.max_image_pixels:
            self.wrong["height"] = (
                f"height x width must be at most {self.limits.max_image_pixels}, not {image}"
            )
        elif image * len(parameters.seeds) > self.limits.max_request_pixels:
            self.wrong["num_images_per_prompt"] = (
                f"all pictures together must have at most {self.limits.max_request_pixels} pixels,"
                f" not {image * len(parameters.seeds)}"
            )

    def check_sampling(self, parameters: Parameters) -> None:
        """Refuses a memory of guidance where every picture takes steps of its own."""
        method, solver = parameters.guidance.method, parameters.sampling.solver.name
        if isinstance(method, AdaptiveProjected) and method.momentum and solver == "adaptive":
            self.wrong["guidance_method.adaptive_projected.momentum"] = (
                "must be 0 with the adaptive solver, which would remember the steps that it rejects,"
                f" not {method.momentum:g}"
            )

    def check_guidance(self, parameters: Parameters) -> None:
        """Refuses what the model cannot do, whatever the rest of the request is."""
        guidance = self.limits.guidance
        if guidance is GuidanceInput.NONE and any(scale != 1 for scale in parameters.guidance_scales()):
            field = "guidance_scale" if parameters.guidance_scale != 1 else "guidance_schedule"
            self.wrong[field] = (
                "this model was distilled to do without guidance: leave it out, or make the scale 1, which"
                f" means none, not {max(parameters.guidance_scales()):g}"
            )
        if guidance is not GuidanceInput.BRANCHES and any(parameters.negative_prompts):
            self.wrong["negative_prompts"] = (
                "this model computes the prompt's branch alone, so a negative prompt cannot steer it (true"
                " classifier-free guidance on top of distilled guidance is not supported): leave it out"
            )
        if guidance is not GuidanceInput.BRANCHES:
            self._check_no_branches(parameters.guidance)

    def _check_no_branches(self, options: GuidanceOptions) -> None:
        reason = (
            "this model computes the prompt's branch alone, and has no other to join with it: leave it out"
        )
        if options.method != ClassifierFree():
            self.wrong["guidance_method"] = reason
        if options.compositions:
            self.wrong["compositions"] = reason
        if options.rescale and not options.layer_guidances:
            self.wrong["guidance_rescale"] = (
                "this model's guidance is distilled, and only what skip_layer_guidance or"
                " perturbed_attention_guidance add could be rescaled: choose one of them, or leave it out"
            )

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

    def number(self, path: str, wire_value: float, least: float, most: float) -> float:
        """A number of the wire; `wrong` hears of it if it is not from `least` to `most`."""
        value = shortest_decimal(wire_value)
        if not (math.isfinite(value) and least <= value <= most):
            self.wrong[path] = f"must be a number from {least:g} to {most:g}, not {value:g}"
        return value


_SCHEDULE_PARAMETERS: dict[str, Callable[[_Given, Any], Mapping[str, Any]]] = {
    "constant": lambda given, schedule: {},
    "linear": lambda given, schedule: given.end_scale("guidance_schedule.linear", schedule),
    "cosine": lambda given, schedule: given.end_scale("guidance_schedule.cosine", schedule),
    "interval": lambda given, schedule: given.interval(schedule),
    "explicit": lambda given, schedule: given.explicit_scales(schedule),
}


def shortest_decimal(wire_value: float) -> float:
    """The number that the client wrote: 0.7 for the float32 0.699999988, so that int(0.7 x 10) is 7."""
    return float(str(np.float32(wire_value)))
