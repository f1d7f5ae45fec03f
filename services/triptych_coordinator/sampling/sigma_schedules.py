"""The noise levels that a request can choose: one pure function each, in a table.

Each gives the levels of n steps from the highest, 1 in general, down to 0: float32 [n + 1]. Karras,
exponential and beta lie between the largest and the smallest level, 0 left out, of the checkpoint's own
schedule for a picture of so many tokens, as diffusers' FlowMatchEulerDiscreteScheduler.set_timesteps has it:
it shifts, stretches and converts then.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.sigmas import FlowSchedule


def checkpoint(own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
    """The checkpoint's own."""
    return own.sigmas(num_steps, image_tokens)


def linear(own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
    """The checkpoint's shift of 1, 1 - 1/n, ..., 1/n, and 0: every level is shifted once."""
    return own.shifted(np.linspace(1, 1 / num_steps, num_steps), image_tokens)


def karras(own: FlowSchedule, num_steps: int, image_tokens: int, rho: float = 7.0) -> NDArray[np.float32]:
    """Even in sigma^(1 / rho) (Karras et al., 2022, equation 5)."""
    largest, smallest = (sigma ** (1 / rho) for sigma in _ends(own, num_steps, image_tokens))
    return _to_zero(np.linspace(largest, smallest, num_steps) ** rho)


def exponential(own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
    """Even in log(sigma) (k-diffusion's get_sigmas_exponential)."""
    largest, smallest = (math.log(sigma) for sigma in _ends(own, num_steps, image_tokens))
    return _to_zero(np.exp(np.linspace(largest, smallest, num_steps)))


def beta(
    own: FlowSchedule, num_steps: int, image_tokens: int, alpha: float = 0.6, beta: float = 0.6
) -> NDArray[np.float32]:
    """Quantiles of the beta distribution: dense at both ends where alpha and beta are below 1
    (Lee et al., 2024, Beta Sampling is All You Need).
    """
    largest, smallest = _ends(own, num_steps, image_tokens)
    quantiles = [beta_quantile(float(p), alpha, beta) for p in np.linspace(1, 0, num_steps)]
    return _to_zero(smallest + (largest - smallest) * np.array(quantiles))


def explicit(
    own: FlowSchedule, num_steps: int, image_tokens: int, sigmas: Sequence[float]
) -> NDArray[np.float32]:
    """The request's own list, which ends at 0."""
    return np.array(sigmas, np.float32)


SIGMA_SCHEDULES: Mapping[str, Callable[..., NDArray[np.float32]]] = {
    "checkpoint": checkpoint,
    "linear": linear,
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "explicit": explicit,
}


def beta_quantile(probability: float, alpha: float, beta: float) -> float:
    """The x in [0, 1] below which a beta-distributed number is with this probability, to 1e-15.

    By bisection of the incomplete beta function's power series, in the half where it converges: as
    scipy.stats.beta.ppf, which would bring 140 MB for this.
    """
    if upper := probability > _beta_probability(0.5, alpha, beta):
        probability, alpha, beta = 1 - probability, beta, alpha
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        below = _beta_probability(middle, alpha, beta) < probability
        low, high = (middle, high) if below else (low, middle)
    quantile = high if probability > 0 else 0.0
    return 1 - quantile if upper else quantile


def _beta_probability(x: float, alpha: float, beta: float) -> float:
    """I_x(alpha, beta) for x up to 1/2: x^a / B(a, b) times the sum of (1 - b)_n x^n / (n! (a + n))."""
    total, term = 0.0, 1.0
    for n in range(60):
        total += term / (alpha + n)
        term *= (n + 1 - beta) * x / (n + 1)
    logarithm = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return math.exp(logarithm) * math.pow(x, alpha) * total


def _ends(own: FlowSchedule, num_steps: int, image_tokens: int) -> tuple[float, float]:
    """The largest and the smallest level of the checkpoint's own schedule."""
    sigmas = own.sigmas(num_steps, image_tokens)
    return float(sigmas[0]), float(sigmas[-2])


def _to_zero(levels: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.append(levels, 0.0).astype(np.float32)
