"""Latents of the denoiser's space to uint8 pixels and back, one picture at a time. Knows nothing of gRPC."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.compute.thread import end_if_unwanted
from triptych_vae_codec.models.autoencoder import Autoencoder
from triptych_vae_codec.models.autoencoder_kl import ResnetBlock
from triptych_vae_codec.tiling import decode_by_tiles, encode_by_tiles


def warm_up(codec: VaeCodec) -> None:
    """Encodes and decodes a picture of about the size that the autoencoder was trained at.

    It is not square: torch would compile for squares alone. Pictures that are so small that a convolution
    takes another kernel (under 100 x 100 pixels) are compiled for when they come.
    """
    height = codec.model.config.sample_size // codec.downscale * codec.downscale
    shape = (1, height, height + codec.downscale, codec.pixel_channels)
    mean, _ = codec.encode(torch.zeros(shape, dtype=torch.uint8))
    codec.decode(mean)


def interruptible(model: Autoencoder) -> None:
    """Has a model end between its blocks when nobody waits for the picture any more."""
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            module.register_forward_pre_hook(end_if_unwanted)


class VaeCodec:
    """An autoencoder with the map to the latents that the denoiser sees.

    Pictures go through the model one by one: its convolutions choose a kernel by the number of rows, and a
    picture's bits must not depend on its company. Those of more than tile_size x tile_size pixels go in tiles
    (a multiple of `downscale`; 0: none do).
    """

    def __init__(self, model: Autoencoder, tile_size: int = 0) -> None:
        self.model = model
        self.tile_size = tile_size
        self._latent_space = model.latent_space
        self.latent_channels = self._latent_space.channels
        self.pixel_channels = model.config.pixel_channels
        self.downscale = self._latent_space.patch * model.config.downscale

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Float32 latents [B, C, h, w] of the denoiser to uint8 pixels [B, H, W, pixel_channels].

        They are on the CPU.

        Raises:
            ValueError: the decoder gave numbers that are not finite: the latents are too large for its dtype.
        """
        return torch.cat([self._decode_row(row) for row in latents])

    @torch.inference_mode()
    def encode(self, pixels: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """uint8 pixels [B, H, W, pixel_channels] to mean and std [B, C, h, w] of the denoiser's latents.

        They are float32, on the CPU. Where `masked`, [B, H, W], is not 0, the model sees a 0.

        Raises:
            ValueError: the encoder gave numbers that are not finite.
        """
        masks = [None] * len(pixels) if masked is None else masked
        means, stds = zip(*map(self._encode_row, pixels, masks), strict=True)
        return torch.cat(means), torch.cat(stds)

    def _decode_row(self, latents: Tensor) -> Tensor:
        decoded = self._finite(self._decode(self._to_model(self._latent_space.to_model(latents[None]))))
        pixels = (decoded * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def _encode_row(self, pixels: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor]:
        rgb = 2 * (pixels[None].permute(0, 3, 1, 2).float() / 255) - 1
        if masked is not None:
            rgb = rgb.masked_fill(masked.bool(), 0)
        mean, std = (self._finite(part) for part in self._encode(self._to_model(rgb)))
        return self._latent_space.to_denoiser(mean, std)

    def _decode(self, latents: Tensor) -> Tensor:
        if self._is_large(*(length * self.model.config.downscale for length in latents.shape[-2:])):
            return decode_by_tiles(self.model, latents, self.tile_size)
        return self.model.decode(latents)

    def _encode(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_large(*rgb.shape[-2:]):
            return encode_by_tiles(self.model, rgb, self.tile_size)
        return self.model.encode(rgb)

    def _is_large(self, height: int, width: int) -> bool:
        return 0 < self.tile_size**2 < height * width

    def _to_model(self, rows: Tensor) -> Tensor:
        weight = self.model.decoder.conv_in.weight
        return rows.contiguous().to(weight.device, weight.dtype)

    def _finite(self, rows: Tensor) -> Tensor:
        """The model's answer as float32 on the CPU, if every number of it is finite."""
        answer = rows.float().cpu()
        if not answer.isfinite().all():
            raise ValueError(f"the autoencoder overflowed in {str(rows.dtype).removeprefix('torch.')}")
        return answer
