"""The autoencoder gives diffusers' numbers, both ways, for every variant of its config."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from triptych.checkpoints.opening import MODELS, open_checkpoint
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, build

TOLERANCE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "plain, as SD3": {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "quant convolutions, as SD1": {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "one quant convolution": {
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "use_post_quant_conv": False,
    },
    "no attention, an odd number of layers": {
        "block_out_channels": (8, 24, 16, 32),
        "layers_per_block": 3,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
    "one block": {
        "block_out_channels": (12,),
        "layers_per_block": 1,
        "norm_num_groups": 3,
        "latent_channels": 5,
    },
}
SIZES = [(3, 16, 40), (1, 32, 24), (2, 8, 8)]


def reference(config: dict[str, Any]) -> Any:
    """diffusers' model with random weights, no scale, shift or bias at its initial value."""
    torch.manual_seed(0)
    blocks = len(config["block_out_channels"])
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        **config,
    )
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.requires_grad_(False).eval()


def ours(model: Any) -> AutoencoderKL:
    return build(dict(model.config), model.state_dict(), "cpu", torch.float32)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("rows", "height", "width"), SIZES)
def test_encoding_is_diffusers(variant: str, rows: int, height: int, width: int) -> None:
    expected_model = reference(VARIANTS[variant])
    pixels = torch.rand(rows, 3, height, width) * 2 - 1

    mean, std = ours(expected_model).encode(pixels)

    expected = expected_model.encode(pixels).latent_dist
    assert relative_error(mean, expected.mean) <= TOLERANCE
    assert relative_error(std, expected.std) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("rows", "height", "width"), SIZES)
def test_decoding_is_diffusers(variant: str, rows: int, height: int, width: int) -> None:
    expected_model = reference(VARIANTS[variant])
    latents = torch.randn(rows, expected_model.config.latent_channels, height // 8, width // 8)

    pixels = ours(expected_model).decode(latents)

    assert relative_error(pixels, expected_model.decode(latents).sample) <= TOLERANCE


def test_extreme_variances_are_clamped_as_diffusers_does() -> None:
    expected_model = reference(VARIANTS["one block"])
    expected_model.quant_conv.bias[5:] = torch.tensor([-1000.0, 1000.0, 0.0, -31.0, 21.0])
    pixels = torch.rand(1, 3, 8, 8)

    _, std = ours(expected_model).encode(pixels)

    expected = expected_model.encode(pixels).latent_dist.std
    torch.testing.assert_close(std, expected, rtol=1e-4, atol=0)
    assert std[:, 0].max() == pytest.approx(3.06e-7, rel=1e-3)
    assert std[:, 1].min() == pytest.approx(22026.5, rel=1e-3)


@pytest.mark.parametrize("name", ["tiny", "triptych-small"])
def test_a_checkpoint_gives_diffusers_pixels(name: str, tiny_checkpoint: Path) -> None:
    folder = tiny_checkpoint if name == "tiny" else MODELS / name
    expected_model = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    config = expected_model.config
    checkpoint = open_checkpoint(str(folder))
    codec = VaeCodec(build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", torch.float32))
    latents = torch.randn(2, config.latent_channels, 6, 4, generator=torch.Generator().manual_seed(0))

    pixels = codec.decode(latents)

    with torch.inference_mode():
        decoded = expected_model.decode(latents / config.scaling_factor + config.shift_factor).sample
    expected = diffusers.image_processor.VaeImageProcessor().postprocess(decoded, output_type="np") * 255
    assert pixels.shape == (2, 48, 32, 3)
    assert (pixels.float() - torch.from_numpy(expected).round()).abs().max() <= 1
