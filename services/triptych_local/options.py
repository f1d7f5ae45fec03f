"""What the words of the command line mean. A reader raises ValueError that says what it reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triptych.v1 import image_generation_pb2

SCHEDULES = "constant, linear:END, cosine:END or interval:START:STOP"


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
