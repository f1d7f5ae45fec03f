"""A linear picture codec, 16 numbers per 8x8 pixels: the latent space that the default model's VAE learns.

The numbers are the first principal components of 8x8x3 patches. An autoencoder trained from nothing takes
long to find a latent space, and the transformer can only be trained once it stands; this one stands within
a minute, and the VAE learns it meanwhile. `python -m training.fit_codec` fits and saves it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PATCH = 8
LATENT_CHANNELS = 16
# Component k is divided by std_k ** WHITENING: at 1 all are equally loud, at 0 one drowns the rest.
WHITENING = 0.6
DEFAULT_PATH = Path(__file__).parent / "results" / "linear_codec.safetensors"


Pixels = Tensor | NDArray[np.uint8]


def to_patches(pixels: Pixels) -> Tensor:
    """[B, H, W, 3] uint8 to [B, H/8, W/8, 192] float32 in [-1, 1], each in the order channel, row, column."""
    batch, height, width, _ = pixels.shape
    scaled = torch.as_tensor(pixels).float() / 127.5 - 1
    grid = scaled.view(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return grid.permute(0, 1, 3, 5, 2, 4).flatten(3)


def from_patches(patches: Tensor) -> Tensor:
    """The inverse of `to_patches`, rounded and clamped to uint8."""
    grid = torch.unflatten(patches, 3, (3, PATCH, PATCH)).permute(0, 1, 4, 2, 5, 3)
    pixels = grid.reshape(grid.shape[0], grid.shape[1] * PATCH, grid.shape[3] * PATCH, 3)
    scaled: Tensor = (pixels * 0.5 + 0.5).clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8)


@dataclass(frozen=True)
class LinearCodec:
    """Latents are (patch - mean) @ analysis, then (z - shift_factor) * scaling_factor: mean 0 and std 1.

    mean [192], analysis [192, 16], synthesis [16, 192], float32. `shift_factor` and `scaling_factor` are
    the ones of the VAE's config.json, so unscaled latents are what an AutoencoderKL's encoder gives.
    """

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor
    scaling_factor: float
    shift_factor: float

    @classmethod
    def fit(cls, images: Pixels) -> "LinearCodec":
        """Principal components of the patches of `images` (uint8 [B, H, W, 3], sides multiples of 8)."""
        patches = to_patches(images).flatten(0, 2).double()
        mean = patches.mean(0)
        variance, components = torch.linalg.eigh((patches - mean).T.cov())
        gain = variance[-LATENT_CHANNELS:].flip(0) ** (WHITENING / 2)
        basis = components[:, -LATENT_CHANNELS:].flip(1)
        basis = basis * torch.where(basis.sum(0) < 0, -1, 1)
        unscaled = (patches - mean) @ (basis / gain)
        return cls(
            mean=mean.float(),
            analysis=(basis / gain).float().contiguous(),
            synthesis=(basis * gain).T.float().contiguous(),
            scaling_factor=round(1 / unscaled.std().item(), 4),
            shift_factor=round(unscaled.mean().item(), 4) + 0.0,  # no -0.0
        )

    def encode(self, pixels: Pixels) -> Tensor:
        """uint8 [B, H, W, 3] to the latents that the transformer sees: float32 [B, 16, H/8, W/8]."""
        return (self.encode_unscaled(pixels) - self.shift_factor) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of `encode` back to uint8 [B, H, W, 3]."""
        unscaled = latents / self.scaling_factor + self.shift_factor
        return from_patches(unscaled.permute(0, 2, 3, 1) @ self.synthesis + self.mean)

    def encode_unscaled(self, pixels: Pixels) -> Tensor:
        """Latents before shift and scale, as the VAE's encoder gives them."""
        return ((to_patches(pixels) - self.mean) @ self.analysis).permute(0, 3, 1, 2).contiguous()

    def save(self, path: Path = DEFAULT_PATH) -> None:
        """Writes one safetensors file; the two factors are in its metadata."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"mean": self.mean, "analysis": self.analysis, "synthesis": self.synthesis}
        factors = {"scaling_factor": str(self.scaling_factor), "shift_factor": str(self.shift_factor)}
        save_file(tensors, path, metadata=factors)

    @classmethod
    def load(cls, path: Path = DEFAULT_PATH) -> "LinearCodec":
        """Reads what `save` wrote."""
        with cast(Any, safe_open(path, framework="pt")) as file:
            scaling, shift = (float(file.metadata()[name]) for name in ("scaling_factor", "shift_factor"))
            mean, analysis, synthesis = (file.get_tensor(n) for n in ("mean", "analysis", "synthesis"))
            return cls(mean, analysis, synthesis, scaling, shift)
