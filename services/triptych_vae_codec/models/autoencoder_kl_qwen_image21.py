"""AutoencoderKLQwenImage21, the autoencoder of Qwen-Image 2.1: pixels have an alpha channel.

Source: diffusers' AutoencoderKLQwenImage21 (models/autoencoders/autoencoder_kl_qwenimage21.py): as that of
Qwen-Image one of videos, for one frame. Around each change of resolution is a shortcut without weights; where
the video's spans two frames, it takes one of zeros before the first. Modules carry the names that they have
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych_vae_codec.models.autoencoder import Autoencoder, Coder, Quantize, load
from triptych_vae_codec.models.autoencoder_kl import ResnetBlock
from triptych_vae_codec.models.autoencoder_kl_qwen_image import (
    SAMPLE_SIZE,
    MidBlock,
    OneFrame,
    RMSNorm,
    check_statistics,
    downsampled,
    upsampled,
)
from triptych_vae_codec.models.latent_space import LatentSpace, NormalizedLatents


@dataclass(frozen=True)
class AutoencoderKLQwenImage21Config(ModelConfig):
    """The keys of `vae/config.json`, as diffusers writes them: statistics of latents must be given."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 64
    dim_mult: tuple[int, ...] = (1, 2, 4, 8, 8)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True, True)
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    is_residual: bool = True
    in_channels: int = 4
    out_channels: int = 4
    patch_size: int | None = None

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel, in each direction."""
        return int(2 ** (len(self.dim_mult) - 1))

    @property
    def sample_size(self) -> int:
        """The height and width of the pictures of training, which no key says."""
        return SAMPLE_SIZE

    @property
    def pixel_channels(self) -> int:
        """Red, green, blue and alpha."""
        return self.in_channels

    def __post_init__(self) -> None:
        sizes = (self.base_dim, self.z_dim, self.num_res_blocks, *self.dim_mult)
        if not self.dim_mult or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError("base_dim, z_dim, num_res_blocks and dim_mult must be at least 1")
        fixed = {
            "attn_scales": (),
            "is_residual": True,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": None,
        }
        for name, only in fixed.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name} is {getattr(self, name)}; Qwen-Image 2.1's autoencoder has {only}")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries; dim_mult has "
                f"{len(self.dim_mult)}, and one less belongs there"
            )
        check_statistics(self.latents_mean, self.latents_std, self.z_dim)


def averaged(x: Tensor, channels: int, halved: bool, in_time: bool) -> Tensor:
    """Means over groups of channels and, if halved, of 2 x 2 positions: [rows, channels, h, w].

    in_time: the groups have a frame of zeros before this one.
    """
    parts = torch.unflatten(F.pixel_unshuffle(x, 2) if halved else x, 1, (x.shape[1], -1))
    if in_time:
        parts = torch.cat([torch.zeros_like(parts), parts], dim=2)
    return parts.flatten(1, 2).unflatten(1, (channels, -1)).mean(dim=2)  # type: ignore[no-untyped-call,no-any-return]


def repeated(x: Tensor, channels: int, in_time: bool) -> Tensor:
    """Channels repeated to 2 x 2 positions: [rows, channels, 2h, 2w].

    in_time: to two frames too, of which this is the last.
    """
    frames = 2 if in_time else 1
    parts = x.repeat_interleave(4 * frames * channels // x.shape[1], dim=1)
    parts = torch.unflatten(parts, 1, (channels, frames, 4))[:, :, -1]
    return F.pixel_shuffle(parts.flatten(1, 2), 2)


class DownBlock(nn.Module):
    """Residual blocks, then half the resolution, except in the last block; beside them, means."""

    def __init__(self, channels_in: int, channels_out: int, count: int, last: bool, in_time: bool) -> None:
        super().__init__()
        self.channels_out, self.halved, self.in_time = channels_out, not last, in_time
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, RMSNorm) for i in range(count)
        )
        self.downsampler = None if last else downsampled(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to channels_out at the next resolution."""
        shortcut = averaged(x, self.channels_out, self.halved, self.in_time)
        for resnet in self.resnets:
            x = resnet(x)
        return shortcut + (x if self.downsampler is None else self.downsampler(x))


