"""Solvers that remember: exponential integrators over lambda = log((1 - sigma) / sigma).

With alpha = 1 - sigma, the equation is linear in the latents but for the clean latents x0 = x - sigma v that
the velocity points to. A step from s to t, h = lambda_t - lambda_s long, is x_t = r x_s + (1 - r) X, where
r = sigma_t / sigma_s and X is what is known of x0 along it: alpha_t (1 - exp(-h)) of the papers is 1 - r in a
flow, so that no logarithm of sigma 1 or 0 is needed for the step itself. With X = x0 it is Euler's.

The grid that SD3 uses with Euler has a last level next to 0, a long way off in lambda, over which nothing can
be known from before: there both are worse than Euler. So requests that name no sigma schedule get the linear
one (the checkpoint's shift of evenly spaced levels): but for a thousandth, the reference's own flow sigmas.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents, Noise, Reached, Solution, Solver


@dataclass(frozen=True)
class DpmSolverMultistep(Solver):
    """DPM-Solver++ 2M: X = x0 + h / (2 h_before) (x0 - x0_before).

    Order 2, one evaluation a step; of first order after sigma 1, where lambda is infinite, and into sigma 0
    (Lu et al., 2022, algorithm 2; diffusers' DPMSolverMultistepScheduler with use_flow_sigmas, midpoint).
    """

    label: ClassVar = "DPM++ 2M"
    needs_even_levels: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        slope = np.zeros_like(latents)
        before: Latents | None = None
        h_before = math.inf
        for sigma, next_sigma in pairwise(sigmas):
            velocity = yield Evaluate(latents, sigma)
            clean = latents - sigma * velocity
            h = _log_snr(next_sigma) - _log_snr(sigma)
            slope = _slope(clean, before, h, h_before)
            latents = yield Reached(_step(latents, clean + slope / 2, sigma, next_sigma), next_sigma)
            before, h_before = clean, h


@dataclass(frozen=True)
class UnipcSolver(Solver):
    """UniPC with B(h) = exp(h) - 1: the step of DPM-Solver++ 2M, corrected by the next evaluation to order 3.

    When x0 at the end of a step is known, the step's X becomes
    x0_before + rho_1 slope + rho_2 (x0 - x0_before), and x0 stays what it was for the uncorrected latents.
    One evaluation a step; of first order where 2M is (Zhao et al., 2023, algorithms 5 to 7; diffusers'
    UniPCMultistepScheduler with use_flow_sigmas, solver_order 2, bh2). The correction is added to what the
    solver was given to go on with, so that an edit stays.
    """

    label: ClassVar = "UniPC"
    needs_even_levels: ClassVar = True

    def solve(self, latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
        """See the class."""
        before: Latents | None = None
        slope = np.zeros_like(latents)
        h = h_before = math.inf
        shrink = np.float32(0)
        for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
            velocity = yield Evaluate(latents, sigma)
            clean = latents - sigma * velocity
            if before is not None:
                rho_1, rho_2 = _corrector(h, h_before) if step > 1 else (0.5, 0.5)
                change = np.float32(rho_1 - 0.5) * slope + np.float32(rho_2) * (clean - before)
                latents = latents + (1 - shrink) * change
            h_before, h = h, _log_snr(next_sigma) - _log_snr(sigma)
            slope, shrink = _slope(clean, before, h, h_before), next_sigma / sigma
            latents = yield Reached(_step(latents, clean + slope / 2, sigma, next_sigma), next_sigma)
            before = clean


def _step(latents: Latents, known: Latents, sigma: np.float32, next_sigma: np.float32) -> Latents:
    shrink = next_sigma / sigma
    return shrink * latents + (1 - shrink) * known


def _slope(clean: Latents, before: Latents | None, h: float, h_before: float) -> Latents:
    """How much x0 would change over a step of h, as it changed over the one before; 0 if that is unknown."""
    if before is None or math.isinf(h) or math.isinf(h_before):
        return np.zeros_like(clean)
    return np.float32(h / h_before) * (clean - before)


def _corrector(h: float, h_before: float) -> tuple[float, float]:
    """rho_1 and rho_2, which solve rho_1 + rho_2 = b_1, rk rho_1 + rho_2 = b_2 with rk = -h_before / h."""
    phi = -math.expm1(-h)
    b_1 = 1 / phi - 1 / h
    b_2 = (1 - 2 * (1 - phi / h) / h) / phi
    rho_1 = (b_1 - b_2) / (1 + h_before / h)
    return rho_1, b_1 - rho_1


def _log_snr(sigma: np.float32) -> float:
    level = float(sigma)
    if level >= 1:
        return -math.inf
    return math.log((1 - level) / level) if level > 0 else math.inf
