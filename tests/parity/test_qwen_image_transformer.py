"""The transformer gives what diffusers' QwenImageTransformer2DModel gives, with references too."""

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
from triptych_denoiser.models.qwen_image import QwenImageTransformer

reference_library: Any = diffusers  # most of it has no types

SMALL: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 6, 6),
}
CLEAN_REFERENCES = {"zero_cond_t": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "one block": {"num_layers": 1},
    "other axes": {"axes_dims_rope": (8, 2, 6)},
    "references without noise": CLEAN_REFERENCES,
}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen-Image": ({}, 20_430),
    "Qwen-Image-Edit-2511": (CLEAN_REFERENCES, 20_430),
}
"""diffusers' defaults; 2512 and Edit up to 2509 have the same."""


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Any]:
    """Latents and sequences; sigmas that differ."""
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(rows, config["out_channels"], height, width, generator=generator),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": torch.randn(rows, tokens, config["joint_attention_dim"], generator=generator),
    }


def pictures(rows: int, *sizes: tuple[int, int]) -> list[Tensor]:
    """References of every row."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(rows, 4, *size, generator=generator) for size in sizes]


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Any]) -> Tensor:
    """diffusers' velocity, its latents packed and its timesteps rounded as its pipelines do it."""
    pipeline = reference_library.QwenImageEditPlusPipeline
    seen = [given["latents"], *given.get("references", ())]
    packed = [pipeline._pack_latents(each, *each.shape) for each in seen]
    (velocity,) = theirs(
        hidden_states=torch.cat(packed, dim=1),
        timestep=(1000 * given["sigma"]).to(seen[0].dtype) / 1000,
        encoder_hidden_states=given["sequence"],
        img_shapes=[[(1, each.shape[-2] // 2, each.shape[-1] // 2) for each in seen]] * len(seen[0]),
        return_dict=False,
    )
    height, width = seen[0].shape[-2:]
    unpacked: Tensor = pipeline._unpack_latents(velocity[:, : packed[0].shape[1]], 8 * height, 8 * width, 8)
    return unpacked[:, :, 0]


FAMILY = Family(
    transformer=QwenImageTransformer,
    reference="QwenImageTransformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"patch_size": 1}, "patch_size is 1; Qwen-Image transformers have 2"),
        ({"use_additional_t_cond": True}, "use_additional_t_cond is true: Qwen-Image-Layered"),
        ({"use_layer3d_rope": True}, "use_layer3d_rope is true"),
        ({"out_channels": 8}, "in_channels is 16, but must be 4 times out_channels = 8"),
        ({"axes_dims_rope": [4, 6, 8]}, "whose sum is attention_head_dim = 16"),
    ],
    tokens=(1, 77, 1024),
    inputs=inputs,
    expected_velocity=expected_velocity,
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


@pytest.mark.parametrize("variant", [{}, CLEAN_REFERENCES], ids=["at the noise level", "without noise"])
@pytest.mark.parametrize("sizes", [[(6, 10)], [(2, 2), (14, 6), (4, 26)]], ids=["one", "three"])
def test_references_are_seen_as_diffusers_sees_them(
    variant: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    config = SMALL | variant
    given = inputs(config, 2, 6, 10) | {"references": pictures(2, *sizes)}

    assert error(reference(config), given) <= 1e-5


@torch.inference_mode()
def test_skipped_layers_are_as_if_diffusers_had_them_not() -> None:
    theirs, given = reference(SMALL | {"num_layers": 3}), inputs(SMALL, 2, 4, 6)
    velocity = ours(theirs)(**given, skipped_layers=(0, 2))
    del theirs.transformer_blocks[2], theirs.transformer_blocks[0]

    assert relative_error(velocity, expected_velocity(theirs, given)) <= 1e-5


@torch.inference_mode()
def test_in_perturbed_layers_patches_do_not_see_each_other() -> None:
    model, given = ours(reference(SMALL | {"num_layers": 1})), inputs(SMALL, 1, 6, 8)

    reached = patches_that_a_change_of_the_first_reaches(model, given, perturbed_layers=(0,))
    assert reached == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given)) == 12


@pytest.mark.parametrize("variant", [{}, CLEAN_REFERENCES], ids=["at the noise level", "without noise"])
def test_bfloat16_velocities_are_near_those_of_diffusers(variant: dict[str, Any]) -> None:
    theirs, given = reference(SMALL | variant), inputs(SMALL, 3, 8, 12)
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence")}
    given["references"] = [each.bfloat16() for each in pictures(3, (4, 6))]

    with torch.inference_mode():
        velocity = ours(theirs, torch.bfloat16)(**given)

    assert relative_error(velocity, expected_velocity(theirs.bfloat16(), given)) <= 4e-2
