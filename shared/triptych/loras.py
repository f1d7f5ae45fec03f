"""What a request may say of LoRAs, and what a LoRA and its weight look like in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from triptych.errors import TriptychError, not_found
from triptych.v1 import lora_pb2

MAX_LORAS = 8
"""LoRAs of one request."""
MAX_WEIGHT = 10.0
"""The largest weight; the least is -MAX_WEIGHT."""

_LISTED = 20
_SHOWN = 60


def weight_of(lora: lora_pb2.Lora) -> float:
    """The weight, 1 if the message has none."""
    return lora.weight if lora.HasField("weight") else 1.0


def lora_violations(loras: Sequence[lora_pb2.Lora]) -> Iterator[tuple[str, str]]:
    """The fields of `loras` that are wrong, each with what is wrong with it."""
    if len(loras) > MAX_LORAS:
        yield "loras", f"{len(loras)} of them; allowed are 0 to {MAX_LORAS}"
        return
    for index, lora in enumerate(loras):
        weight = weight_of(lora)
        if not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
            yield f"loras[{index}].weight", f"is {weight:g}; allowed are {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        if lora.name in [before.name for before in loras[:index]]:
            yield f"loras[{index}].name", f"{_shown(lora.name)} is named twice"


def unknown_lora(name: str, available: Sequence[str]) -> TriptychError:
    """NOT_FOUND that lists what there is, the first twenty at most."""
    listed = ", ".join(_clipped(other) for other in available[:_LISTED])
    more = f" and {len(available) - _LISTED} more" if len(available) > _LISTED else ""
    there_is = f"there are: {listed}{more}" if available else "this server has none"
    return not_found(f"there is no LoRA {_shown(name)}; {there_is}")


def read_lora(text: str) -> tuple[str, float]:
    """Name and weight of "watercolour=0.8", or of "watercolour", whose weight is 1.

    Raises:
        ValueError: that says what it reads.
    """
    name, _, weight = text.strip().rpartition("=") if "=" in text else (text.strip(), "", "1")
    if not name or not re.fullmatch(r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)", weight):
        raise ValueError(f"{_shown(text)} is no LoRA: it is NAME=WEIGHT, e.g. watercolour=0.8")
    if abs(float(weight)) > MAX_WEIGHT:
        raise ValueError(
            f"the weight of {_shown(name)} is {weight}, but must be -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    return name, float(weight)


def _shown(name: str) -> str:
    return repr(_clipped(name))


def _clipped(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
