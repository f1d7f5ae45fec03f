"""Solvers that forget: Euler, Heun and the midpoint rule."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents, Noise, Reached, Solution, Solver


@dataclass(frozen=True)
class EulerSolver(Solver):
    """Euler's step, x + (sigma' - sigma) v (diffusers' FlowMatchEulerDiscreteScheduler.step).

    Order 1, one evaluation a step.
    """

    label: ClassVar = "Euler"
    samples_flow_maps: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        for sigma, next_sigma in pairwise(sigmas):
            velocity = yield Evaluate(latents, sigma, next_sigma)
            latents = yield Reached(latents + (next_sigma - sigma) * velocity, next_sigma)


@dataclass(frozen=True)
class HeunSolver(Solver):
    """Heun's step, x + (sigma' - sigma) (v + v') / 2, where v' is the velocity at the end of Euler's step.

    Order 2, two evaluations a step; the last step, into sigma 0, is Euler's (Karras et al., 2022,
    algorithm 1; diffusers' FlowMatchHeunDiscreteScheduler.step). SD3's own levels end next to 0, and a step
    into that leaves noise in the picture.
    """

    label: ClassVar = "Heun"
    evaluates_once: ClassVar = False
    needs_even_levels: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        for sigma, next_sigma in pairwise(sigmas):
            velocity = yield Evaluate(latents, sigma)
            reached = latents + (next_sigma - sigma) * velocity
            if next_sigma > 0:
                end_velocity = yield Evaluate(reached, next_sigma)
                reached = latents + (next_sigma - sigma) * ((velocity + end_velocity) / 2)
            latents = yield Reached(reached, next_sigma)


@dataclass(frozen=True)
class MidpointSolver(Solver):
    """The midpoint rule, x + (sigma' - sigma) v_m, where v_m is the velocity half of Euler's step away.

    Order 2, two evaluations a step, none at sigma 0 (Runge, 1895; Lipman et al., 2022, sample with it).
    """

    label: ClassVar = "Midpoint"
    evaluates_once: ClassVar = False

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        for sigma, next_sigma in pairwise(sigmas):
            velocity = yield Evaluate(latents, sigma)
            half = (next_sigma - sigma) / 2
            velocity = yield Evaluate(latents + half * velocity, sigma + half)
            latents = yield Reached(latents + (next_sigma - sigma) * velocity, next_sigma)
