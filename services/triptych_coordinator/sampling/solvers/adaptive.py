"""A solver that chooses its steps, for every image its own."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents, Noise, Reached, Solution, Solver

Tolerance: TypeAlias = Annotated[float, Range(0.00001, 1)]

MAX_STEPS = 256
_SAFETY, _SHRINK, _GROW = np.float32(0.9), np.float32(0.2), np.float32(5)


@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """Ralston's third-order step with the midpoint rule in it, whose difference from it is the error.

    With velocities v1 at sigma, v2 half a step and v3 three quarters of a step h on,
    x' = x - h (2 v1 + 3 v2 + 4 v3) / 9, and the midpoint rule has x - h v2 (Ralston, 1962; the first three
    stages of Bogacki and Shampine, 1989). A step is kept if the root mean square of
    error / (absolute_tolerance + relative_tolerance max(|x|, |x'|)) is at most 1; the next one is
    0.9 error^(-1/3) times as long, 1/5 to 5 times. So no evaluation is at sigma 0, none is of use after an
    edit, and a kept step costs three.

    Every image has its own steps, between the levels of `sigmas`, at which all are told; one that is there
    early is evaluated with the others, which costs and changes nothing. No step is shorter than 1 / MAX_STEPS
    of the way, whatever its error: that bounds the evaluations.
    """

    absolute_tolerance: Tolerance = 0.01
    relative_tolerance: Tolerance = 0.01

    label: ClassVar = "Adaptive RK3(2)"
    chooses_steps: ClassVar = True
    evaluates_once: ClassVar = False

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        per_image = (len(latents), 1, 1, 1)
        shortest = (sigmas[0] - sigmas[-1]) / np.float32(MAX_STEPS)
        sigma = np.full(per_image, sigmas[0], np.float32)
        step = np.full(per_image, sigmas[0] - sigmas[1], np.float32)
        for next_sigma in sigmas[1:]:
            new = sigma > next_sigma
            while (moving := sigma > next_sigma).any():
                if new.any():
                    v1 = yield Evaluate(latents, sigma)
                lands = step >= sigma - next_sigma
                h: NDArray[np.float32] = np.where(lands, sigma - next_sigma, step)
                half = h * np.float32(0.5)
                v2 = yield Evaluate(latents - half * v1, sigma - half)
                v3 = yield Evaluate(latents - h * np.float32(0.75) * v2, sigma - h * np.float32(0.75))
                reached = latents - h / 9 * (2 * v1 + 3 * v2 + 4 * v3)
                largest = np.maximum(np.abs(latents), np.abs(reached))
                allowed = np.float32(self.absolute_tolerance) + np.float32(self.relative_tolerance) * largest
                error = _root_mean_squares(h / 9 * (2 * v1 - 6 * v2 + 4 * v3) / allowed)
                new = moving & ((error <= 1) | (h <= shortest))
                latents = np.where(new, reached, latents)
                sigma = np.where(new, np.where(lands, next_sigma, sigma - h), sigma)
                factor = np.clip(
                    _SAFETY * np.maximum(error, np.float32(1e-6)) ** np.float32(-1 / 3), _SHRINK, _GROW
                )
                longer = np.where(new & lands, np.maximum(step, factor * h), factor * h)
                step = np.where(moving, np.maximum(longer, shortest), step)
            latents = yield Reached(latents, next_sigma)


def _root_mean_squares(values: Latents) -> NDArray[np.float32]:
    """Of each image, [B, 1, 1, 1]; one by one, so that no sum is ordered by how many there are."""
    means = [np.sqrt(np.mean(np.square(image), dtype=np.float64)) for image in values]
    return np.array(means, np.float32).reshape(-1, 1, 1, 1)
