"""Solvers that draw fresh noise at every step, every image from its own seed's stream."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents, Noise, Reached, Solution, Solver


@dataclass(frozen=True)
class LcmSolver(Solver):
    """The sampling of consistency models: to the clean latents and back, (1 - sigma') x0 + sigma' noise.

    One evaluation a step (Song et al., 2023, algorithm 1; Luo et al., 2023; diffusers'
    FlowMatchLCMScheduler.step). For models that were distilled for it; stochastic Euler with a noise fraction
    of 1 is the same.
    """

    label: ClassVar = "LCM"
    draws_noise: ClassVar = True
    samples_flow_maps: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        return StochasticEulerSolver(noise_fraction=1.0).solve(latents, sigmas, noise)


@dataclass(frozen=True)
class StochasticEulerSolver(Solver):
    """(1 - sigma') x0 + sigma' (sqrt(1 - f^2) e + f noise), with x0 = x - sigma v and e = x + (1 - sigma) v.

    f is noise_fraction: 0 is Euler, 1 replaces all noise. It counts at every step, so many steps with much
    fresh noise narrow what is sampled: each forgets how x0 varied around its mean. One evaluation a step
    (f = 1: diffusers' FlowMatchEulerDiscreteScheduler with stochastic_sampling; between: the eta of Song et
    al., 2020, equation 12, in a flow).
    """

    noise_fraction: Annotated[float, Range(0, 1)] = 1.0

    label: ClassVar = "Stochastic Euler"
    draws_noise: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        fresh, kept = np.float32(self.noise_fraction), np.float32(math.sqrt(1 - self.noise_fraction**2))
        for sigma, next_sigma in pairwise(sigmas):
            velocity = yield Evaluate(latents, sigma, np.float32(0))  # it leads to x0
            clean, old_noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
            reached = (1 - next_sigma) * clean + next_sigma * (kept * old_noise + fresh * noise())
            latents = yield Reached(reached, next_sigma)


@dataclass(frozen=True)
class EulerAncestralSolver(Solver):
    """Euler's step to d = sigma' (1 + eta (sigma' / sigma - 1)), and up to sigma' again with fresh noise.

    x' = a x_d + sqrt(sigma'^2 - (a d)^2) noise with a = (1 - sigma') / (1 - d), so that image and noise have
    the weights of sigma'. eta 0 is Euler. One evaluation a step (k-diffusion's sample_euler_ancestral, for
    rectified flow as ComfyUI's sample_euler_ancestral_RF has it).
    """

    eta: Annotated[float, Range(0, 1)] = 1.0

    label: ClassVar = "Euler a"
    draws_noise: ClassVar = True
    samples_flow_maps: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        for sigma, next_sigma in pairwise(sigmas):
            level = float(next_sigma)
            down = level * (1 + self.eta * (level / float(sigma) - 1))
            velocity = yield Evaluate(latents, sigma, np.float32(down))
            scale = (1 - level) / (1 - down)
            fresh = math.sqrt(max(level**2 - (scale * down) ** 2, 0))
            reached = latents + (np.float32(down) - sigma) * velocity
            latents = yield Reached(np.float32(scale) * reached + np.float32(fresh) * noise(), next_sigma)
