"""The latents that the denoiser sees, and those that an autoencoder gives and takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class LatentSpace(Protocol):
    """The denoiser's latents of an autoencoder: what goes between the services."""

    @property
    def channels(self) -> int:
        """Of the denoiser's latents."""

    @property
    def patch(self) -> int:
        """The autoencoder's latent pixels a side that make one of the denoiser's."""

    def to_model(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents of the denoiser's, float32 [rows, channels, h, w]."""

    def to_denoiser(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the denoiser's latents of those that the autoencoder's have, float32."""


@dataclass(frozen=True)
class ScaledLatents:
    """One shift and scale for all channels, (z - shift) scale: Stable Diffusion's and FLUX.1's."""

    channels: int
    scaling_factor: float
    shift_factor: float
    patch: int = 1

    def to_model(self, latents: Tensor) -> Tensor:
        """See LatentSpace."""
        return latents / self.scaling_factor + self.shift_factor

    def to_denoiser(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """See LatentSpace."""
        return (mean - self.shift_factor) * self.scaling_factor, std * self.scaling_factor


@dataclass(frozen=True)
class NormalizedLatents:
    """A mean and a standard deviation for each channel, (z - mean) / std, of patches as channels.

    mean, std: float32 [channels] on the CPU. Channel c patch^2 + y patch + x is the autoencoder's channel c
        at row y and column x of a patch.
    """

    mean: Tensor
    std: Tensor
    patch: int

    @property
    def channels(self) -> int:
        """See LatentSpace."""
        return len(self.mean)

    def to_model(self, latents: Tensor) -> Tensor:
        """See LatentSpace."""
        return F.pixel_shuffle(latents * self._by_channel(self.std) + self._by_channel(self.mean), self.patch)

    def to_denoiser(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """See LatentSpace."""
        means, stds = (F.pixel_unshuffle(each, self.patch) for each in (mean, std))
        return (means - self._by_channel(self.mean)) / self._by_channel(self.std), stds / self._by_channel(
            self.std
        )

    def _by_channel(self, numbers: Tensor) -> Tensor:
        return numbers[:, None, None]
