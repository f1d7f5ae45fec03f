"""Flows whose velocity is a formula, and a loop that drives a solver along them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.noise import NoiseStream
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents

Flow = Callable[[Latents, Any], NDArray[np.float32]]
SHAPE = (4, 4, 4)
MEAN, STD = 0.3, 0.5


def gaussian(latents: Latents, sigma: Any) -> NDArray[np.float32]:
    """E[noise - x0 | x] of x = (1 - sigma) x0 + sigma noise, where x0 is normal with MEAN and STD."""
    alpha, level = 1.0 - np.float64(sigma), np.float64(sigma)
    variance = (alpha * STD) ** 2 + level**2
    centred = (latents - alpha * MEAN) / variance
    return np.asarray(level * centred - MEAN - alpha * STD**2 * centred, np.float32)


def gaussian_path(noise: Latents, sigma: float) -> Latents:
    """Where the flow of `gaussian` has these latents of sigma 1 at sigma."""
    alpha = 1 - sigma
    return np.float32(alpha * MEAN) + np.float32(np.sqrt((alpha * STD) ** 2 + sigma**2)) * noise


def curved(latents: Latents, sigma: Any) -> NDArray[np.float32]:
    """4 cos(4 sigma) / cosh(x): linear in neither, so that no rule is better here than its order says."""
    return np.asarray(4 * np.cos(4 * np.float64(sigma)) / np.cosh(np.float64(latents)), np.float32)


def curved_path(latents: Latents, first: float, last: float) -> Latents:
    """Where the flow of `curved` takes these latents of the first level: asinh(sin(4 sigma) + constant)."""
    constant = np.sinh(np.float64(latents)) - np.sin(4 * first)
    return np.asarray(np.arcsinh(constant + np.sin(4 * last)), np.float32)


def waves(latents: Latents, sigma: Any) -> NDArray[np.float32]:
    """Neither linear in the latents nor in sigma."""
    return np.asarray(np.sin(2 * latents + 3 * sigma) - latents, np.float32)


def solved(
    solver: str,
    flow: Flow,
    latents: Latents,
    sigmas: NDArray[np.float32],
    seeds: tuple[int, ...] = (0,),
    **parameters: float,
) -> tuple[Latents, int]:
    """The latents at the last level, and the number of evaluations. Noise comes behind the starting one's."""
    noise = NoiseStream(latents.shape[1:], seeds)
    noise()
    solution = SOLVERS[solver](**parameters).solve(latents, sigmas, noise)
    evaluations, levels = 0, []
    asked = next(solution)
    while True:
        if isinstance(asked, Evaluate):
            evaluations += 1
            answer = flow(asked.latents, asked.sigma)
            assert answer.dtype == asked.latents.dtype == np.asarray(asked.sigma).dtype == np.float32
        else:
            levels.append(asked.sigma)
            answer = asked.latents
        try:
            asked = solution.send(answer)
        except StopIteration:
            assert levels == sigmas[1:].tolist()
            return answer, evaluations
