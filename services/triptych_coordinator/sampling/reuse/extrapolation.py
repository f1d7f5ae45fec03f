"""Velocities continued from those of computed evaluations: a line over sigma, a Taylor series over steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.loop import Denoiser
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse.step_reuse import Asked, CountingDenoiser, FeatureReuser, StepReuse
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma


@dataclass(frozen=True)
class VelocityExtrapolation(StepReuse):
    """After two computed evaluations, every k-th one is computed; the others continue a straight line."""

    every: Annotated[int, Range(2, 20)] = 2

    extrapolates: ClassVar = True

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithExtrapolation(denoiser, self.every)


class WithExtrapolation:
    """After two computed evaluations, every k-th one is computed; the others continue a straight line.

    v = v1 + (v1 - v0) (sigma - sigma1) / (sigma1 - sigma0), through the last two computed ones: the
    first-order case of TaylorSeer (Liu et al., 2025), of the model's whole output.
    """

    def __init__(self, denoiser: Denoiser, every: int) -> None:
        self.reused_rows = 0
        self._denoiser = denoiser
        self._every = every
        self._asked: Asked | None = None
        self._computed: list[tuple[Sigma, NDArray[np.float32]]] = []
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
        if self._asked != (asked := Asked(latents.shape, list(branches))):
            self._asked, self._computed = asked, []
        self._age += 1
        if len(self._computed) == 2 and self._age < self._every:
            (sigma_0, before), (sigma_1, last) = self._computed
            self.reused_rows += len(branches) * len(latents)
            return last + (sigma - sigma_1) / (sigma_1 - sigma_0) * (last - before)
        velocities = await self._denoiser.predict(latents, sigma, branches, guidance, target)
        earlier = [computed for computed in self._computed if computed[0] != sigma]
        self._computed, self._age = [*earlier[-1:], (sigma, velocities)], 0
        return velocities


@dataclass(frozen=True)
class TaylorSeer(StepReuse):
    """After the warm-up every k-th step is computed; the others continue a Taylor series over the steps."""

    every: Annotated[int, Range(2, 20)] = 5
    order: Annotated[int, Range(0, 4)] = 1
    warmup_steps: Annotated[int, Range(1, 20)] = 3

    extrapolates: ClassVar = True
    counts_steps: ClassVar = True

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithTaylorSeer(denoiser, self)


class WithTaylorSeer:
    """After the warm-up every k-th step is computed; the others continue a Taylor series over the steps.

    v(s + k) = sum of k^i / i! D_i for i up to the order, where s is the last computed step, D_0 its velocity,
    and D_(i + 1) how much D_i changed since the computed step before, per step (Liu et al., 2025, From
    Reusing to Forecasting, section 3.2). The paper does so with the outputs of all layers, this with those of
    the last, which needs no memory on a replica; that, and which steps are computed, are as in diffusers'
    TaylorSeerCacheConfig with use_lite_mode.
    """

    def __init__(self, denoiser: Denoiser, choice: TaylorSeer) -> None:
        self.reused_rows = 0
        self._denoiser = denoiser
        self._choice = choice
        self._asked: Asked | None = None
        self._step = 0
        self._computed_step = 0
        self._series: list[NDArray[np.float32]] = []

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """As loop.Denoiser. Other branches, or another size, begin with a warm-up of their own."""
        if self._asked != (asked := Asked(latents.shape, list(branches))):
            self._asked, self._series, self._step = asked, [], 0
        step, self._step = self._step, self._step + 1
        since_warmup = step - self._choice.warmup_steps
        if since_warmup >= 0 and (since_warmup - 1) % self._choice.every:
            self.reused_rows += len(branches) * len(latents)
            return self._continued(step - self._computed_step)
        velocities = await self._denoiser.predict(latents, sigma, branches, guidance, target)
        series = [velocities]
        for before in self._series[: self._choice.order]:
            series.append((series[-1] - before) / np.float32(step - self._computed_step))
        self._series, self._computed_step = series, step
        return velocities

    def _continued(self, steps: int) -> NDArray[np.float32]:
        """The series so many steps behind the last computed one."""
        terms = [np.float32(steps**i / math.factorial(i)) * term for i, term in enumerate(self._series)]
        velocities: NDArray[np.float32] = np.sum(terms, axis=0, dtype=np.float32)
        return velocities
