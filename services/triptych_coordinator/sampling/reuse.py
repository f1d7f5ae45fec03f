"""Reuse between steps: denoisers that leave out rows whose velocities can be told from earlier ones.

Each stands between the sampler and the denoiser, for one request. What is left out is counted in
`reused_rows`. What an image's rows leave out is decided by the number of the evaluation or by that image's
values alone, so each image of a batch is to the bit what it is alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.loop import Denoiser
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma


class Earlier(NamedTuple):
    """An evaluation that features may be reused of: every sample's latents, noise level and guidance scale.

    There are no scales where the model takes none, and no target levels where the solver names none.
    """

    latents: Latents
    sigmas: NDArray[np.float32]
    guidance_scales: Sequence[float]
    targets: Sequence[float] = ()


class FeatureReuse(NamedTuple):
    """Up to which change of the first layer's part a branch reuses the others', and of which evaluation.

    Without a threshold it reuses all layers' part, the first's too. There is no evaluation before the first.
    """

    threshold: float | None
    earlier: Earlier | None


class FeatureReuser(Denoiser, Protocol):
    """A denoiser that can leave out the layers behind the first."""

    async def predict_reusing(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        reuses: Sequence[FeatureReuse | None],
        target: np.float32 | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """As predict, and whether a row's features were reused: [branches, B]. A branch without FeatureReuse
        is computed whole.
        """
        ...


class CountingDenoiser(Denoiser, Protocol):
    """A denoiser that counts the rows which it did not compute."""

    reused_rows: int


@dataclass(frozen=True)
class StepReuse(ABC):
    """What is reused between steps.

    extrapolates: whether a velocity is told from those at other noise levels.
    counts_steps: whether each evaluation must be a step of its own.
    """

    extrapolates: ClassVar[bool] = False
    counts_steps: ClassVar[bool] = False

    @abstractmethod
    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """The denoiser with this reuse, for those of a schedule's steps; `prompt` is the prompt's branch."""


@dataclass(frozen=True)
class NoReuse(StepReuse):
    """Every row is computed."""

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithoutReuse(denoiser)


@dataclass(frozen=True)
class GuidanceReuse(StepReuse):
    """The prompt's branch at every evaluation, the others at every k-th guided one."""

    every: Annotated[int, Range(2, 20)] = 2

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithGuidanceReuse(denoiser, prompt, self.every)


@dataclass(frozen=True)
class VelocityExtrapolation(StepReuse):
    """After two computed evaluations, every k-th one is computed; the others continue a straight line."""

    every: Annotated[int, Range(2, 20)] = 2

    extrapolates: ClassVar = True

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithExtrapolation(denoiser, self.every)


@dataclass(frozen=True)
class LayerReuse(StepReuse):
    """Every row's first layer is computed, the others where the first says that they have changed."""

    threshold: Annotated[float, Range(0.001, 1)] = 0.1

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithFeatureReuse(denoiser, self.threshold)


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


@dataclass(frozen=True)
class MagCache(StepReuse):
    """All layers are taken to add what they did at the last computed step, as long as ratios say so.

    mag_ratios: how large what they add is at each step, relative to the step before.
    """

    threshold: Annotated[float, Range(0.001, 10)] = 0.06
    max_skip_steps: Annotated[int, Range(1, 20)] = 3
    retention_ratio: Annotated[float, Range(0, 1)] = 0.2
    mag_ratios: tuple[Annotated[float, Range(0.01, 100)], ...] = ()

    counts_steps: ClassVar = True

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithMagCache(denoiser, self.skipped(steps), steps.start)

    def skipped(self, steps: range) -> set[int]:
        """Which of those steps of a schedule are not computed (Ma et al., 2025, algorithm 1).

        As diffusers.hooks.mag_cache: ratios multiply since the last computed step, their distances from 1
        add up. Ratios of another number of steps are taken by the nearest of them.
        """
        nearest = np.rint(np.linspace(0, len(self.mag_ratios) - 1, steps.stop)).astype(int)
        first = int(self.retention_ratio * steps.stop + 0.5)
        skipped, magnitude, error, in_a_row = set[int](), 1.0, 0.0, 0
        for step in steps[max(first - steps.start, 0) :]:
            magnitude *= self.mag_ratios[nearest[step]]
            error += abs(1 - magnitude)
            in_a_row += 1
            if step > steps.start and error <= self.threshold and in_a_row <= self.max_skip_steps:
                skipped.add(step)
            else:
                magnitude, error, in_a_row = 1.0, 0.0, 0
        return skipped


