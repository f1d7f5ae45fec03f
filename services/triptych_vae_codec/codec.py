"""Latents of the denoiser's space to uint8 pixels and back, one picture at a time. Knows nothing of gRPC."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL
from triptych_vae_codec.tiling import Geometry, Tiling, by_tiles


def warm_up(codec: VaeCodec) -> None:
    """Encodes and decodes a picture of the size that the autoencoder was trained at."""
    size = codec.model.config.sample_size // codec.downscale * codec.downscale
    mean, _ = codec.encode(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    codec.decode(mean)


class VaeCodec:
    """An autoencoder with the shift and scale to the latents that the denoiser sees.

    Pictures go through the model one by one: its convolutions choose a kernel by the number of rows, and a
    picture's bits must not depend on its company. Pictures larger than a tile go in tiles, unless `tiling`
    is None.
    """

    def __init__(self, model: AutoencoderKL, tiling: Tiling | None = None) -> None:
        self.model = model
        self.tiling = tiling
        self.latent_channels = model.config.latent_channels
        self.downscale = model.config.downscale

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Float32 latents [B, C, h, w], scaled, to uint8 pixels [B, H, W, 3] on the CPU.

        Raises:
            ValueError: the decoder gave numbers that are not finite: the latents are too large for its dtype.
        """
        return torch.cat([self._decode_row(row) for row in latents])

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 pixels [B, H, W, 3] to float32 mean and std [B, C, h, w] of the scaled latents, on the CPU.

        Raises:
            ValueError: the encoder gave numbers that are not finite.
        """
        means, stds = zip(*(self._encode_row(row) for row in pixels), strict=True)
        return torch.cat(means), torch.cat(stds)

    def _decode_row(self, latents: Tensor) -> Tensor:
        config = self.model.config
        unscaled = latents[None] / config.scaling_factor + config.shift_factor
        decoded = by_tiles(self._decode_tile, unscaled, Geometry(1, self.downscale, 3), self.tiling)
        pixels = decoded.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def _encode_row(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        geometry = Geometry(self.downscale, 1, 2 * self.latent_channels)
        encoded = by_tiles(self._encode_tile, pixels[None].permute(0, 3, 1, 2), geometry, self.tiling)
        mean, std = encoded.chunk(2, dim=1)
        return (mean - config.shift_factor) * config.scaling_factor, std * config.scaling_factor

    def _decode_tile(self, latents: Tensor) -> Tensor:
        """Unscaled latents [1, C, h, w] to pixels [1, 3, H, W], about -1 to 1."""
        return self._finite(self.model.decode(self._to_model(latents)))

    def _encode_tile(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [1, 3, H, W] to the mean and then the std of unscaled latents, [1, 2C, h, w]."""
        rgb = 2 * (pixels.float() / 255) - 1
        return torch.cat([self._finite(part) for part in self.model.encode(self._to_model(rgb))], dim=1)

    def _to_model(self, rows: Tensor) -> Tensor:
        weight = self.model.decoder.conv_in.weight
        return rows.contiguous().to(weight.device, weight.dtype)

    def _finite(self, rows: Tensor) -> Tensor:
        """The model's answer as float32 on the CPU, if every number of it is finite."""
        answer = rows.float().cpu()
        if not answer.isfinite().all():
            raise ValueError(f"the autoencoder overflowed in {str(rows.dtype).removeprefix('torch.')}")
        return answer
