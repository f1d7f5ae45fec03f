"""TeaCache: what all layers added is reused while what goes into the first one has changed little."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse.features import evaluation, mixed
from triptych_coordinator.sampling.reuse.step_reuse import (
    CountingDenoiser,
    Earlier,
    FeatureReuse,
    FeatureReuser,
    InputChange,
    StepReuse,
)
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma

IDENTITY = (1.0, 0.0)
"""Coefficients that take a change as it is."""
MAX_COEFFICIENTS = 8


@dataclass(frozen=True)
class TeaCache(StepReuse):
    """All layers are taken to add what they did at the last computed step, as long as their input says so.

    coefficients: of the polynomial that tells how much the output changes from how much the input does, the
        highest power first.
    """

    threshold: Annotated[float, Range(0.001, 1)] = 0.25
    coefficients: tuple[Annotated[float, Range(-1e6, 1e6)], ...] = ()

    counts_steps: ClassVar = True

    def violations(self) -> Iterator[tuple[str, str]]:
        """A denoiser takes so many."""
        if len(self.coefficients) > MAX_COEFFICIENTS:
            yield "coefficients", f"must be at most {MAX_COEFFICIENTS}, not {len(self.coefficients)}"

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithTeaCache(denoiser, self, len(steps))


class _Known(NamedTuple):
    """A branch's last whole evaluation of every sample, its last one at all, and what changes add up to."""

    whole: Earlier
    last: Earlier
    sums: NDArray[np.float32]


class WithTeaCache:
    """All layers are taken to add what they did at the last computed step, as long as their input says so.

    The change of the first layer's modulated input from step to step, rescaled by a polynomial, adds up since
    the last computed step; below the threshold a step is not computed (Liu et al., 2024, section 3.3). The
    first and the last step are, as in the authors' script for FLUX.1. The denoiser decides, row by row: what
    it decides by comes from here, so that any replica decides the same.
    """

    def __init__(self, denoiser: FeatureReuser, choice: TeaCache, steps: int) -> None:
        self.reused_rows = 0
        self._denoiser = denoiser
        self._choice = choice
        self._steps_left = steps
        self._known: list[tuple[Branch, _Known]] = []

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """As loop.Denoiser. A branch that was not asked for before, or at another size, is computed."""
        self._steps_left -= 1
        if not self._steps_left:
            self._known = []
        before = [self._known_of(branch, latents.shape) for branch in branches]
        velocities, reused, sums = await self._denoiser.predict_reusing(
            latents, sigma, branches, guidance, [self._reuse(known) for known in before], target
        )
        self.reused_rows += int(reused.sum())
        now = evaluation(latents, sigma, guidance, target)
        others = [entry for entry in self._known if entry[0] not in branches]
        known = [
            _Known(mixed(now, known and known.whole, rows), now, added)
            for known, rows, added in zip(before, reused, sums, strict=True)
        ]
        self._known = [*others, *zip(branches, known, strict=True)]
        return velocities

    def _known_of(self, branch: Branch, shape: tuple[int, ...]) -> _Known | None:
        found = (known for other, known in self._known if other == branch)
        return next((known for known in found if known.last.latents.shape == shape), None)

    def _reuse(self, known: _Known | None) -> FeatureReuse:
        if known is None:
            return FeatureReuse(None, None)
        change = InputChange(known.last, known.sums, self._choice.coefficients)
        return FeatureReuse(self._choice.threshold, known.whole, change)
