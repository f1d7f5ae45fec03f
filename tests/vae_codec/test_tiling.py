"""Pictures in tiles have the whole picture's numbers, up to rounding."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from triptych.checkpoints.opening import open_checkpoint
from triptych.serving.settings import read_settings
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, GroupNorm, build
from triptych_vae_codec.quantization import quantize_convolution
from triptych_vae_codec.settings import VaeCodecSettings
from triptych_vae_codec.tiling import decode_by_tiles, encode_by_tiles, statistics, stretches

SD3 = AutoencoderKLConfig(
    block_out_channels=(16, 16, 32, 32),
    layers_per_block=2,
    latent_channels=16,
    norm_num_groups=8,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
CONFIGS = {
    "as SD3 and FLUX": SD3,
    "as SD 1": replace(SD3, latent_channels=4, use_quant_conv=True, use_post_quant_conv=True),
    "two resolutions": replace(SD3, block_out_channels=(16, 32), layers_per_block=1),
    "no attention": replace(SD3, mid_block_add_attention=False, layers_per_block=3),
}
TILE = 64
NARROW = ((64, 72), (8, 640), (640, 8), (136, 64))


def random_model(config: AutoencoderKLConfig) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(config).requires_grad_(False).eval()


def uneven_picture(height: int, width: int) -> Tensor:
    """Discs on the left, nothing on the right: no tile's statistics are the picture's. uint8 [1, H, W, 3]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.tensor([190, 215, 240]).expand(height, width, 3).clone()
    for _ in range(40):
        top, left, radius, *colour = torch.rand(6, generator=generator).tolist()
        inside = (y - top * height) ** 2 + (x - left * width / 2) ** 2 < (4 + 30 * radius) ** 2
        picture[inside] = (255 * torch.tensor(colour)).long()
    return picture.to(torch.uint8)[None]


def as_input(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [*((name, 152, 200) for name in CONFIGS), *((next(iter(CONFIGS)), *size) for size in NARROW)],
)
def test_tiles_give_the_whole_pictures_numbers(name: str, height: int, width: int) -> None:
    """The truth is float64's: torch's own GroupNorm is off by more where a group hardly varies."""
    model, exact = random_model(CONFIGS[name]), random_model(CONFIGS[name]).double()
    pixels = as_input(uneven_picture(height, width))
    with torch.inference_mode():
        mean, std = encode_by_tiles(model, pixels, TILE)
        true_mean, true_std = exact.encode(pixels.double())
        decoded = decode_by_tiles(model, true_mean.float(), TILE)

        assert relative_error(mean, true_mean) < 1e-5
        assert relative_error(std, true_std) < 1e-5
        assert relative_error(decoded, exact.decode(true_mean)) < 2e-5


def test_no_layer_sees_more_than_a_tile_where_the_resolution_is_high() -> None:
    model, seen = random_model(SD3), []

    def note(module: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        seen.append(inputs[0].shape[-2] * inputs[0].shape[-1])

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        decode_by_tiles(model, torch.randn(1, 16, 32, 48), TILE)
        encode_by_tiles(model, torch.randn(1, 3, 256, 384), TILE)

    assert max(seen) <= (TILE + 2 * 14) ** 2


def test_afterwards_a_picture_has_its_own_statistics_again() -> None:
    model, latents = random_model(SD3), torch.randn(1, 16, 12, 12)
    before = model.decode(latents)
    decode_by_tiles(model, torch.randn(1, 16, 20, 20), TILE)

    assert all(norm.statistics is None for norm in model.modules() if isinstance(norm, GroupNorm))
    assert torch.equal(model.decode(latents), before)


def test_quantized_convolutions_are_tiled_too() -> None:
    weights = random_model(SD3).state_dict()
    model = build(SD3.__dict__, weights, "cpu", torch.float32, quantize_convolution)
    latents = torch.randn(1, 16, 17, 20)
    with torch.inference_mode():
        assert relative_error(decode_by_tiles(model, latents, TILE), model.decode(latents)) < 1e-4


def test_half_precision_is_as_near_to_the_truth_as_without_tiles() -> None:
    full, half = random_model(SD3), random_model(SD3).to(torch.bfloat16)
    latents = torch.randn(1, 16, 17, 20)
    with torch.inference_mode():
        truth = full.decode(latents)
        whole = half.decode(latents.bfloat16()).float()
        tiled = decode_by_tiles(half, latents.bfloat16(), TILE).float()

    assert (tiled - truth).square().mean() < 1.2 * (whole - truth).square().mean()


@pytest.mark.parametrize("size", [1, 8, 9, 32])
@pytest.mark.parametrize("length", [1, 2, 8, 31, 33, 200])
def test_an_axis_is_divided_evenly(size: int, length: int) -> None:
    parts = stretches(length, size, 3)

    assert [parts[0].start, parts[-1].stop] == [0, length]
    assert all(before.stop == after.start for before, after in pairwise(parts))
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert all(
        part.first == max(part.start - 3, 0) and part.last == min(part.stop + 3, length) for part in parts
    )


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    whole = 100 + torch.randn(1, 6, 40, 30) * torch.arange(1, 7)[:, None, None]
    mean, variance = statistics([whole[..., :7], whole[..., 7:8], whole[..., 8:]], 3)

    grouped = whole.double().reshape(3, -1)
    torch.testing.assert_close(mean.double(), grouped.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), grouped.var(1, correction=0), rtol=1e-5, atol=0)


def test_nothing_of_the_default_models_seams_can_be_seen() -> None:
    checkpoint = open_checkpoint("triptych-small")
    model = build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", torch.float32)
    whole, tiled = VaeCodec(model), VaeCodec(model, TILE)
    pixels = uneven_picture(192, 256)
    mean, _ = whole.encode(pixels)

    difference = (tiled.decode(mean).int() - whole.decode(mean).int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3
    assert relative_error(tiled.encode(pixels)[0], mean) < 1e-5


@pytest.mark.parametrize(("words", "size"), [([], 1024), (["none"], 0), (["0"], 0), (["512"], 512)])
def test_the_tile_size_is_a_number_or_none(words: list[str], size: int) -> None:
    arguments: list[str] = ["--tile-size", *words] if words else []
    assert read_settings(VaeCodecSettings, "test", arguments).tile_size == size
