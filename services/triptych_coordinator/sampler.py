"""The sampler loop."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.guidance import Branch, Guided, Memory
from triptych_coordinator.solvers import Latents, Reached, Sigma, Solution


class Denoiser(Protocol):
    """The pure function v = f(x, sigma, conditioning), wherever it runs."""

    async def predict(
        self, latents: Latents, sigma: Sigma, branches: Sequence[Branch], guidance: float | None
    ) -> NDArray[np.float32]:
        """Velocities [branches, B, C, h, w] of latents [B, C, h, w]; no branches, no work.

        sigma is the same for all samples, or float32 [B, 1, 1, 1].
        `guidance` is the scale for a model that takes it as an input, None for every other.
        """
        ...


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
    memory: Memory = None
    while True:
        if isinstance(asked, Reached):
            step += 1
            yield step, asked
            answer = asked.latents
        else:
            branches, guidance = guided.branches(step), guided.input_scale(step)
            velocities = await denoiser.predict(asked.latents, asked.sigma, branches, guidance)
            answer, memory = guided.velocity(step, velocities, memory)
        try:
            asked = solution.send(answer)
        except StopIteration:
            return
