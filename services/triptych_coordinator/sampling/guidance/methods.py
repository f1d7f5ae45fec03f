"""How a prompt's velocity and the negative one become one: a method with its parameters, in a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from triptych_coordinator.sampling.guidance.formulas import (
    Velocity,
    adaptive_projected_guidance,
    classifier_free_guidance,
    zero_star_guidance,
)

Memory: TypeAlias = Velocity | None
"""What a method keeps from one evaluation to the next, of each image its own; None before the first."""


class GuidanceMethod(Protocol):
    """Joins velocities, [B, C, h, w]. Where the scale is 1 no method is asked: the prompt's is the answer."""

    @property
    def zero_init_steps(self) -> int:
        """For so many steps from the first, the velocity is zero, and no branch is needed."""
        ...

    def join(
        self, negative: Velocity, positive: Velocity, scale: float, memory: Memory
    ) -> tuple[Velocity, Memory]:
        """The velocity, and what the next evaluation is given as `memory`."""
        ...


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance."""

    zero_init_steps: ClassVar[int] = 0

    def join(
        self, negative: Velocity, positive: Velocity, scale: float, memory: Memory
    ) -> tuple[Velocity, Memory]:
        """See formulas.classifier_free_guidance."""
        return classifier_free_guidance(negative, positive, scale), memory


@dataclass(frozen=True)
class AdaptiveProjected:
    """APG. The defaults are the paper's for Stable Diffusion XL."""

    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5

    zero_init_steps: ClassVar[int] = 0

    def join(
        self, negative: Velocity, positive: Velocity, scale: float, memory: Memory
    ) -> tuple[Velocity, Memory]:
        """See formulas.adaptive_projected_guidance; the memory is its `running`."""
        return adaptive_projected_guidance(
            negative, positive, scale, memory, self.eta, self.norm_threshold, self.momentum
        )


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero*: nothing happens in the first steps, where velocities mislead more than they lead."""

    zero_init_steps: int = 1

    def join(
        self, negative: Velocity, positive: Velocity, scale: float, memory: Memory
    ) -> tuple[Velocity, Memory]:
        """See formulas.zero_star_guidance."""
        return zero_star_guidance(negative, positive, scale), memory


ChosenMethod: TypeAlias = ClassifierFree | AdaptiveProjected | ZeroStar

METHODS: Mapping[str, type[ChosenMethod]] = {
    "classifier_free": ClassifierFree,
    "adaptive_projected": AdaptiveProjected,
    "zero_star": ZeroStar,
}


def method_name(method: ChosenMethod) -> str:
    """The method's name in METHODS."""
    return next(name for name, kind in METHODS.items() if isinstance(method, kind))
