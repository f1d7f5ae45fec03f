"""The encoder of the default model's VAE: the linear codec, written into AutoencoderKL's layers, not trained.

Every residual branch is zero. What is left are the convolutions between resolutions, which gather 2x2, then
4x4, then 8x8 pixels, and at the end a norm and a SiLU. Both let signals pass: the norm's variance is that
of constant channels much larger than any signal, and silu(s) - silu(-s) = s. So the encoder's mean is the
codec's latents.
"""

import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.linear_codec import LATENT_CHANNELS, PATCH, LinearCodec
from triptych_vae_codec.models.autoencoder_kl import Encoder

ANCHOR = 256.0  # the constant channels; signals are of the order of 1
LOGVAR = -12.0


@torch.no_grad()
def write_linear_encoder(encoder: Encoder, codec: LinearCodec, patch_covariance: Tensor) -> None:
    """Sets all weights of an encoder with four blocks so that its mean is `codec.encode_unscaled`.

    `patch_covariance` [192, 192] decides which combinations of the 48 numbers of 4x4 pixels are kept, if the
    second block has fewer channels; 32 of them lose nothing that can be seen.
    """
    for parameter in encoder.parameters():
        parameter.zero_()
    shortcuts = [cast(Any, block).resnets[0].conv_shortcut for block in encoder.down_blocks]
    for shortcut in shortcuts[1:3]:
        write_identity(shortcut)
    down = [cast(Any, block).downsamplers[0].conv for block in encoder.down_blocks[:3]]
    write_identity(encoder.conv_in)
    write_gathering(down[0], torch.eye(12).view(3, 2, 2, 12))
    features, latents = factors(codec, patch_covariance, kept=min(48, down[1].out_channels))
    write_gathering(down[1], features)
    write_gathering(down[2], latents)
    down[2].bias[:LATENT_CHANNELS] = -codec.mean @ codec.analysis
    write_output(shortcuts[3], encoder.conv_norm_out, encoder.conv_out)


def factors(codec: LinearCodec, patch_covariance: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The codec's analysis in two steps: `kept` features of 4x4 pixels, and the latents of 2x2 such squares.

    Features are [12, 2, 2, kept] (input channel, row, column, output), latents [kept, 2, 2, 16]. The
    features are the best in least squares: singular vectors of the analysis, weighted by the covariance of
    the squares.
    """
    half = PATCH // 2
    square = torch.arange(3 * PATCH * PATCH).view(3, 2, half, 2, half).permute(1, 3, 0, 2, 4).reshape(4, 48)
    analysis = codec.analysis.double()[square]
    covariance = torch.stack([patch_covariance.double()[i][:, i] for i in square]).mean(0)
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(48))
    directions = torch.linalg.svd(root.T @ torch.cat(list(analysis), dim=1)).U[:, :kept]
    features = torch.linalg.solve_triangular(root.T, directions, upper=True)
    latents = directions.T @ root.T @ analysis
    # A row of the square is outer row, inner row; the first gathering made channels of the inner ones.
    features = features.view(3, 2, 2, 2, 2, kept).permute(0, 2, 4, 1, 3, 5).reshape(12, 2, 2, kept)
    return features.float(), latents.view(2, 2, kept, -1).permute(2, 0, 1, 3).float()


def write_identity(conv: nn.Conv2d) -> None:
    """Makes a convolution pass its input channels on, and leave further output channels zero."""
    middle = conv.kernel_size[0] // 2
    conv.weight[:, :, middle, middle] = torch.eye(conv.out_channels, conv.in_channels)


def write_gathering(conv: nn.Conv2d, weights: Tensor) -> None:
    """Makes a 3x3 convolution of stride 2 read 2x2 squares: weights [channels in, 2, 2, channels out]."""
    channels_in, channels_out = weights.shape[0], weights.shape[3]
    conv.weight[:channels_out, :channels_in, :2, :2] = weights.permute(3, 0, 1, 2)


def write_output(shortcut: nn.Conv2d, norm: nn.GroupNorm, conv_out: nn.Conv2d) -> None:
    """Carries every latent through the norm and the SiLU as s and -s, and subtracts them again.

    A group holds some latents, twice each, and constants in its other channels: +ANCHOR and -ANCHOR in turn.
    """
    assert shortcut.bias is not None
    assert conv_out.bias is not None
    size = norm.num_channels // norm.num_groups
    per_group = -(-LATENT_CHANNELS // norm.num_groups)
    anchors = size - 2 * per_group
    latents = iter(range(LATENT_CHANNELS))
    for first in range(0, norm.num_channels, size):
        last = first + 2 * per_group
        shortcut.bias[last : first + size] = ANCHOR * torch.tensor([1.0, -1.0]).repeat(anchors // 2)
        norm.weight[first:last] = ANCHOR * (anchors / size) ** 0.5
        for latent, channel in zip(itertools.islice(latents, per_group), range(first, last, 2), strict=False):
            for offset, sign in enumerate((1.0, -1.0)):
                shortcut.weight[channel + offset, latent] = sign
                conv_out.weight[latent, channel + offset, 1, 1] = sign
    conv_out.bias[LATENT_CHANNELS:] = LOGVAR
