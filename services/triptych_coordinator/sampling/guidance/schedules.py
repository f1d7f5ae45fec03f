"""How the guidance scale changes over the steps: one pure function each, in a table."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def constant(step: int, num_steps: int, scale: float) -> float:
    """`scale` at every step."""
    return scale


def linear(step: int, num_steps: int, scale: float, end_scale: float) -> float:
    """A straight line from `scale` at the first step to `end_scale` at the last."""
    return scale + (end_scale - scale) * _progress(step, num_steps)


def cosine(step: int, num_steps: int, scale: float, end_scale: float) -> float:
    """Half a cosine wave from `scale` at the first step to `end_scale` at the last."""
    return scale + (end_scale - scale) * (1 - math.cos(math.pi * _progress(step, num_steps))) / 2


def interval(step: int, num_steps: int, scale: float, start: float, stop: float) -> float:
    """`scale` where int(start n) <= step < int(stop n), else 1: no guidance (Kynkäänniemi et al., 2024)."""
    return scale if int(start * num_steps) <= step < int(stop * num_steps) else 1.0


def explicit(step: int, num_steps: int, scale: float, scales: Sequence[float]) -> float:
    """The number that the request lists for this step, whatever `scale` is."""
    return scales[step]


SCHEDULES: Mapping[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "interval": interval,
    "explicit": explicit,
}


@dataclass(frozen=True)
class GuidanceSchedule:
    """A function of SCHEDULES by name, with its own parameters."""

    name: str = "constant"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def scales(self, num_steps: int, scale: float) -> list[float]:
        """The guidance scale of each step, when the request's guidance_scale is `scale`."""
        schedule = SCHEDULES[self.name]
        return [schedule(step, num_steps, scale, **self.parameters) for step in range(num_steps)]


def _progress(step: int, num_steps: int) -> float:
    """0 at the first step, 1 at the last; 0 if there is only one."""
    return step / (num_steps - 1) if num_steps > 1 else 0.0
