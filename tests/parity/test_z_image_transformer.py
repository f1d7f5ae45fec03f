"""The transformer gives what diffusers' ZImageTransformer2DModel gives, for every variant of the config."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.parity.transformers import (
    Family,
    patches_that_a_change_of_the_first_reaches,
    relative_error,
)
from triptych_denoiser.models.z_image import ZImageTransformer

reference_library: Any = diffusers  # most of it has no types

SMALL = {
    "in_channels": 4,
    "dim": 48,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 40,
    "axes_dims": [4, 6, 6],
    "axes_lens": [130, 32, 32],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as released": {},
    "two refiners": {"n_refiner_layers": 2},
    "no refiner": {"n_refiner_layers": 0},
    "one layer": {"n_layers": 1},
    "16 channels": {"in_channels": 16},
    "wider than its embedding": {"dim": 288, "n_heads": 6, "n_kv_heads": 6, "axes_dims": [16, 16, 16]},
    "other scales": {"rope_theta": 100.0, "t_scale": 500.0, "norm_eps": 1e-3},
}
REAL = {  # Z-Image-Turbo, as its config.json has it
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {"Z-Image": (REAL, 6_155)}


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Tensor]:
    """Latents and sequences; sigmas that differ."""
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(rows, config["in_channels"], height, width, generator=generator),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": torch.randn(rows, tokens, config["cap_feat_dim"], generator=generator),
    }


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Tensor]) -> Tensor:
    """diffusers' velocity, its time turned around and its sign changed as its pipeline does it."""
    (outputs,) = theirs(
        list(given["latents"].unsqueeze(2)),
        (1000 - 1000 * given["sigma"]) / 1000,
        list(given["sequence"]),
        return_dict=False,
    )
    return -torch.stack(outputs).squeeze(2)


FAMILY = Family(
    transformer=ZImageTransformer,
    reference="ZImageTransformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"all_patch_size": [2, 4], "all_f_patch_size": [1, 1]}, r"all_patch_size is \[2, 4\]"),
        ({"siglip_feat_dim": 1152}, "siglip_feat_dim is 1152; supported are"),
        ({"qk_norm": False}, "qk_norm is false; Z-Image transformers have true"),
        ({"n_kv_heads": 1}, "n_kv_heads is 1, but must equal n_heads = 3"),
        ({"axes_dims": [4, 6]}, r"axes_dims is \[4, 6\], but must be three even numbers"),
        ({"axes_dims": [4, 6, 8]}, "whose sum is dim / n_heads = 48 / 3"),
        ({"axes_lens": [33, 32, 32]}, r"axes_lens is \[33, 32, 32\], but must be three numbers"),
    ],
    tokens=(1, 31, 32, 33, 128),
    inputs=inputs,
    expected_velocity=expected_velocity,
    sizes=[(1, 8, 8), (3, 6, 10), (2, 16, 20)],
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


def test_the_longest_text_is_that_of_the_first_axis() -> None:
    """128 tokens at 1 to 128, the image at 129: a table of 129 positions would be too short."""
    assert ours(reference(SMALL)).inputs.max_tokens == 128
    short = SMALL | {"axes_lens": [129, 32, 32]}
    assert ours(reference(short)).inputs.max_tokens == 96
    with pytest.raises(IndexError):
        error(reference(short), inputs(short, 1, 2, 2, 128))


@pytest.mark.parametrize("skipped", [(0,), (1,), (0, 1)])
@torch.inference_mode()
def test_skipped_layers_are_as_if_diffusers_had_them_not(skipped: tuple[int, ...]) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 2, 8, 6)
    velocity = ours(theirs)(**given, skipped_layers=skipped)
    for layer in reversed(skipped):
        del theirs.layers[layer]

    assert relative_error(velocity, expected_velocity(theirs, given)) <= 1e-5


@torch.inference_mode()
def test_in_perturbed_layers_patches_do_not_see_each_other() -> None:
    model = ours(reference(SMALL | {"n_layers": 1, "n_refiner_layers": 0}))
    given = inputs(SMALL, 1, 8, 8)

    assert patches_that_a_change_of_the_first_reaches(model, given, perturbed_layers=(0,)) == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given)) == 16


def test_bfloat16_velocities_are_near_those_of_diffusers() -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 3, 8, 12)
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence")}

    velocity = ours(theirs, torch.bfloat16)(**given)

    assert relative_error(velocity, expected_velocity(theirs.bfloat16(), given)) <= 1e-2


def test_the_public_checkpoint_makes_pictures_of_4096_pixels_of_1504_tokens() -> None:
    with torch.device("meta"):
        inputs = ZImageTransformer.from_config(REAL).inputs
    assert (inputs.max_size, inputs.max_tokens) == (512, 1504)
