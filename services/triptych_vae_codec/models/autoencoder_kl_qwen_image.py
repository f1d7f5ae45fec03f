"""AutoencoderKLQwenImage, the autoencoder of Qwen-Image and Krea 2: one of videos, for one frame.

Source: diffusers' AutoencoderKLQwenImage (models/autoencoders/autoencoder_kl_qwenimage.py). Its convolutions
over time see zeros before the first frame: of one frame alone, the last slice of each kernel acts and what
changes the number of frames (`time_conv`) does nothing. Modules carry the names that they have there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych_vae_codec.models.autoencoder import Autoencoder, Coder, Quantize, load
from triptych_vae_codec.models.autoencoder_kl import ResnetBlock
from triptych_vae_codec.models.latent_space import LatentSpace, NormalizedLatents

SAMPLE_SIZE = 1024
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
"""Of the published model's latents: diffusers' defaults."""


@dataclass(frozen=True)
class AutoencoderKLQwenImageConfig(ModelConfig):
    """The keys of `vae/config.json`, with diffusers' defaults."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    input_channels: int = 3
    latents_mean: tuple[float, ...] = MEAN
    latents_std: tuple[float, ...] = STD

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
        """Red, green and blue."""
        return self.input_channels

    def __post_init__(self) -> None:
        sizes = (self.base_dim, self.z_dim, self.num_res_blocks, *self.dim_mult)
        if not self.dim_mult or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError("base_dim, z_dim, num_res_blocks and dim_mult must be at least 1")
        if self.attn_scales:
            raise ValueError(f"attn_scales is {list(self.attn_scales)}; supported is none")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries; dim_mult has "
                f"{len(self.dim_mult)}, and one less belongs there"
            )
        if self.input_channels != 3:
            raise ValueError(f"input_channels is {self.input_channels}; pixels have 3")
        check_statistics(self.latents_mean, self.latents_std, self.z_dim)


def check_statistics(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raises ValueError unless there is a mean and a positive deviation for each channel of the latents."""
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"latents_mean has {len(mean)} numbers and latents_std {len(std)}; latents have {channels} "
            "channels"
        )
    if not all(deviation > 0 for deviation in std):
        raise ValueError("latents_std holds numbers that are no deviations")


class RMSNorm(nn.Module):
    """x / rms(x) over the channels of each position, times gamma; normalized in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [rows, channels, h, w]."""
        return F.normalize(x.float(), dim=1).to(x.dtype) * self.scale * self.gamma  # type: ignore[no-any-return]


class Attention(nn.Module):
    """x + attention(norm(x)) over all positions, one head as wide as the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [rows, channels, h, w]."""
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).mT[:, None].contiguous().chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(attended[:, 0].mT.reshape(x.shape))  # type: ignore[no-any-return]


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, RMSNorm) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [rows, channels, h, w]."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))  # type: ignore[no-any-return]


class Resample(nn.Module):
    """Half the resolution, or twice of it with half the channels: padded or repeated, then a convolution."""

    def __init__(self, before: nn.Module, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.resample = nn.Sequential(before, convolution)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels, h, w] to its resolution and channels."""
        return self.resample(x)  # type: ignore[no-any-return]


def downsampled(channels: int) -> Resample:
    """A 3x3 convolution with stride 2; the padding is on the right and below only."""
    return Resample(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def upsampled(channels: int, channels_out: int) -> Resample:
    """Each pixel becomes 2x2 equal ones, then a 3x3 convolution."""
    repeated = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
    return Resample(repeated, nn.Conv2d(channels, channels_out, 3, padding=1))


class UpBlock(nn.Module):
    """Residual blocks, one more than on the way down, then twice the resolution, except in the last block."""

    def __init__(self, channels_in: int, channels_out: int, count: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, RMSNorm) for i in range(count)
        )
        self.upsamplers = nn.ModuleList([] if last else [upsampled(channels_out, channels_out // 2)])

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to the next resolution."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(Coder):
    """[rows, 3, H, W] to [rows, 2 x z_dim, H / downscale, W / downscale]."""

    def __init__(self, config: AutoencoderKLQwenImageConfig) -> None:
        super().__init__()
        channels = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
        self.conv_in = nn.Conv2d(config.input_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise(channels)):
            for index in range(config.num_res_blocks):
                self.down_blocks.append(ResnetBlock(before if index == 0 else after, after, RMSNorm))
            if level < len(config.dim_mult) - 1:
                self.down_blocks.append(downsampled(after))
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
        segments: list[list[nn.Module]] = [[self.conv_in]]
        for block in self.down_blocks:
            segments[-1].append(block)
            if isinstance(block, Resample):
                segments.append([])
        segments[-1] += [self.mid_block, self.norm_out, nn.SiLU(), self.conv_out]
        return [nn.Sequential(*segment) for segment in segments]


class Decoder(Coder):
    """[rows, z_dim, h, w] to [rows, 3, h x downscale, w x downscale]."""

    def __init__(self, config: AutoencoderKLQwenImageConfig) -> None:
        super().__init__()
        channels = [config.base_dim * multiple for multiple in (config.dim_mult[-1], *config.dim_mult[::-1])]
        self.conv_in = nn.Conv2d(config.z_dim, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0])
        last = len(config.dim_mult) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(before // 2 if level else before, after, config.num_res_blocks + 1, level == last)
            for level, (before, after) in enumerate(pairwise(channels))
        )
        self.norm_out = RMSNorm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.input_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Pixels, not clamped."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]

    def segments(self) -> list[nn.Sequential]:
        """The same layers in order, cut before each upsampling."""
        blocks = [cast(UpBlock, block) for block in self.up_blocks]
        segments = [[self.conv_in, self.mid_block, *blocks[0].resnets]]
        segments += [[*before.upsamplers, *block.resnets] for before, block in pairwise(blocks)]
        segments[-1] += [self.norm_out, nn.SiLU(), self.conv_out]
        return [nn.Sequential(*segment) for segment in segments]


class AutoencoderKLQwenImage(Autoencoder):
    """The autoencoder. Pixels are in [-1, 1]; latents are its own, which `latent_space` maps."""

    config: AutoencoderKLQwenImageConfig

    def __init__(self, config: AutoencoderKLQwenImageConfig) -> None:
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


class OneFrame(Mapping[str, Tensor]):
    """The weights of an autoencoder of videos that act on a frame alone, in two dimensions."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name.endswith(".gamma"):
            return tensor.reshape(-1, 1, 1)
        return tensor[:, :, -1] if tensor.ndim == 5 else tensor

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._tensors if ".time_conv." not in name)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
) -> AutoencoderKLQwenImage:
    """The autoencoder of a checkpoint, ready to run. As autoencoder_kl's build.

    Raises:
        ValueError: the config is not supported or the tensors do not fit it.
    """
    with torch.device("meta"):
        model = AutoencoderKLQwenImage(AutoencoderKLQwenImageConfig.from_dict(config)).to(dtype)
    load(model, OneFrame(tensors), device, quantize)
    return model
