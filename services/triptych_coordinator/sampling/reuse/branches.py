"""Reuse of what guidance adds to the prompt's velocity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.loop import Denoiser
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse.step_reuse import Asked, CountingDenoiser, FeatureReuser, StepReuse
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma


@dataclass(frozen=True)
class GuidanceReuse(StepReuse):
    """The prompt's branch at every evaluation, the others at every k-th guided one."""

    every: Annotated[int, Range(2, 20)] = 2

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithGuidanceReuse(denoiser, prompt, self.every)


class WithGuidanceReuse:
    """The prompt's branch at every evaluation, the others at every k-th guided one.

    Between, another branch is the prompt's now plus its difference from it at the last evaluation that
    computed all: the difference changes slowly from step to step, and less than the velocities do
    (Lv et al., 2024, FasterCache, section 3.3, there by frequency bands; Dinh et al., 2024, Compress
    Guidance).
    """

    def __init__(self, denoiser: Denoiser, prompt: Branch, every: int) -> None:
        """`prompt` is the branch that is always computed."""
        self.reused_rows = 0
        self._denoiser = denoiser
        self._prompt = prompt
        self._every = every
        self._asked: Asked | None = None
        self._differences: NDArray[np.float32] | None = None
        self._age = 0

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """As loop.Denoiser."""
        if len(branches) < 2:
            return await self._denoiser.predict(latents, sigma, branches, guidance, target)
        self._age += 1
        asked = Asked(latents.shape, list(branches))
        if self._differences is not None and self._asked == asked and self._age < self._every:
            self.reused_rows += (len(branches) - 1) * len(latents)
            prompts = await self._denoiser.predict(latents, sigma, [self._prompt], guidance, target)
            return prompts + self._differences
        velocities = await self._denoiser.predict(latents, sigma, branches, guidance, target)
        self._asked, self._age = asked, 0
        self._differences = velocities - velocities[asked.branches.index(self._prompt)]
        return velocities
