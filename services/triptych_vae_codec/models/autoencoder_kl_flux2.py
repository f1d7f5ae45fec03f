"""AutoencoderKLFlux2, FLUX.2's autoencoder: AutoencoderKL, and the statistics of its latents.

Source: diffusers' AutoencoderKLFlux2 (models/autoencoders/autoencoder_kl_flux2.py) and Flux2KleinPipeline,
whose denoiser sees 2 x 2 latent pixels as channels, normalised as by a batch norm in inference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triptych_vae_codec.models.autoencoder import Quantize, load
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from triptych_vae_codec.models.latent_space import LatentSpace, NormalizedLatents


@dataclass(frozen=True)
class AutoencoderKLFlux2Config(AutoencoderKLConfig):
    """The keys of `vae/config.json`, with diffusers' defaults. Scale and shift are not among them."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_block_out_channels: tuple[int, ...] | None = None
    layers_per_block: int = 2
    latent_channels: int = 32
    sample_size: int = 1024
    batch_norm_eps: float = 1e-4
    patch_size: tuple[int, ...] = (2, 2)

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the decoder's blocks, from the pixels on."""
        return self.decoder_block_out_channels or self.block_out_channels

    def __post_init__(self) -> None:
        super().__post_init__()
        channels, groups = self.decoder_channels, self.norm_num_groups
        if len(channels) != len(self.block_out_channels) or any(count % groups for count in channels):
            raise ValueError(
                f"decoder_block_out_channels is {list(channels)}; as many multiples of norm_num_groups, "
                f"{groups}, belong there as in block_out_channels, {list(self.block_out_channels)}"
            )
        if len(self.patch_size) != 2 or len(set(self.patch_size)) != 1 or self.patch_size[0] < 1:
            raise ValueError(f"patch_size is {list(self.patch_size)}; patches are square")


class AutoencoderKLFlux2(AutoencoderKL):
    """The autoencoder. Pixels are in [-1, 1]; latents are its own, which `latent_space` maps."""

    config: AutoencoderKLFlux2Config

    def __init__(self, config: AutoencoderKLFlux2Config) -> None:
        super().__init__(config)
        channels = config.latent_channels * config.patch_size[0] ** 2
        self.bn = nn.BatchNorm2d(channels, eps=config.batch_norm_eps, affine=False)  # holds, never runs

    @property
    def latent_space(self) -> LatentSpace:
        """The map to the latents that the denoiser sees: the statistics of training."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert variance is not None
        std = torch.sqrt(variance + self.config.batch_norm_eps)
        return NormalizedLatents(mean.cpu(), std.cpu(), self.config.patch_size[0])


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
) -> AutoencoderKLFlux2:
    """The autoencoder of a checkpoint, ready to run, its statistics in float32. As autoencoder_kl's build.

    Raises:
        ValueError: the config is not supported, the tensors do not fit it, or the statistics are of no
            latents.
    """
    with torch.device("meta"):
        model = AutoencoderKLFlux2(AutoencoderKLFlux2Config.from_dict(config)).to(dtype)
    model.bn.float()
    # A count of training, which files may lack; off "meta" it is not read.
    counted = "bn.num_batches_tracked" in set(tensors)
    model.bn.num_batches_tracked = torch.zeros((), dtype=torch.int64) if counted else None
    load(model, tensors, device, quantize)
    variance = model.bn.running_var
    if variance is not None and not variance.is_meta and not (variance >= 0).all():
        raise ValueError("bn.running_var holds numbers that are no variances")
    return model
