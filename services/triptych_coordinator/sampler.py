"""The sampler loop."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.guidance import classifier_free_guidance
from triptych_coordinator.solvers import Latents, Step

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


async def sample(
    denoiser: Denoiser, latents: Latents, sigmas: NDArray[np.float32], guided: Guided, solve: Step
) -> AsyncGenerator[tuple[int, float, Latents], None]:
    """Integrates d(latents)/d(sigma) = velocity from the first noise level to the last.

    Args:
        denoiser: the velocity.
        latents: noise, float32 [B, C, h, w].
        sigmas: the noise levels, float32 [steps + 1], from 1 to 0.
        guided: what each sample attends to.
        solve: one step of the solver.

    Yields:
        After each step its number from 1, the noise level reached, and the latents. The caller stops the
        work by not asking for the next.
    """
    for i, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        velocity = guided.velocity(i, await denoiser.predict(latents, sigma, guided.branches(i)))
        latents = solve(latents, velocity, sigma, next_sigma)
        yield i + 1, float(next_sigma), latents
