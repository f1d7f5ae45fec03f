"""How the guidance scale changes over the steps: one small class each, in a table."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from triptych_coordinator.sampling.ranges import Range

Scale: TypeAlias = Annotated[float, Range(0, 100)]
Fraction: TypeAlias = Annotated[float, Range(0, 1)]
"""Of the steps."""


@dataclass(frozen=True)
class GuidanceSchedule(ABC):
    """The guidance scale of every step, from the one that a request names."""

    @abstractmethod
    def at(self, step: int, num_steps: int, scale: float) -> float:
        """That of step `step`, from 0, of `num_steps`, when the request's guidance_scale is `scale`."""

    def over(self, num_steps: int, scale: float) -> list[float]:
        """That of each step."""
        return [self.at(step, num_steps, scale) for step in range(num_steps)]


@dataclass(frozen=True)
class ConstantGuidance(GuidanceSchedule):
    """`scale` at every step."""

    def at(self, step: int, num_steps: int, scale: float) -> float:
        """See the class."""
        return scale


@dataclass(frozen=True)
class LinearGuidance(GuidanceSchedule):
    """A straight line from `scale` at the first step to `end_scale` at the last."""

    end_scale: Scale

    def at(self, step: int, num_steps: int, scale: float) -> float:
        """See the class."""
        return scale + (self.end_scale - scale) * _progress(step, num_steps)


@dataclass(frozen=True)
class CosineGuidance(GuidanceSchedule):
    """Half a cosine wave from `scale` at the first step to `end_scale` at the last."""

    end_scale: Scale

    def at(self, step: int, num_steps: int, scale: float) -> float:
        """See the class."""
        return scale + (self.end_scale - scale) * (1 - math.cos(math.pi * _progress(step, num_steps))) / 2


@dataclass(frozen=True)
class IntervalGuidance(GuidanceSchedule):
    """`scale` where int(start n) <= step < int(stop n), else 1: no guidance (Kynkäänniemi et al., 2024)."""

    start: Fraction
    stop: Fraction

    def violations(self) -> Iterator[tuple[str, str]]:
        """What is wrong: a field and what it must be."""
        if self.stop < self.start:
            yield "stop", f"must be at least start ({self.start}), not {self.stop}"

    def at(self, step: int, num_steps: int, scale: float) -> float:
        """See the class."""
        return scale if int(self.start * num_steps) <= step < int(self.stop * num_steps) else 1.0


@dataclass(frozen=True)
class ExplicitGuidance(GuidanceSchedule):
    """The number that the request lists for each step, whatever `scale` is."""

    scales: tuple[Scale, ...]

    def at(self, step: int, num_steps: int, scale: float) -> float:
        """See the class."""
        return self.scales[step]


GUIDANCE_SCHEDULES: Mapping[str, type[GuidanceSchedule]] = {
    "constant": ConstantGuidance,
    "linear": LinearGuidance,
    "cosine": CosineGuidance,
    "interval": IntervalGuidance,
    "explicit": ExplicitGuidance,
}
"""By the name that requests choose them with."""


def _progress(step: int, num_steps: int) -> float:
    """0 at the first step, 1 at the last; 0 if there is only one."""
    return step / (num_steps - 1) if num_steps > 1 else 0.0