STEP_REUSES: Mapping[str, type[StepReuse]] = {
    "none": NoReuse,
    "guidance": GuidanceReuse,
    "extrapolation": VelocityExtrapolation,
    "features": LayerReuse,
    "taylorseer": TaylorSeer,
    "magcache": MagCache,
}
"""By the name that requests choose them with."""


class Asked(NamedTuple):
    """What evaluations must have in common for one to be told from others."""

    shape: tuple[int, ...]
    """Of the latents."""
    branches: list[Branch]


class WithoutReuse:
    """Every row is computed."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.reused_rows = 0
        self.predict = denoiser.predict


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


class WithFeatureReuse:
    """Every row's first layer is computed, the others where the first says that they have changed.

    The denoiser decides, row by row (its features.py has the rule and the source). What it decides by comes
    from here: each row's last whole evaluation goes with the row, so that any replica decides the same, and
    one that does not remember that evaluation computes it again.
    """

    def __init__(self, denoiser: FeatureReuser, threshold: float) -> None:
        self.reused_rows = 0
        self._denoiser = denoiser
        self._threshold = threshold
        self._earlier: list[tuple[Branch, Earlier]] = []

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """As loop.Denoiser."""
        earlier = [last_of(branch, latents.shape, self._earlier) for branch in branches]
        reuses = [FeatureReuse(self._threshold, last) for last in earlier]
        velocities, reused = await self._denoiser.predict_reusing(
            latents, sigma, branches, guidance, reuses, target
        )
        self.reused_rows += int(reused.sum())
        now = evaluation(latents, sigma, guidance, target)
        others = [entry for entry in self._earlier if entry[0] not in branches]
        kept = [mixed(now, last, rows) for last, rows in zip(earlier, reused, strict=True)]
        self._earlier = [*others, *zip(branches, kept, strict=True)]
        return velocities


class WithMagCache:
    """All layers are taken to add what they did at the last computed step, in those steps that are skipped.

    A denoiser adds it to the tokens of the latents now (its features.py), and computes it again if it does
    not remember it. A branch that the last computed step did not need is computed.
    """

    def __init__(self, denoiser: FeatureReuser, skipped: Collection[int], first_step: int) -> None:
        self.reused_rows = 0
        self._denoiser = denoiser
        self._skipped = skipped
        self._step = first_step
        self._earlier: list[tuple[Branch, Earlier]] = []

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """As loop.Denoiser."""
        if self._step not in self._skipped:
            self._earlier = []
        self._step += 1
        earlier = [last_of(branch, latents.shape, self._earlier) for branch in branches]
        reuses = [FeatureReuse(None, last) for last in earlier]
        velocities, reused = await self._denoiser.predict_reusing(
            latents, sigma, branches, guidance, reuses, target
        )
        self.reused_rows += int(reused.sum())
        now = evaluation(latents, sigma, guidance, target)
        computed = (branch for branch, last in zip(branches, earlier, strict=True) if last is None)
        self._earlier += [(branch, now) for branch in computed]
        return velocities


def last_of(
    branch: Branch, shape: tuple[int, ...], evaluations: Sequence[tuple[Branch, Earlier]]
) -> Earlier | None:
    """The evaluation of a branch with latents of that shape, if there is one."""
    found = (earlier for known, earlier in evaluations if known == branch)
    return next((earlier for earlier in found if earlier.latents.shape == shape), None)


def evaluation(latents: Latents, sigma: Sigma, guidance: float | None, target: np.float32 | None) -> Earlier:
    """This evaluation as a later one names it."""
    samples = len(latents)
    sigmas = np.broadcast_to(np.ravel(sigma), samples).astype(np.float32)
    scales = [] if guidance is None else [guidance] * samples
    return Earlier(latents, sigmas, scales, [] if target is None else [float(target)] * samples)


def mixed(now: Earlier, last: Earlier | None, reused: NDArray[np.bool_]) -> Earlier:
    """The last whole evaluation of every sample: `last` where features were reused, [B], else `now`."""
    if last is None or not reused.any():
        return now
    latents = np.where(reused[:, None, None, None], last.latents, now.latents)
    scales, targets = (
        [old if kept else new for kept, old, new in zip(reused, *pair, strict=False)]
        for pair in ((last.guidance_scales, now.guidance_scales), (last.targets, now.targets))
    )
    return Earlier(latents, np.where(reused, last.sigmas, now.sigmas), scales, targets)
