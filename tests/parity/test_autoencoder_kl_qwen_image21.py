"""Qwen-Image 2.1's autoencoder gives diffusers' numbers, and the codec the latents of diffusers' denoiser."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_qwen_image21 import qwen_image21_vae
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl_qwen_image21 import (
    AutoencoderKLQwenImage21,
    AutoencoderKLQwenImage21Config,
    build,
)

TOLERANCE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"num_res_blocks": 2, "dim_mult": [1, 2, 4, 8, 8]},
    "other frames and widths": {
        "temperal_downsample": [True, False, True, False],
        "dim_mult": [2, 1, 4, 2, 2],
    },
    "one base": {"decoder_base_dim": None},
}


def reference(variant: str) -> Any:
    torch.manual_seed(0)
    model = qwen_image21_vae(**VARIANTS[variant])
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def ours(model: Any, dtype: torch.dtype = torch.float32) -> AutoencoderKLQwenImage21:
    return build(dict(model.config), model.state_dict(), "cpu", dtype)


def relative_error(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return float((value - expected).abs().max() / expected.abs().max())


def statistics(model: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents, by channel, as diffusers' pipelines have them."""
    mean, std = (torch.tensor(model.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return mean, std


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80)])
def test_encoding_gives_the_latents_of_diffusers_denoiser(variant: str, height: int, width: int) -> None:
    model = reference(variant)
    pixels = torch.randint(0, 256, (2, height, width, 4), dtype=torch.uint8)
    codec = VaeCodec(ours(model))

    mean, std = codec.encode(pixels)

    frames = 2 * (pixels.permute(0, 3, 1, 2) / 255)[:, :, None] - 1
    expected, (shift, scale) = model.encode(frames).latent_dist, statistics(model)
    assert relative_error(mean, (expected.mean[:, :, 0] - shift) / scale) <= TOLERANCE
    assert relative_error(std, expected.std[:, :, 0] / scale) <= TOLERANCE
    assert (codec.latent_channels, codec.downscale) == (8, 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_gives_diffusers_pixels(variant: str) -> None:
    model, (mean, std) = reference(variant), statistics(reference(variant))
    latents = torch.randn(2, 8, 3, 5)

    pixels = VaeCodec(ours(model)).decode(latents)

    own = latents * std + mean
    decoded = model.decode(own[:, :, None]).sample[:, :, 0]
    assert relative_error(ours(model).decode(own).clamp(-1, 1), decoded) <= TOLERANCE
    expected = (decoded / 2 + 0.5).permute(0, 2, 3, 1) * 255
    assert (pixels - expected.round()).abs().max() <= 1
    assert pixels.float().std() > 8


def test_tiles_give_the_whole_pictures_pixels() -> None:
    codec, tiled = (VaeCodec(ours(reference("as published")), size) for size in (0, 64))
    latents = torch.randn(1, 8, 10, 9)
    pixels = torch.randint(0, 256, (1, 160, 144, 4), dtype=torch.uint8)

    assert (tiled.decode(latents).int() - codec.decode(latents).int()).abs().max() <= 1
    for part, whole in zip(tiled.encode(pixels), codec.encode(pixels), strict=True):
        assert relative_error(part, whole) <= TOLERANCE


def test_bfloat16_is_near_diffusers() -> None:
    model = reference("as published")
    latents = torch.randn(1, 8, 4, 4)
    decoded = ours(model, torch.bfloat16).decode(latents.bfloat16()).clamp(-1, 1)

    expected = model.bfloat16().decode(latents.bfloat16()[:, :, None]).sample[:, :, 0]

    assert relative_error(decoded, expected) <= 5e-2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dim_mult": []}, "dim_mult must be at least 1"),
        ({"is_residual": False}, "is_residual is False"),
        ({"out_channels": 3}, r"out_channels is 3; Qwen-Image 2\.1's autoencoder has 4"),
        ({"temperal_downsample": [True]}, "temperal_downsample has 1 entries; dim_mult has 5"),
        ({"latents_mean": [0.0] * 3}, "latents_mean has 3 numbers and latents_std 0; latents have 64"),
    ],
)
def test_configs_of_other_models_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoencoderKLQwenImage21Config.from_dict(change)
