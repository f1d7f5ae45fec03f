"""What layers added earlier, reused: where they say so, or in steps that are known before the first."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse.step_reuse import (
    CountingDenoiser,
    Earlier,
    FeatureReuse,
    FeatureReuser,
    StepReuse,
)
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma


@dataclass(frozen=True)
class LayerReuse(StepReuse):
    """Every row's first layer is computed, the others where the first says that they have changed."""

    threshold: Annotated[float, Range(0.001, 1)] = 0.1

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithFeatureReuse(denoiser, self.threshold)


class WithFeatureReuse:
    """Every row's first layer is computed, the others where the first says that they have changed.

    The denoiser decides, row by row (its features.py has the rule and the source). What it decides by comes
    from here: each row's last whole evaluation goes with the row, so that any replica decides the same, and
    one that does not remember that evaluation computes it again.
    """

    def __init__(self, denoiser: FeatureReuser, threshold: float | None) -> None:
        """`threshold` as FeatureReuse has it."""
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
        velocities, reused, _ = await self._denoiser.predict_reusing(
            latents, sigma, branches, guidance, reuses, target
        )
        self.reused_rows += int(reused.sum())
        now = evaluation(latents, sigma, guidance, target)
        others = [entry for entry in self._earlier if entry[0] not in branches]
        kept = [mixed(now, last, rows) for last, rows in zip(earlier, reused, strict=True)]
        self._earlier = [*others, *zip(branches, kept, strict=True)]
        return velocities


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


class WithMagCache(WithFeatureReuse):
    """All layers are taken to add what they did at the last computed step, in those steps that are skipped.

    A denoiser adds it to the tokens of the latents now (its features.py), and computes it again if it does
    not remember it. A branch that the last computed step did not need is computed.
    """

    def __init__(self, denoiser: FeatureReuser, skipped: Collection[int], first_step: int) -> None:
        super().__init__(denoiser, threshold=None)
        self._skipped = skipped
        self._step = first_step

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
        return await super().predict(latents, sigma, branches, guidance, target)


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
