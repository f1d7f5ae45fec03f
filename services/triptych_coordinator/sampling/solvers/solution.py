"""What a solver is: a generator that asks for velocities and tells the end of each step.

It solves the flow's equation d(latents)/d(sigma) = velocity. It yields Evaluate where it needs the velocity,
and receives it; it yields Reached at the end of each step, and receives the latents to go on with, which an
edit may have changed. So it reads like its formula, keeps its history in local variables, and knows nothing
of guidance, batches or services.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float32]
Sigma: TypeAlias = np.float32 | NDArray[np.float32]
"""The same for all images, or [B, 1, 1, 1]."""
Noise: TypeAlias = Callable[[], Latents]
"""Fresh standard normal numbers of the latents' shape, every image's from its own seed."""


class Evaluate(NamedTuple):
    """A question: the velocity of these latents, [B, C, h, w], at this noise level.

    Where every image has its own level, sigma is float32 [B, 1, 1, 1].

    target: the level to which the velocity is to lead, where the solver goes straight there: a flow map gives
        the mean velocity on the way. None where velocities are joined, or led elsewhere.
    """

    latents: Latents
    sigma: Sigma
    target: np.float32 | None = None


class Reached(NamedTuple):
    """A step's end: the latents, [B, C, h, w], and their noise level."""

    latents: Latents
    sigma: np.float32


Solution: TypeAlias = Generator[Evaluate | Reached, Latents, None]


def begin(solution: Solution) -> Evaluate | Reached | None:
    """What a solution asks first; None if it has nothing to solve."""
    return next(solution, None)


def answer(solution: Solution, latents: Latents) -> Evaluate | Reached | None:
    """Answers what a solution asked, with a velocity or latents; what it asks next, None at its end."""
    try:
        return solution.send(latents)
    except StopIteration:
        return None


@dataclass(frozen=True)
class Solver(ABC):
    """A method with its parameters.

    label: what image tools call it.
    draws_noise: whether it draws fresh noise, behind which velocities do not go on.
    chooses_steps: whether it takes steps of its own between the levels, for every image other ones.
    needs_even_levels: whether it was not made for levels of which the last but one is next to 0, as SD3's.
    samples_flow_maps: whether it does what it says with a flow map: each of its questions has a target.
    evaluates_once: whether each step is an evaluation.
    """

    label: ClassVar[str]
    draws_noise: ClassVar[bool] = False
    chooses_steps: ClassVar[bool] = False
    needs_even_levels: ClassVar[bool] = False
    samples_flow_maps: ClassVar[bool] = False
    evaluates_once: ClassVar[bool] = True

    @abstractmethod
    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """From latents [B, C, h, w] at sigmas[0] to sigmas[-1], telling every level between."""
