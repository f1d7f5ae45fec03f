"""Solvers of the flow's equation d(latents)/d(sigma) = velocity: one pure function each, in a table."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float32]
Step: TypeAlias = Callable[[Latents, Latents, np.float32, np.float32], Latents]


def euler(latents: Latents, velocity: Latents, sigma: np.float32, next_sigma: np.float32) -> Latents:
    """Euler's step, x + (sigma' - sigma) v, in float32 (diffusers' FlowMatchEulerDiscreteScheduler.step)."""
    return latents + (next_sigma - sigma) * velocity


SOLVERS: Mapping[str, Step] = {"Euler": euler}
