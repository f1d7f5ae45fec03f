"""AutoencoderKL, the convolutional autoencoder of Stable Diffusion 1 to 3.5 and FLUX.

Architecture: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022
(https://arxiv.org/abs/2112.10752), section 3.1 and appendix G. Modules carry the names that they have in
diffusers' AutoencoderKL, so that the state dict is the checkpoint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych_vae_codec.models.autoencoder import Autoencoder, Coder, Quantize, load
from triptych_vae_codec.models.latent_space import LatentSpace, ScaledLatents

EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLConfig(ModelConfig):
    """The keys of `vae/config.json` that decide the architecture and the map to the denoiser's latents."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel, in each direction."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def pixel_channels(self) -> int:
        """Red, green and blue."""
        return self.in_channels

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the decoder's blocks, from the pixels on."""
        return self.block_out_channels

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """As ModelConfig.from_dict; of some keys one value is supported, which no field needs to hold."""
        _check_block_types(config, "down_block_types", "DownEncoderBlock2D")
        _check_block_types(config, "up_block_types", "UpDecoderBlock2D")
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise ValueError("latents_mean and latents_std are not supported: they must be null")
        return super().from_dict(config)

    def __post_init__(self) -> None:
        sizes = (self.layers_per_block, self.latent_channels, self.norm_num_groups, *self.block_out_channels)
        if not self.block_out_channels or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(
                "block_out_channels, layers_per_block, latent_channels and norm_num_groups must be at least 1"
            )
        if (self.in_channels, self.out_channels) != (3, 3):
            raise ValueError(
                f"in_channels and out_channels are {self.in_channels} and {self.out_channels}; pixels have 3"
            )
        if self.act_fn != "silu":
            raise ValueError(f"act_fn is {self.act_fn!r}; only 'silu' is supported")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(
                f"block_out_channels {list(self.block_out_channels)} must be multiples of norm_num_groups, "
                f"{self.norm_num_groups}"
            )
        if not isinstance(self.sample_size, int) or self.sample_size < self.downscale:
            raise ValueError(
                f"sample_size is {self.sample_size}; it must be a picture's size in pixels, "
                f"at least {self.downscale}"
            )
        if not self.scaling_factor > 0:
            raise ValueError(f"scaling_factor is {self.scaling_factor}; it must be positive")


def _check_block_types(config: Mapping[str, Any], key: str, only: str) -> None:
    channels = config.get("block_out_channels", [64])
    types = config.get(key, [only] * len(channels))
    if any(block != only for block in types):
        raise ValueError(f"{key} is {list(types)}; only {only} is supported")
    if len(types) != len(channels):
        raise ValueError(
            f"{key} has {len(types)} entries, block_out_channels {len(channels)}; equally many belong"
        )


class GroupNorm(nn.GroupNorm):
    """GroupNorm that can be told the statistics, when `x` is a part of the picture that they are of."""

    statistics: tuple[Tensor, Tensor] | None = None
    """Mean and biased variance of each group, float32 [groups]. None: those of `x`."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [rows, channels, h, w]."""
        if self.statistics is None:
            return super().forward(x)
        mean, variance = (
            of.repeat_interleave(self.num_channels // self.num_groups) for of in self.statistics
        )
        weight, bias = self.weight.float(), self.bias.float()
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.eps)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on x where the channels change.

    `norm` makes the norm of so many channels.
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        changes = channels_in != channels_out
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to [rows, channels_out, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.conv_shortcut(x) + hidden  # type: ignore[no-any-return]


def group_norm(config: AutoencoderKLConfig) -> Callable[[int], GroupNorm]:
    """Makes the norms of a config's blocks."""
    return partial(GroupNorm, config.norm_num_groups, eps=EPS)


class Attention(nn.Module):
    """x + attention(norm(x)) over all positions, one head as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [rows, channels, h, w]."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]
        attended = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](attended)[:, 0].transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


class MidBlock(nn.Module):
    """Residual block, attention if the config has it, residual block, at the lowest resolution."""

    def __init__(self, channels: int, config: AutoencoderKLConfig) -> None:
        super().__init__()
        norm, groups = group_norm(config), config.norm_num_groups
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, norm) for _ in range(2))
        self.attentions = nn.ModuleList(
            [Attention(channels, groups)] if config.mid_block_add_attention else []
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [rows, channels, h, w]."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2; the padding is on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels, h, w] to [rows, channels, h / 2, w / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Each pixel becomes 2x2 equal ones, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels, h, w] to [rows, channels, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class DownBlock(nn.Module):
    """Residual blocks, then half the resolution, except in the last block."""

    def __init__(self, channels_in: int, channels_out: int, config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, group_norm(config))
            for i in range(config.layers_per_block)
        )
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to channels_out at the next resolution."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks, one more than on the way down, then twice the resolution, except in the last block."""

    def __init__(self, channels_in: int, channels_out: int, config: AutoencoderKLConfig, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels_in if i == 0 else channels_out, channels_out, group_norm(config))
            for i in range(config.layers_per_block + 1)
        )
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to channels_out at the next resolution."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(Coder):
    """[rows, 3, H, W] to [rows, 2 x latent_channels, H / downscale, W / downscale]."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(channels[max(i - 1, 0)], channels[i], config, last=i == len(channels) - 1)
            for i in range(len(channels))
        )
        self.mid_block = MidBlock(channels[-1], config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean and log variance, one after the other in the channels."""
        x = self.conv_in(pixels)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # type: ignore[no-any-return]

    def segments(self) -> list[nn.Sequential]:
        """The same layers in order, cut behind each downsampling."""
        segments = [[block] for block in self.down_blocks]
        segments[0].insert(0, self.conv_in)
        segments[-1] += [self.mid_block, self.conv_norm_out, nn.SiLU(), self.conv_out]
        return [nn.Sequential(*segment) for segment in segments]


class Decoder(Coder):
    """[rows, latent_channels, h, w] to [rows, 3, h x downscale, w x downscale]."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.decoder_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], config)
        self.up_blocks = nn.ModuleList(
            UpBlock(channels[max(i - 1, 0)], channels[i], config, last=i == len(channels) - 1)
            for i in range(len(channels))
        )
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Pixels, not clamped."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # type: ignore[no-any-return]

    def segments(self) -> list[nn.Sequential]:
        """The same layers in order, cut before each upsampling."""
        blocks = [cast(UpBlock, block) for block in self.up_blocks]
        segments = [[self.conv_in, self.mid_block, *blocks[0].resnets]]
        segments += [[*before.upsamplers, *block.resnets] for before, block in pairwise(blocks)]
        segments[-1] += [self.conv_norm_out, nn.SiLU(), self.conv_out]
        return [nn.Sequential(*segment) for segment in segments]


class AutoencoderKL(Autoencoder):
    """The autoencoder. Pixels are in [-1, 1]; latents are its own, which `latent_space` maps."""

    config: AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = (
            nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()
        )

    @property
    def latent_space(self) -> LatentSpace:
        """The map to the latents that the denoiser sees: the shift and scale of the config."""
        config = self.config
        return ScaledLatents(config.latent_channels, config.scaling_factor, config.shift_factor)


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
) -> AutoencoderKL:
    """The autoencoder of a checkpoint, ready to run. `config` and `tensors` as diffusers stores them.

    Raises:
        ValueError: the config is not supported or the tensors do not fit it.
    """
    with torch.device("meta"):
        model = AutoencoderKL(AutoencoderKLConfig.from_dict(config)).to(dtype)
    load(model, tensors, device, quantize)
    return model
