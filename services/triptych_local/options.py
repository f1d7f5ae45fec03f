"""What the words of the command line mean. A reader raises ValueError that says what it reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from triptych.v1 import image_generation_pb2

M = TypeVar("M", bound="Message")

SCHEDULES = "constant, linear:END, cosine:END or interval:START:STOP"
SOLVERS = (
    "euler, heun, midpoint, dpmpp-2m, unipc, lcm, euler-ancestral[:ETA], stochastic-euler[:NOISE-FRACTION]"
    " or adaptive[:ABSOLUTE-TOLERANCE:RELATIVE-TOLERANCE]"
)
SIGMA_SCHEDULES = (
    "checkpoint, linear, karras[:RHO], exponential, beta[:ALPHA:BETA] or explicit:SIGMA,SIGMA,..."
)
REUSES = "none, guidance[:EVERY] or extrapolation[:EVERY]"


def read_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of "256x192"."""
    match = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no size: it is WIDTHxHEIGHT in pixels, e.g. 256x192")
    return int(match[1]), int(match[2])


def read_schedule(text: str) -> image_generation_pb2.GuidanceSchedule:
    """The guidance schedule of "constant", "linear:1", "cosine:1" or "interval:0.1:0.8"."""
    from triptych.v1 import image_generation_pb2 as pb

    kind, *words = text.strip().split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        kind = ""
    match kind, len(words):
        case "constant", 0:
            return pb.GuidanceSchedule(constant=pb.ConstantGuidance())
        case "linear", 1:
            return pb.GuidanceSchedule(linear=pb.LinearGuidance(end_scale=numbers[0]))
        case "cosine", 1:
            return pb.GuidanceSchedule(cosine=pb.CosineGuidance(end_scale=numbers[0]))
        case "interval", 2:
            return pb.GuidanceSchedule(interval=pb.IntervalGuidance(start=numbers[0], stop=numbers[1]))
    raise ValueError(f"'{text}' is no guidance schedule: it is {SCHEDULES}")


def read_solver(text: str) -> image_generation_pb2.Solver:
    """The solver of "heun", "euler-ancestral:0.5" or "adaptive:0.01:0.01"."""
    from triptych.v1 import image_generation_pb2 as pb

    return _read_choice(text, pb.Solver(), f"no solver: it is {SOLVERS}")


def read_sigma_schedule(text: str) -> image_generation_pb2.SigmaSchedule:
    """The sigma schedule of "karras", "beta:0.5:0.7" or "explicit:1,0.75,0.5,0.25"."""
    from triptych.v1 import image_generation_pb2 as pb

    return _read_choice(text, pb.SigmaSchedule(), f"no sigma schedule: it is {SIGMA_SCHEDULES}")


def read_step_reuse(text: str) -> image_generation_pb2.StepReuse:
    """The reuse between steps of "guidance" or "extrapolation:3"."""
    from triptych.v1 import image_generation_pb2 as pb

    return _read_choice(text, pb.StepReuse(), f"no reuse between steps: it is {REUSES}")


def _read_choice(text: str, message: M, otherwise: str) -> M:
    """Sets the field of a oneof that is called like the first word, and its fields to the numbers behind it.

    Numbers follow colons, all of them or none; a list of numbers has commas.
    """
    name, *words = text.strip().split(":")
    field = message.DESCRIPTOR.fields_by_name.get(name.replace("-", "_"))
    try:
        if field is None or len(words) not in (0, len(field.message_type.fields)):
            raise ValueError
        chosen = getattr(message, field.name)
        chosen.SetInParent()
        for number, word in zip(field.message_type.fields, words, strict=False):
            value = getattr(chosen, number.name)
            if isinstance(value, int | float):
                setattr(chosen, number.name, type(value)(word))
            else:
                value.extend(float(part) for part in word.split(","))
    except ValueError:
        raise ValueError(f"'{text}' is {otherwise}") from None
    return message
