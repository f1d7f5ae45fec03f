"""What a solver is: a generator that asks for velocities and tells the end of each step.

It solves the flow's equation d(latents)/d(sigma) = velocity. It yields Evaluate where it needs the velocity,
and receives it; it yields Reached at the end of each step, and receives the latents to go on with, which an
edit may have changed. So it reads like its formula, keeps its history in local variables, and knows nothing
of guidance, batches or services.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float32]
Sigma: TypeAlias = np.float32 | NDArray[np.float32]
"""The same for all images, or [B, 1, 1, 1]."""
Noise: TypeAlias = Callable[[], Latents]
"""Fresh standard normal numbers of the latents' shape, every image's from its own seed."""


class Evaluate(NamedTuple):
    """A question: the velocity of these latents, [B, C, h, w], at this noise level.

    Where every image has its own level, sigma is float32 [B, 1, 1, 1].
    """

    latents: Latents
    sigma: Sigma


class Reached(NamedTuple):
    """A step's end: the latents, [B, C, h, w], and their noise level."""

    latents: Latents
    sigma: np.float32


Solution: TypeAlias = Generator[Evaluate | Reached, Latents, None]
Solver: TypeAlias = Callable[..., Solution]
"""Takes latents at sigmas[0], the falling sigmas, a source of noise, and its own parameters by name; takes a
step to each further level. float32 throughout. Nothing is shared by the images of a batch, so each is to the
bit what it is alone."""
