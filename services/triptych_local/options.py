"""What the words of the command line mean. A reader raises ValueError that says what it reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from triptych.v1 import guidance_pb2, sampling_pb2

M = TypeVar("M", bound="Message")

SOLVERS = (
    "euler, heun, midpoint, dpmpp-2m, unipc, lcm, euler-ancestral[:ETA], stochastic-euler[:NOISE-FRACTION]"
    " or adaptive[:ABSOLUTE-TOLERANCE:RELATIVE-TOLERANCE]"
)
SIGMA_SCHEDULES = (
    "checkpoint, linear, karras[:RHO], exponential, beta[:ALPHA:BETA] or explicit:SIGMA,SIGMA,..."
)
REUSES = "none, guidance[:EVERY], extrapolation[:EVERY] or features[:THRESHOLD]"
SCHEDULES = "constant, linear:END, cosine:END, interval:START:STOP or list:SCALE,SCALE,..."
METHODS = "cfg, apg[:ETA:NORM:MOMENTUM] or zero-star[:STEPS]"
LAYERS = "LAYER,LAYER,...[:SCALE[:START:STOP]]"


def read_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of "256x192"."""
    match = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no size: it is WIDTHxHEIGHT in pixels, e.g. 256x192")
    return int(match[1]), int(match[2])


def read_schedule(text: str) -> guidance_pb2.GuidanceSchedule:
    """The guidance schedule of "constant", "linear:1", "cosine:1", "interval:0.1:0.8" or "list:7,5,1"."""
    from triptych.v1 import guidance_pb2

    kind, *words = text.strip().split(":")
    if kind == "list" and len(words) == 1:
        words = words[0].split(",")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        kind = ""
    match kind, len(words):
        case "constant", 0:
            return guidance_pb2.GuidanceSchedule(constant=guidance_pb2.ConstantGuidance())
        case "linear", 1:
            return guidance_pb2.GuidanceSchedule(linear=guidance_pb2.LinearGuidance(end_scale=numbers[0]))
        case "cosine", 1:
            return guidance_pb2.GuidanceSchedule(cosine=guidance_pb2.CosineGuidance(end_scale=numbers[0]))
        case "interval", 2:
            return guidance_pb2.GuidanceSchedule(
                interval=guidance_pb2.IntervalGuidance(start=numbers[0], stop=numbers[1])
            )
        case "list", _ if words:
            return guidance_pb2.GuidanceSchedule(explicit=guidance_pb2.ExplicitGuidance(scales=numbers))
    raise ValueError(f"'{text}' is no guidance schedule: it is {SCHEDULES}")


def read_solver(text: str) -> sampling_pb2.Solver:
    """The solver of "heun", "euler-ancestral:0.5" or "adaptive:0.01:0.01"."""
    from triptych.v1 import sampling_pb2

    return _read_choice(text, sampling_pb2.Solver(), f"no solver: it is {SOLVERS}")


def read_sigma_schedule(text: str) -> sampling_pb2.SigmaSchedule:
    """The sigma schedule of "karras", "beta:0.5:0.7" or "explicit:1,0.75,0.5,0.25"."""
    from triptych.v1 import sampling_pb2

    return _read_choice(text, sampling_pb2.SigmaSchedule(), f"no sigma schedule: it is {SIGMA_SCHEDULES}")


def read_step_reuse(text: str) -> sampling_pb2.StepReuse:
    """The reuse between steps of "guidance" or "extrapolation:3"."""
    from triptych.v1 import sampling_pb2

    return _read_choice(text, sampling_pb2.StepReuse(), f"no reuse between steps: it is {REUSES}")


def _read_choice(text: str, message: M, otherwise: str) -> M:
    """Sets the field of a oneof that is called like the first word, and its fields to the numbers behind it.

    Numbers follow colons, all of them or none; a list of numbers has commas.
    """
    name, *words = text.strip().split(":")
    choice = name.replace("-", "_")
    try:
        if choice not in message.DESCRIPTOR.fields_by_name:
            raise ValueError
        chosen = getattr(message, choice)
        chosen.SetInParent()
        numbers = chosen.DESCRIPTOR.fields
        if len(words) not in (0, len(numbers)):
            raise ValueError
        for number, word in zip(numbers, words, strict=False):
            value = getattr(chosen, number.name)
            if isinstance(value, int | float):
                setattr(chosen, number.name, type(value)(word))
            else:
                value.extend(float(part) for part in word.split(","))
    except ValueError:
        raise ValueError(f"'{text}' is {otherwise}") from None
    return message


def read_method(text: str) -> guidance_pb2.GuidanceMethod:
    """The guidance method of "cfg", "apg", "apg:0:15:-0.5", "zero-star" or "zero-star:1"."""
    from triptych.v1 import guidance_pb2

    kind, *words = text.strip().split(":")
    try:
        match kind, [float(word) for word in words]:
            case "cfg", []:
                return guidance_pb2.GuidanceMethod(classifier_free=guidance_pb2.ClassifierFreeGuidance())
            case "apg", []:
                return guidance_pb2.GuidanceMethod(
                    adaptive_projected=guidance_pb2.AdaptiveProjectedGuidance()
                )
            case "apg", [eta, norm, momentum]:
                projected = guidance_pb2.AdaptiveProjectedGuidance(
                    eta=eta, norm_threshold=norm, momentum=momentum
                )
                return guidance_pb2.GuidanceMethod(adaptive_projected=projected)
            case "zero-star", []:
                return guidance_pb2.GuidanceMethod(zero_star=guidance_pb2.ZeroStarGuidance())
            case "zero-star", [_]:
                return guidance_pb2.GuidanceMethod(
                    zero_star=guidance_pb2.ZeroStarGuidance(zero_init_steps=int(words[0]))
                )
    except ValueError:
        pass
    raise ValueError(f"'{text}' is no guidance method: it is {METHODS}")


def read_layers(text: str) -> dict[str, Any]:
    """Fields of skip-layer or perturbed attention guidance: "7,8,9", "7,8,9:2.8" or "7,8,9:2.8:0.01:0.2"."""
    layers, *words = text.strip().split(":")
    try:
        if len(words) not in (0, 1, 3):
            raise ValueError
        numbers = dict(zip(("scale", "start", "stop"), map(float, words), strict=False))
        return {"layers": [int(layer) for layer in layers.split(",")], **numbers}
    except ValueError:
        raise ValueError(f"'{text}' are no layers: they are {LAYERS}") from None


def read_loras(texts: Sequence[str]) -> dict[str, float]:
    """The weights by name of texts such as "watercolour=0.8"."""
    from triptych.loras import read_lora

    loras = [read_lora(text) for text in texts]
    if len(dict(loras)) < len(loras):
        raise ValueError("a LoRA is named twice")
    return dict(loras)


def read_composition(texts: Sequence[str], prompt_weight: float | None) -> guidance_pb2.Composition:
    """The composition of texts such as "a red hat" or "a red hat:-0.5", whose last number is the weight."""
    from triptych.v1 import guidance_pb2

    composition = guidance_pb2.Composition(prompt_weight=prompt_weight)
    for text in texts:
        match = re.fullmatch(r"(.*):\s*([-+]?[0-9]*\.?[0-9]+)\s*", text, re.DOTALL)
        composition.prompts.add(prompt=match[1] if match else text, weight=float(match[2]) if match else None)
    return composition
