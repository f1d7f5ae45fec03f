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
        self, latents: Latents, sigma: np.float32, branches: Sequence[Digests], guidance: float | None
    ) -> NDArray[np.float32]:
        """Velocities [branches, B, C, h, w] of latents [B, C, h, w]; a branch has one digest per sample.

        `guidance` is the scale for a model that takes it as an input, None for every other.
        """
        ...


@dataclass(frozen=True)
class Guided:
    """What a batch attends to: one conditioning digest per sample and branch, one guidance scale per step.

    embedded: whether the model takes the scale as an input.
    """

    positive: Digests
    negative: Digests
    scales: Sequence[float]
    embedded: bool = False

    def branches(self, step: int) -> list[Digests]:
        """The branches that this step needs: the prompt's alone without guidance, or if it is embedded."""
        alone = self.embedded or self.scales[step] == 1
        return [self.positive] if alone else [self.negative, self.positive]

    def input_scale(self, step: int) -> float | None:
        """The scale that the model takes as an input, if it does."""
        return self.scales[step] if self.embedded else None

    def velocity(self, step: int, velocities: NDArray[np.float32]) -> Latents:
        """One velocity per sample, [B, C, h, w], from those of branches(step)."""
        positive: Latents = velocities[-1]
        if len(velocities) == 1:
            return positive
        return classifier_free_guidance(velocities[0], positive, self.scales[step])


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
        velocities = await denoiser.predict(latents, sigma, guided.branches(i), guided.input_scale(i))
        velocity = guided.velocity(i, velocities)
        latents = solve(latents, velocity, sigma, next_sigma)
        yield i + 1, float(next_sigma), latents
