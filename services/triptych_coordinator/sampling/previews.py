"""Previews: latents to colours by a linear map, without the VAE codec."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.solvers.solution import Latents


@dataclass(frozen=True)
class LatentRgb:
    """rgb = latents . factors + bias, from -1 to 1 as a decoder's output: a colour per latent pixel.

    Args:
        factors: float32 [C, 3].
        bias: float32 [3].
    """

    factors: NDArray[np.float32]
    bias: NDArray[np.float32]

    def pixels(self, clean: Latents) -> NDArray[np.uint8]:
        """uint8 [B, h, w, 3] of noise-free latents [B, C, h, w]."""
        rgb = np.moveaxis(clean, 1, 3) @ self.factors + self.bias
        pixels: NDArray[np.uint8] = np.rint((rgb * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
        return pixels
