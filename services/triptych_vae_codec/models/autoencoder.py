"""What the codec needs to know of an autoencoder, whatever its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from triptych.compute.loading import check_names, fill
from triptych_vae_codec.models.latent_space import LatentSpace

LOGVAR_RANGE = (-30.0, 20.0)


class Sizes(Protocol):
    """What a config says of sizes, in pixels.

    downscale: pixels per latent pixel, in each direction.
    sample_size: the height and width of the pictures of training.
    pixel_channels: 3, red, green and blue, or 4, with alpha.
    """

    @property
    def downscale(self) -> int:
        """See the class."""

    @property
    def sample_size(self) -> int:
        """See the class."""

    @property
    def pixel_channels(self) -> int:
        """See the class."""


class Coder(nn.Module):
    """An encoder, or a decoder."""

    conv_in: nn.Conv2d
    convolves_before_upsampling: ClassVar[bool] = False
    """Whether a decoder's segments have convolutions before they double the resolution."""

    def segments(self) -> list[nn.Sequential]:
        """Its layers in order, cut where the resolution changes.

        Of an encoder behind each downsampling, of a decoder before each upsampling.
        """
        raise NotImplementedError


class Autoencoder(nn.Module):
    """Pixels in [-1, 1] to latents and back; the latents are its own, which `latent_space` maps.

    quant_conv, post_quant_conv: behind the encoder and before the decoder.
    """

    config: Sizes
    encoder: Coder
    decoder: Coder
    quant_conv: nn.Module
    post_quant_conv: nn.Module

    @property
    def latent_space(self) -> LatentSpace:
        """The map to the latents that the denoiser sees."""
        raise NotImplementedError

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, [rows, latent_channels, h, w] each, of pixels [rows, pixel_channels, H, W]."""
        return self.normal(self.encoder(pixels))

    def normal(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of what the encoder gave."""
        mean, logvar = self.quant_conv(encoded).chunk(2, dim=1)
        return mean, (0.5 * logvar.clamp(*LOGVAR_RANGE)).exp()

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [rows, pixel_channels, H, W], not clamped, of latents [rows, latent_channels, h, w]."""
        return self.decoder(self.post_quant_conv(latents))  # type: ignore[no-any-return]


Quantize = Callable[[nn.Module, str, nn.Module], None]
"""Called with the autoencoder and the path and the module of everything that is loaded."""


def load(
    model: Autoencoder, tensors: Mapping[str, Tensor], device: str, quantize: Quantize | None = None
) -> None:
    """Gives an autoencoder on "meta" a checkpoint's weights. Raises ValueError if they do not fit it."""
    model.requires_grad_(False).eval()
    targets = model.state_dict()
    check_names(targets, tensors)
    fill(model, targets, tensors, torch.device(device), quantize and partial(quantize, model))
