"""Pictures in tiles: shapes, seams and what the codec makes of the default model's pictures."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from triptych.checkpoints import open_checkpoint
from triptych.settings import read_settings
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import build
from triptych_vae_codec.settings import VaeCodecSettings
from triptych_vae_codec.tiling import Geometry, Tiling, by_tiles

LENGTHS = range(1, 200)


@pytest.mark.parametrize("size", [8, 9, 12, 32])
@pytest.mark.parametrize("scale", [1, 8])
def test_every_axis_is_covered_by_tiles_of_one_size_whose_weights_add_up_to_one(
    size: int, scale: int
) -> None:
    tiling = Tiling(size)
    for length in LENGTHS:
        tiles = tiling.tiles(length)
        sums = torch.zeros(length * scale)
        for tile in tiles:
            assert tile.stop - tile.start == min(size, length)
            sums[tile.slice(scale)] += tile.weights(scale)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert all(after.start <= before.stop - tiling.overlap for before, after in pairwise(tiles))


def test_no_more_tiles_than_needed() -> None:
    assert [len(Tiling(128).tiles(length)) for length in (128, 129, 224, 225, 512)] == [1, 2, 2, 3, 5]


def test_the_edge_of_a_tile_counts_nothing_inside_the_picture() -> None:
    first, middle, last = Tiling(32).tiles(80)
    margin = (Tiling(32).overlap - Tiling(32).fade) // 2
    for weights in (first.weights(1).flip(0), middle.weights(1), middle.weights(1).flip(0), last.weights(1)):
        assert not weights[:margin].any()
    assert first.weights(1)[0] == last.weights(1)[-1] == 1


@pytest.mark.parametrize(("scale_in", "scale_out"), [(1, 8), (8, 1)])
def test_what_does_not_look_around_is_the_same_in_tiles(scale_in: int, scale_out: int) -> None:
    shapes = set()

    def compute(x: Tensor) -> Tensor:
        shapes.add(x.shape)
        scaled = x[..., ::8, ::8] if scale_in > 1 else x.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return torch.cat([scaled, -scaled], dim=1)

    x = torch.randn(1, 3, 40 * scale_in, 23 * scale_in)
    geometry = Geometry(scale_in, scale_out, 6)

    torch.testing.assert_close(by_tiles(compute, x, geometry, Tiling(16)), compute(x), rtol=1e-5, atol=1e-6)
    assert shapes == {(1, 3, 16 * scale_in, 16 * scale_in), x.shape}


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (1, 256)])
def test_a_picture_no_larger_than_a_tile_is_computed_whole(height: int, width: int) -> None:
    sizes = []

    def compute(x: Tensor) -> Tensor:
        sizes.append(x.shape[-2:])
        return x

    by_tiles(compute, torch.zeros(1, 1, height, width), Geometry(1, 1, 1), Tiling(16))
    assert sizes == [(height, width)]


def test_a_narrow_picture_has_narrow_tiles() -> None:
    sizes = []

    def compute(x: Tensor) -> Tensor:
        sizes.append(x.shape[-2:])
        return x

    by_tiles(compute, torch.zeros(1, 1, 8, 44), Geometry(1, 1, 1), Tiling(16))
    assert sizes == [(8, 16)] * 4


@pytest.mark.parametrize(("words", "size"), [([], 1024), (["none"], 0), (["0"], 0), (["512"], 512)])
def test_the_tile_size_is_a_number_or_none(words: list[str], size: int) -> None:
    arguments: list[str] = ["--tile-size", *words] if words else []
    assert read_settings(VaeCodecSettings, "test", arguments).tile_size == size


def scene(height: int, width: int) -> Tensor:
    """Discs of many colours and sizes on a light background, as the default model's: uint8 [1, H, W, 3]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.tensor([190, 215, 240]).expand(height, width, 3).clone()
    for _ in range(height * width // 4000):
        top, left, radius, *colour = torch.rand(6, generator=generator).tolist()
        inside = (y - top * height) ** 2 + (x - left * width) ** 2 < (8 + 50 * radius) ** 2
        picture[inside] = (255 * torch.tensor(colour)).long()
    return picture.to(torch.uint8)[None]


@pytest.fixture(scope="module")
def default_codec() -> VaeCodec:
    checkpoint = open_checkpoint("triptych-small")
    return VaeCodec(build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", torch.float32))


def test_seams_of_the_default_model_cannot_be_seen(default_codec: VaeCodec) -> None:
    """Tiles of 128 pixels, an eighth of the default, of a picture of 6."""
    tiled = VaeCodec(default_codec.model, Tiling(16))
    pixels = scene(192, 256)
    mean, _ = default_codec.encode(pixels)

    difference = (tiled.decode(mean).float() - default_codec.decode(mean).float()).abs()
    latent_difference = tiled.encode(pixels)[0] - mean

    psnr = 20 * math.log10(255 / difference.square().mean().sqrt())
    relative = latent_difference.std() / mean.std(), latent_difference.abs().max() / mean.std()
    print(f"MEASURED psnr {psnr:.1f} max {difference.max()} latents {relative}")
