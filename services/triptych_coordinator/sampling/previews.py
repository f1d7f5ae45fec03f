"""Previews: latents to colours by a linear map, without the VAE codec."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.solvers.solution import Latents


@dataclass(frozen=True)
class LatentRgb:
    """rgb = latents . factors + bias, from -1 to 1 as a decoder's output, of each pixel of a VAE's latents.

    Args:
        factors: float32 [C, 3].
        bias: float32 [3].
        patch: p of the denoiser's latents, whose channels are p x p of the VAE's pixels: (C, p, p).
    """

    factors: NDArray[np.float32]
    bias: NDArray[np.float32]
    patch: int = 1

    def pixels(self, clean: Latents) -> NDArray[np.uint8]:
        """uint8 [B, p h, p w, 3] of noise-free latents [B, C p p, h, w]."""
        images, _, height, width = clean.shape
        patches = clean.reshape(images, len(self.factors), self.patch, self.patch, height, width)
        by_pixel = patches.transpose(0, 4, 2, 5, 3, 1)
        vae_latents = by_pixel.reshape(images, height * self.patch, width * self.patch, len(self.factors))
        rgb = vae_latents @ self.factors + self.bias
        pixels: NDArray[np.uint8] = np.rint((rgb * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
        return pixels
