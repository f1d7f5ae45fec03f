"""The default model's encoder is the linear codec, written into AutoencoderKL."""

import torch

from training.decoder import CONFIG, as_input
from training.linear_codec import LinearCodec, to_patches
from training.linear_encoder import write_linear_encoder
from training.psnr import psnr
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL


def smooth_pictures(count: int, height: int, width: int) -> torch.Tensor:
    """uint8 [count, height, width, 3] of large soft spots."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_the_linear_codec_keeps_smooth_pictures() -> None:
    codec, pictures = LinearCodec.load(), smooth_pictures(2, 64, 96)

    latents = codec.encode(pictures)

    assert latents.shape == (2, 16, 8, 12)
    assert psnr(codec.decode(latents), pictures) > 40


def test_the_written_encoder_gives_the_linear_codecs_latents() -> None:
    codec, pictures = LinearCodec.load(), smooth_pictures(4, 64, 96)
    model = AutoencoderKL(CONFIG).requires_grad_(False)
    write_linear_encoder(model.encoder, codec, to_patches(pictures).flatten(0, 2).T.cov())

    mean, std = model.encode(as_input(pictures))

    assert (mean - codec.encode_unscaled(pictures)).abs().max() < 0.01
    assert std.max() < 0.01
