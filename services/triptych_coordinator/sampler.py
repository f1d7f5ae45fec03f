"""The sampler loop."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.guidance import classifier_free_guidance
from triptych_coordinator.solvers import Latents, Reached, Solution

Digests: TypeAlias = Sequence[bytes]


class Denoiser(Protocol):
    """The pure function v = f(x, sigma, conditioning), wherever it runs."""

    async def predict(
        self, latents: Latents, sigma: np.float32, branches: Sequence[Digests]
    ) -> NDArray[np.float32]:
        """Velocities [branches, B, C, h, w] of latents [B, C, h, w]; a branch has one digest per sample."""
        ...


@dataclass(frozen=True)
class Guided:
    """What a batch attends to: one conditioning digest per sample and branch, one guidance scale per step."""

    positive: Digests
    negative: Digests
    scales: Sequence[float]

    def branches(self, step: int) -> list[Digests]:
        """The branches that this step needs: without guidance, only the prompt's."""
        return [self.positive] if self.scales[step] == 1 else [self.negative, self.positive]

    def velocity(self, step: int, velocities: NDArray[np.float32]) -> Latents:
        """One velocity per sample, [B, C, h, w], from those of branches(step)."""
        positive: Latents = velocities[-1]
        scale = self.scales[step]
        return positive if scale == 1 else classifier_free_guidance(velocities[0], positive, scale)


class Step(NamedTuple):
    """What a step brought, [B, C, h, w] each."""

    number: int
    """From 1."""
    latents: Latents
    sigma: np.float32
    """The noise level of `latents`."""
    clean: Latents
    """x - sigma v of the step's last evaluation: the picture as far as it is known."""


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
        first_step: the number, from 0, that the first step has for `guided`: more than 0 where a solution
            starts late, from a picture.

    Yields:
        Each step when it is done. The caller stops the work by not asking for the next.
    """
    asked = next(solution)
    step, clean = 0, asked.latents
    while True:
        if isinstance(asked, Reached):
            step += 1
            answer = edit(asked)
            yield Step(step, answer, asked.sigma, clean)
        else:
            branches = guided.branches(first_step + step)
            velocities = await denoiser.predict(asked.latents, asked.sigma, branches)
            answer = guided.velocity(first_step + step, velocities)
            clean = asked.latents - asked.sigma * answer
        try:
            asked = solution.send(answer)
        except StopIteration:
            return
