"""Reuse between steps: denoisers that leave out rows whose velocities can be told from earlier ones.

Each stands between the sampler and the denoiser, for one request. What is left out is counted in
`reused_rows`. The images of a batch share only when something is left out, which no image's values decide, so
each is to the bit what it is alone.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.guidance import Branch
from triptych_coordinator.sampler import Denoiser
from triptych_coordinator.sampling_options import Choice
from triptych_coordinator.solvers import Latents, Sigma


class Reuse(Denoiser, Protocol):
    """A denoiser that counts the rows which it did not compute."""

    reused_rows: int


def reusing(denoiser: Denoiser, prompt: Branch, choice: Choice) -> Reuse:
    """The denoiser with the reuse that a request chose; `prompt` is the branch of the prompt."""
    match choice.name:
        case "guidance":
            return GuidanceReuse(denoiser, prompt, **choice.parameters)
        case "extrapolation":
            return VelocityExtrapolation(denoiser, **choice.parameters)
    return NoReuse(denoiser)


class NoReuse:
    """Every row is computed."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.reused_rows = 0
        self.predict = denoiser.predict


class GuidanceReuse:
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
        self._branches: list[Branch] = []
        self._differences: NDArray[np.float32] | None = None
        self._age = 0

    async def predict(
        self, latents: Latents, sigma: Sigma, branches: Sequence[Branch], guidance: float | None
    ) -> NDArray[np.float32]:
        """As sampler.Denoiser."""
        if len(branches) < 2:
            return await self._denoiser.predict(latents, sigma, branches, guidance)
        self._age += 1
        if self._differences is not None and self._branches == list(branches) and self._age < self._every:
            self.reused_rows += (len(branches) - 1) * len(latents)
            prompts = await self._denoiser.predict(latents, sigma, [self._prompt], guidance)
            return prompts + self._differences
        velocities = await self._denoiser.predict(latents, sigma, branches, guidance)
        self._branches, self._age = list(branches), 0
        self._differences = velocities - velocities[self._branches.index(self._prompt)]
        return velocities


class VelocityExtrapolation:
    """After two computed evaluations, every k-th one is computed; the others continue a straight line.

    v = v1 + (v1 - v0) (sigma - sigma1) / (sigma1 - sigma0), through the last two computed ones: the
    first-order case of TaylorSeer (Liu et al., 2025), of the model's whole output.
    """

    def __init__(self, denoiser: Denoiser, every: int) -> None:
        self.reused_rows = 0
        self._denoiser = denoiser
        self._every = every
        self._branches: list[Branch] = []
        self._computed: list[tuple[Sigma, NDArray[np.float32]]] = []
        self._age = 0

    async def predict(
        self, latents: Latents, sigma: Sigma, branches: Sequence[Branch], guidance: float | None
    ) -> NDArray[np.float32]:
        """As sampler.Denoiser."""
        if self._branches != list(branches):
            self._branches, self._computed = list(branches), []
        self._age += 1
        if len(self._computed) == 2 and self._age < self._every:
            (sigma_0, before), (sigma_1, last) = self._computed
            self.reused_rows += len(branches) * len(latents)
            return last + (sigma - sigma_1) / (sigma_1 - sigma_0) * (last - before)
        velocities = await self._denoiser.predict(latents, sigma, branches, guidance)
        earlier = [computed for computed in self._computed if computed[0] != sigma]
        self._computed, self._age = [*earlier[-1:], (sigma, velocities)], 0
        return velocities
