"""The sampler loop."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.guidance.methods import Memory
from triptych_coordinator.sampling.solvers.solution import (
    Evaluate,
    Latents,
    Reached,
    Sigma,
    Solution,
    answer,
    begin,
)


class Denoiser(Protocol):
    """The pure function v = f(x, sigma, conditioning), wherever it runs."""

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """Velocities [branches, B, C, h, w] of latents [B, C, h, w]; no branches, no work.

        sigma is the same for all samples, or float32 [B, 1, 1, 1].
        `guidance` is the scale for a model that takes it as an input, None for every other.
        `target` is the level to which the step goes; models that are no flow maps do not ask for it.
        """
        ...


class Step(NamedTuple):
    """What a step brought, [B, C, h, w] each."""

    number: int
    """From 1, or later where the first steps were left out."""
    latents: Latents
    sigma: np.float32
    """The noise level of `latents`."""
    evaluated: Evaluate
    """The step's last evaluation, which `velocity` answers."""
    velocity: Latents

    @property
    def clean(self) -> Latents:
        """x - sigma v of that evaluation: the picture as far as it is known."""
        return self.evaluated.latents - self.evaluated.sigma * self.velocity


def unchanged(reached: Reached) -> Latents:
    """The edit that leaves every step's latents as they are."""
    return reached.latents


async def sample(
    denoiser: Denoiser,
    solution: Solution,
    guided: Guided,
    edit: Callable[[Reached], Latents] = unchanged,
    first_step: int = 0,
) -> AsyncGenerator[Step, None]:
    """Integrates d(latents)/d(sigma) = velocity, as the solver asks.

    Args:
        denoiser: the velocities.
        solution: a solver that has been given its latents and noise levels.
        guided: what each sample attends to.
        edit: what each step's latents become before the solver goes on with them.
        first_step: how many steps were left out because the solution starts late, from a picture; they are
            counted.

    Yields:
        Each step when it is done. The caller stops the work by not asking for the next.
    """
    step, asked = first_step, begin(solution)
    memory: Memory = None
    while asked is not None:
        match asked:
            case Evaluate(latents, sigma, target) as evaluated:
                velocities = await denoiser.predict(
                    latents, sigma, guided.branches(step), guided.input_scale(step), target
                )
                if memory is not None and memory.shape != latents.shape:  # they have grown
                    memory = None
                velocity, memory = guided.velocity(step, velocities, memory)
                asked = answer(solution, velocity)
            case Reached(_, sigma):
                step, latents = step + 1, edit(asked)
                yield Step(step, latents, sigma, evaluated, velocity)
                asked = answer(solution, latents)
