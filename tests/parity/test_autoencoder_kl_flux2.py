"""FLUX.2's autoencoder gives diffusers' numbers, and the codec the latents that diffusers' denoiser sees."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.tiny_flux2 import flux2_vae
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl_flux2 import (
    AutoencoderKLFlux2,
    AutoencoderKLFlux2Config,
    build,
)

reference_library: Any = diffusers  # most of it has no types

TOLERANCE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"layers_per_block": 2},
    "a smaller decoder": {"block_out_channels": (8, 12, 8, 16), "decoder_block_out_channels": (4, 8, 4, 8)},
    "another epsilon": {"batch_norm_eps": 0.5, "use_quant_conv": False, "use_post_quant_conv": False},
}


def reference(variant: str) -> Any:
    torch.manual_seed(0)
    model = flux2_vae(**VARIANTS[variant])
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def ours(model: Any, dtype: torch.dtype = torch.float32) -> AutoencoderKLFlux2:
    return build(dict(model.config), model.state_dict(), "cpu", dtype)


def pipeline_of(model: Any) -> Any:
    """What diffusers does with its latents before and behind the denoiser."""
    pipeline = reference_library.Flux2KleinPipeline.__new__(reference_library.Flux2KleinPipeline)
    pipeline.__dict__["vae"] = model
    return pipeline


def relative_error(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48)])
def test_encoding_gives_the_latents_of_diffusers_denoiser(variant: str, height: int, width: int) -> None:
    model = reference(variant)
    pixels = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    codec = VaeCodec(ours(model))

    mean, std = codec.encode(pixels)

    rgb = 2 * (pixels.permute(0, 3, 1, 2) / 255) - 1
    expected = pipeline_of(model)._encode_vae_image(rgb, generator=None)
    assert relative_error(mean, expected) <= TOLERANCE
    patches = reference_library.Flux2KleinPipeline._patchify_latents(model.encode(rgb).latent_dist.std)
    scale = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)[:, None, None]
    assert relative_error(std, patches / scale) <= TOLERANCE
    assert (codec.latent_channels, codec.downscale) == (16, 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_gives_diffusers_pixels(variant: str) -> None:
    model = reference(variant)
    latents = torch.randn(2, 16, 3, 5)

    pixels = VaeCodec(ours(model)).decode(latents)

    scale = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)[:, None, None]
    unpatched = reference_library.Flux2KleinPipeline._unpatchify_latents(
        latents * scale + model.bn.running_mean[:, None, None]
    )
    decoded = model.decode(unpatched).sample
    assert relative_error(ours(model).decode(unpatched), decoded) <= TOLERANCE
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255
    assert pixels.shape == (2, 48, 80, 3)
    assert (pixels - expected.round()).abs().max() <= 1


def test_tiles_give_the_whole_pictures_pixels() -> None:
    model = ours(reference("as published"))
    latents = torch.randn(1, 16, 10, 9)

    tiled, whole = (VaeCodec(model, tile_size).decode(latents) for tile_size in (64, 0))

    assert (tiled.int() - whole.int()).abs().max() <= 1


def test_statistics_stay_in_float32() -> None:
    model = reference("as published")
    model.bn.running_mean += 1 / 3

    mean = ours(model, torch.bfloat16).state_dict()["bn.running_mean"]

    assert torch.equal(mean, model.bn.running_mean)


def test_statistics_of_no_latents_are_refused() -> None:
    model = reference("as published")
    model.bn.running_var[3] = -1

    with pytest.raises(ValueError, match=r"bn\.running_var holds numbers that are no variances"):
        ours(model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch_size": [2, 1]}, r"patch_size is \[2, 1\]; patches are square"),
        ({"decoder_block_out_channels": [32, 64]}, r"decoder_block_out_channels is \[32, 64\]; as many"),
        ({"decoder_block_out_channels": [32, 64, 64, 63]}, "multiples of norm_num_groups, 32"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu' is supported"),
    ],
)
def test_configs_of_other_models_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoencoderKLFlux2Config.from_dict(change)
