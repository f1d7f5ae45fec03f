"""How a prompt's velocity and the negative one become one: a method with its parameters, in a table."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from triptych_coordinator.sampling.guidance.formulas import (
    Velocity,
    adaptive_projected_guidance,
    classifier_free_guidance,
    norm_preserving_guidance,
    zero_star_guidance,
)
from triptych_coordinator.sampling.ranges import Range

Memory: TypeAlias = Velocity | None
"""What a method keeps from one evaluation to the next, of each image its own; None before the first."""
Joined: TypeAlias = tuple[Velocity, Memory]
"""A velocity, and what the next evaluation is given as `memory`."""


@dataclass(frozen=True)
class GuidanceMethod(ABC):
    """Joins velocities, [B, C, h, w]. Up to a scale of 1 none is asked: the prompt's is the answer."""

    @property
    def first_guided_step(self) -> int:
        """For so many steps from the first, the velocity is zero, and no branch is needed."""
        return 0

    @abstractmethod
    def join(self, negative: Velocity, positive: Velocity, scale: float, memory: Memory) -> Joined:
        """One velocity of the two branches'."""


@dataclass(frozen=True)
class ClassifierFreeGuidance(GuidanceMethod):
    """Classifier-free guidance."""

    def join(self, negative: Velocity, positive: Velocity, scale: float, memory: Memory) -> Joined:
        """See formulas.classifier_free_guidance."""
        return classifier_free_guidance(negative, positive, scale), memory


CLASSIFIER_FREE = ClassifierFreeGuidance()


@dataclass(frozen=True)
class AdaptiveProjectedGuidance(GuidanceMethod):
    """APG. The defaults are the paper's for Stable Diffusion XL."""

    eta: Annotated[float, Range(-10, 10)] = 0.0
    norm_threshold: Annotated[float, Range(0, 10_000)] = 15.0
    momentum: Annotated[float, Range(-1, 1)] = -0.5

    def join(self, negative: Velocity, positive: Velocity, scale: float, memory: Memory) -> Joined:
        """See formulas.adaptive_projected_guidance; the memory is its `running`."""
        return adaptive_projected_guidance(
            negative, positive, scale, memory, self.eta, self.norm_threshold, self.momentum
        )


@dataclass(frozen=True)
class ZeroStarGuidance(GuidanceMethod):
    """CFG-Zero*: nothing happens in the first steps, where velocities mislead more than they lead."""

    zero_init_steps: int = 1

    @property
    def first_guided_step(self) -> int:
        """Behind the first steps."""
        return self.zero_init_steps

    def join(self, negative: Velocity, positive: Velocity, scale: float, memory: Memory) -> Joined:
        """See formulas.zero_star_guidance."""
        return zero_star_guidance(negative, positive, scale), memory


@dataclass(frozen=True)
class NormPreservingGuidance(GuidanceMethod):
    """Qwen-Image's: no token moves faster than by the prompt alone. The default is a token of most models."""

    token_size: Annotated[int, Range(1, 64)] = 2

    def join(self, negative: Velocity, positive: Velocity, scale: float, memory: Memory) -> Joined:
        """See formulas.norm_preserving_guidance."""
        return norm_preserving_guidance(negative, positive, scale, self.token_size), memory


GUIDANCE_METHODS: Mapping[str, type[GuidanceMethod]] = {
    "classifier_free": ClassifierFreeGuidance,
    "adaptive_projected": AdaptiveProjectedGuidance,
    "zero_star": ZeroStarGuidance,
    "norm_preserving": NormPreservingGuidance,
}
"""By the name that requests choose them with."""
