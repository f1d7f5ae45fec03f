"""The noise levels that a request can choose: one small class each, in a table.

Each gives the levels of n steps from the highest, 1 in general, down to 0: float32 [n + 1]. Karras,
exponential and beta lie between the largest and the smallest level, 0 left out, of the checkpoint's own
schedule for a picture of so many tokens, as diffusers' FlowMatchEulerDiscreteScheduler.set_timesteps has it:
it shifts, stretches and converts then.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.sigmas import FlowSchedule


@dataclass(frozen=True)
class SigmaSchedule(ABC):
    """How the noise levels of a request are spaced.

    label: what image tools call it; None for the checkpoint's own.
    """

    label: ClassVar[str | None] = None

    @abstractmethod
    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """The levels for a picture of `image_tokens` tokens, by the checkpoint's `own` schedule: [n + 1]."""


@dataclass(frozen=True)
class CheckpointSigmas(SigmaSchedule):
    """The checkpoint's own."""

    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """See the class."""
        return own.sigmas(num_steps, image_tokens)


@dataclass(frozen=True)
class LinearSigmas(SigmaSchedule):
    """The checkpoint's shift of 1, 1 - 1/n, ..., 1/n, and 0: every level is shifted once."""

    label: ClassVar = "Simple"

    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """See the class."""
        return own.shifted(np.linspace(1, 1 / num_steps, num_steps), image_tokens)


@dataclass(frozen=True)
class KarrasSigmas(SigmaSchedule):
    """Even in sigma^(1 / rho) (Karras et al., 2022, equation 5)."""

    rho: Annotated[float, Range(1, 100)] = 7.0

    label: ClassVar = "Karras"

    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """See the class."""
        largest, smallest = (sigma ** (1 / self.rho) for sigma in _ends(own, num_steps, image_tokens))
        return _to_zero(np.linspace(largest, smallest, num_steps) ** self.rho)


@dataclass(frozen=True)
class ExponentialSigmas(SigmaSchedule):
    """Even in log(sigma) (k-diffusion's get_sigmas_exponential)."""

    label: ClassVar = "Exponential"

    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """See the class."""
        largest, smallest = (math.log(sigma) for sigma in _ends(own, num_steps, image_tokens))
        return _to_zero(np.exp(np.linspace(largest, smallest, num_steps)))


@dataclass(frozen=True)
class BetaSigmas(SigmaSchedule):
    """Quantiles of the beta distribution: dense at both ends where alpha and beta are below 1
    (Lee et al., 2024, Beta Sampling is All You Need).
    """

    alpha: Annotated[float, Range(0.1, 10)] = 0.6
    beta: Annotated[float, Range(0.1, 10)] = 0.6

    label: ClassVar = "Beta"

    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """See the class."""
        largest, smallest = _ends(own, num_steps, image_tokens)
        quantiles = [beta_quantile(float(p), self.alpha, self.beta) for p in np.linspace(1, 0, num_steps)]
        return _to_zero(smallest + (largest - smallest) * np.array(quantiles))


@dataclass(frozen=True)
class ExplicitSigmas(SigmaSchedule):
    """The request's own list, used as it is. A last 0 that is left out is added."""

    sigmas: tuple[Annotated[float, Range(0, 1)], ...]

    label: ClassVar = "Explicit"

    def __post_init__(self) -> None:
        """Ends the list at 0."""
        if self.sigmas and self.sigmas[-1] != 0:
            object.__setattr__(self, "sigmas", (*self.sigmas, 0.0))

    def violations(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the list: a field's path and what it must be."""
        if not self.sigmas or self.sigmas[0] == 0:
            yield "sigmas", "must hold at least one level above 0"
        for index, (before, sigma) in enumerate(pairwise(self.sigmas), 1):
            if np.float32(sigma) >= np.float32(before):
                yield f"sigmas[{index}]", f"must be below the level before, {before:g}"

    def levels(self, own: FlowSchedule, num_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """See the class."""
        return np.array(self.sigmas, np.float32)


SIGMA_SCHEDULES: Mapping[str, type[SigmaSchedule]] = {
    "checkpoint": CheckpointSigmas,
    "linear": LinearSigmas,
    "karras": KarrasSigmas,
    "exponential": ExponentialSigmas,
    "beta": BetaSigmas,
    "explicit": ExplicitSigmas,
}
"""By the name that requests choose them with."""


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