class UpBlock(nn.Module):
    """Residual blocks, then twice the resolution, except in the last block; beside them, repetition."""

    def __init__(self, channels_in: int, channels_out: int, count: int, last: bool, in_time: bool) -> None:
        super().__init__()
        self.channels_out, self.in_time = channels_out, in_time
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, RMSNorm) for i in range(count)
        )
        self.upsampler = None if last else upsampled(channels_out, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to channels_out at the next resolution."""
        before = x
        for resnet in self.resnets:
            x = resnet(x)
        if self.upsampler is None:
            return x
        return self.upsampler(x) + repeated(before, self.channels_out, self.in_time)  # type: ignore[no-any-return]


class Encoder(Coder):
    """[rows, 4, H, W] to [rows, 2 x z_dim, H / downscale, W / downscale]."""

    def __init__(self, config: AutoencoderKLQwenImage21Config) -> None:
        super().__init__()
        channels = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
        in_time = (*config.temperal_downsample, False)
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(*pair, config.num_res_blocks, level == len(config.dim_mult) - 1, in_time[level])
            for level, pair in enumerate(pairwise(channels))
        )
        self.mid_block = MidBlock(channels[-1])
        self.norm_out = RMSNorm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.z_dim, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean and log variance, one after the other in the channels."""
        x = self.conv_in(pixels)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))  # type: ignore[no-any-return]

    def segments(self) -> list[nn.Sequential]:
        """The same layers in order, cut behind each downsampling."""
        segments = [[block] for block in self.down_blocks]
        segments[0].insert(0, self.conv_in)
        segments[-1] += [self.mid_block, self.norm_out, nn.SiLU(), self.conv_out]
        return [nn.Sequential(*segment) for segment in segments]


class Decoder(Coder):
    """[rows, z_dim, h, w] to [rows, 4, h x downscale, w x downscale]."""

    convolves_before_upsampling = True

    def __init__(self, config: AutoencoderKLQwenImage21Config) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        channels = [base * multiple for multiple in (config.dim_mult[-1], *config.dim_mult[::-1])]
        in_time = (*config.temperal_downsample[::-1], False)
        self.conv_in = nn.Conv2d(config.z_dim, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(*pair, config.num_res_blocks + 1, level == len(config.dim_mult) - 1, in_time[level])
            for level, pair in enumerate(pairwise(channels))
        )
        self.norm_out = RMSNorm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Pixels, not clamped."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]

    def segments(self) -> list[nn.Sequential]:
        """The same layers in order, cut before each block that doubles the resolution."""
        *doubling, last = self.up_blocks
        segments = [[self.conv_in, self.mid_block], *([block] for block in doubling)]
        segments[-1] += [last, self.norm_out, nn.SiLU(), self.conv_out]
        return [nn.Sequential(*segment) for segment in segments]


class AutoencoderKLQwenImage21(Autoencoder):
    """The autoencoder. Pixels are in [-1, 1]; latents are its own, which `latent_space` maps."""

    config: AutoencoderKLQwenImage21Config

    def __init__(self, config: AutoencoderKLQwenImage21Config) -> None:
        super().__init__()
        self.config = config
        channels = config.z_dim
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    @property
    def latent_space(self) -> LatentSpace:
        """The map to the latents that the denoiser sees: the statistics of the config."""
        mean, std = self.config.latents_mean, self.config.latents_std
        return NormalizedLatents(torch.tensor(mean), torch.tensor(std), patch=1)


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
) -> AutoencoderKLQwenImage21:
    """The autoencoder of a checkpoint, ready to run. As autoencoder_kl's build.

    Raises:
        ValueError: the config is not supported or the tensors do not fit it.
    """
    with torch.device("meta"):
        model = AutoencoderKLQwenImage21(AutoencoderKLQwenImage21Config.from_dict(config)).to(dtype)
    load(model, OneFrame(tensors), device, quantize)
    return model
