"""The transformer gives what diffusers' Flux3Transformer2DModel gives, for every variant of the config."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from torch import Tensor

from tests.parity.transformers import (
    Family,
    patches_that_a_change_of_the_first_reaches,
    relative_error,
)
from triptych_denoiser.models.flux3 import Flux3Transformer

reference_library: Any = diffusers  # most of it has no types

SMALL: dict[str, Any] = {
    "in_channels": 16,
    "cond_in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 40,
    "axes_dims_rope": (4, 4, 4, 4),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "flow map": {"flow_map": True},
    "one block of each kind": {"num_layers": 1, "num_single_layers": 1},
    "shared blocks alone": {"num_layers": 0, "num_single_layers": 2},
    "other axes, base and MLPs": {"axes_dims_rope": (2, 6, 2, 6), "rope_theta": 500, "mlp_ratio": 2.5},
    "references of other channels": {"cond_in_channels": 12},
}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {
    "flux-3-image-klein-base": ({}, 5_538),
    "flux-3-image-klein": ({"flow_map": True}, 5_549),
}


def inputs(
    config: dict[str, Any],
    rows: int,
    height: int,
    width: int,
    tokens: int = 5,
    pictures: list[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Latents, sequences and references; sigmas, and targets of a flow map, that differ."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    given: dict[str, Any] = {
        "latents": normal(rows, config["in_channels"], height, width),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": normal(rows, tokens, config["joint_attention_dim"]),
        "references": [normal(rows, config["cond_in_channels"], *size) for size in pictures or ()],
    }
    targets = {"target_sigma": torch.linspace(0.8, 0.0, rows)} if config.get("flow_map") else {}
    return given | targets


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Any]) -> Tensor:
    """diffusers' velocity, its latents packed and its timesteps rounded as its pipeline does it."""
    latents, references = given["latents"], given.get("references", [])

    def packed(pictures: list[Tensor]) -> Tensor:
        return torch.cat([picture.flatten(2).transpose(1, 2) for picture in pictures], dim=1)

    def ids(picture: Tensor, index: int) -> Tensor:
        return _prepare_image_ids(*picture.shape[-2:], 0.5, -index)

    def timestep(sigma: Tensor) -> Tensor:
        return (1000 * sigma / 1000).to(latents.dtype)

    conditions = {}
    if references:
        conditions = {
            "image_cond_hidden_states": packed(references),
            "image_cond_ids": torch.cat([ids(each, 1 + i) for i, each in enumerate(references)]),
        }
    target = given.get("target_sigma")
    (velocity,) = theirs(
        hidden_states=packed([latents]),
        timestep=timestep(given["sigma"]),
        encoder_hidden_states=given["sequence"],
        txt_ids=Flux3TextRoPEInputsStep._prepare_text_ids(given["sequence"]),
        img_ids=ids(latents, 0),
        target_timestep=None if target is None else timestep(target),
        return_dict=False,
        **conditions,
    )
    unpacked: Tensor = velocity.transpose(1, 2).unflatten(2, latents.shape[-2:])
    return unpacked


FAMILY = Family(
    transformer=Flux3Transformer,
    reference="Flux3Transformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"eps": 1e-5}, r"eps is 1e-05; FLUX\.3 transformers have 1e-06"),
        ({"timestep_channels": 128}, "timestep_channels is 128"),
        ({"axes_dims_rope": [4, 6, 6]}, r"axes_dims_rope is \[4, 6, 6\], but must be four even numbers"),
        ({"axes_dims_rope": [4, 4, 4, 6]}, "whose sum is attention_head_dim = 16"),
    ],
    tokens=(1, 80, 400),
    inputs=inputs,
    expected_velocity=expected_velocity,
    sizes=[(1, 8, 8)],
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(
    ("rows", "height", "width", "pictures"),
    [(1, 8, 8, []), (3, 5, 7, [(5, 7)]), (2, 1, 33, [(3, 9), (8, 2)]), (2, 6, 5, [(1, 1), (6, 5), (40, 2)])],
)
def test_velocities_are_those_of_diffusers(
    variant: dict[str, Any], rows: int, height: int, width: int, pictures: list[tuple[int, int]]
) -> None:
    config = SMALL | variant

    assert error(reference(config), inputs(config, rows, height, width, pictures=pictures)) <= 1e-5


@pytest.mark.parametrize("flow_map", [False, True])
@pytest.mark.parametrize("tokens", [1, 80, 400])
def test_velocities_are_those_of_diffusers_for_short_and_long_text(tokens: int, flow_map: bool) -> None:
    config = SMALL | {"flow_map": flow_map}

    assert error(reference(config), inputs(config, 2, 4, 3, tokens)) <= 1e-5


def test_sigma_and_target_at_their_ends_are_those_of_diffusers() -> None:
    config = SMALL | {"flow_map": True}
    ends = {"sigma": torch.tensor([1.0, 0.0]), "target_sigma": torch.tensor([0.0, 1.0])}

    assert error(reference(config), inputs(config, 2, 8, 8) | ends) <= 1e-5


@pytest.mark.parametrize("skipped", [(0,), (1, 2), (0, 2)])
@torch.inference_mode()
def test_skipped_layers_are_as_if_diffusers_had_them_not(skipped: tuple[int, ...]) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 2, 5, 6, pictures=[(3, 2)])
    velocity = ours(theirs)(**given, skipped_layers=skipped)
    for layer in reversed(skipped):
        del theirs.single_transformer_blocks[layer]

    assert relative_error(velocity, expected_velocity(theirs, given)) <= 1e-5


@torch.inference_mode()
def test_in_perturbed_layers_tokens_do_not_see_each_other() -> None:
    model = ours(reference(SMALL | {"num_layers": 0, "num_single_layers": 1}))
    given = inputs(SMALL, 1, 4, 3, pictures=[(2, 2)])

    reached = patches_that_a_change_of_the_first_reaches(model, given, patch=1, perturbed_layers=(0,))
    assert reached == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given, patch=1)) == 12


@pytest.mark.parametrize("flow_map", [False, True])
def test_bfloat16_velocities_are_near_those_of_diffusers(flow_map: bool) -> None:
    """Norms of queries and keys stay in float32, and positions are turned in it, as there."""
    config = SMALL | {"flow_map": flow_map}
    theirs, given = reference(config), inputs(config, 3, 8, 12, pictures=[(4, 4)])
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence")}
    given["references"] = [each.bfloat16() for each in given["references"]]
    model = ours(theirs, torch.bfloat16)
    theirs = theirs.bfloat16()
    for name, module in theirs.named_modules():
        if name.endswith(("norm_q", "norm_k")):
            module.float()

    assert relative_error(model(**given), expected_velocity(theirs, given)) <= 3e-2
    assert model.blocks[0].get_submodule("attention.norm_q").weight.dtype == torch.float32


def test_a_flow_map_says_so_when_there_is_no_target() -> None:
    config = SMALL | {"flow_map": True}
    given = inputs(config, 1, 2, 2)
    del given["target_sigma"]

    with pytest.raises(ValueError, match="takes the noise level that the step goes to for every row"):
        ours(reference(config))(**given)
