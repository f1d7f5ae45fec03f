"""The sampler loop."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.guidance import classifier_free_guidance
from triptych_coordinator.solvers import Latents, Reached, Solution

Digests: TypeAlias = Sequence[bytes]


class Denoiser(Protocol):
    """The pure function v = f(x, sigma, conditioning), wherever it runs."""

    async def predict(
        self, latents: Latents, sigma: np.float32 | NDArray[np.float32], branches: Sequence[Digests]
    ) -> NDArray[np.float32]:
        """Velocities [branches, B, C, h, w] of latents [B, C, h, w]; a branch has one digest per sample.

        sigma is the same for all samples, or float32 [B, 1, 1, 1].
        """
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


async def sample(
    denoiser: Denoiser, solution: Solution, guided: Guided
) -> AsyncGenerator[tuple[int, Reached], None]:
    """Integrates d(latents)/d(sigma) = velocity, as the solver asks.

    Args:
        denoiser: the velocities.
        solution: a solver that has been given its latents and noise levels.
        guided: what each sample attends to.

    Yields:
        After each step its number from 1, and what was reached. The caller stops the work by not asking for
        the next.
    """
    step, asked = 0, next(solution)
    while True:
        if isinstance(asked, Reached):
            step += 1
            yield step, asked
            answer = asked.latents
        else:
            velocities = await denoiser.predict(asked.latents, asked.sigma, guided.branches(step))
            answer = guided.velocity(step, velocities)
        try:
            asked = solution.send(answer)
        except StopIteration:
            return
