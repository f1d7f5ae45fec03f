"""Solvers of the flow's equation d(latents)/d(sigma) = velocity: one generator each, in a table.

A solver yields Evaluate where it needs the velocity, and receives it; it yields Reached at the end of each
step, and receives the latents to go on with, which an edit may have changed. So it reads like its formula,
keeps its history in local variables, and knows nothing of guidance, batches or services.
"""

from collections.abc import Callable, Generator, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float32]
Noise: TypeAlias = Callable[[], Latents]
"""Fresh standard normal numbers of the latents' shape, every image's from its own seed."""


class Evaluate(NamedTuple):
    """A question: the velocity of these latents, [B, C, h, w], at this noise level."""

    latents: Latents
    sigma: np.float32


class Reached(NamedTuple):
    """A step's end: the latents, [B, C, h, w], and their noise level."""

    latents: Latents
    sigma: np.float32


Solution: TypeAlias = Generator[Evaluate | Reached, Latents, None]
Solver: TypeAlias = Callable[[Latents, NDArray[np.float32], Noise], Solution]
"""Starts from latents at sigmas[0] and goes on to the last; float32 throughout."""


def euler(latents: Latents, sigmas: NDArray[np.float32], noise: Noise) -> Solution:
    """Euler's step, x + (sigma' - sigma) v (diffusers' FlowMatchEulerDiscreteScheduler.step)."""
    for sigma, next_sigma in pairwise(sigmas):
        velocity = yield Evaluate(latents, sigma)
        latents = yield Reached(latents + (next_sigma - sigma) * velocity, next_sigma)


SOLVERS: Mapping[str, Solver] = {"Euler": euler}
