"""The transformer gives what diffusers' Krea2Transformer2DModel gives, for every variant of the config."""

from typing import Any

import diffusers
import torch
from torch import Tensor

from tests.parity.transformers import (
    Family,
    patches_that_a_change_of_the_first_reaches,
    relative_error,
)
from triptych_denoiser.models.krea2 import Krea2Transformer

reference_library: Any = diffusers  # most of it has no types

SMALL: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "text_hidden_dim": 24,
    "num_text_layers": 3,
    "text_num_attention_heads": 3,
    "text_num_key_value_heads": 3,
    "text_intermediate_size": 40,
    "axes_dims_rope": (4, 2, 2),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"num_layerwise_text_blocks": 2, "num_refiner_text_blocks": 2},
    "keys for each head": {"num_key_value_heads": 4, "text_num_key_value_heads": 1},
    "one block of each kind": {
        "num_layers": 1,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
    },
    "other axes, base and epsilon": {"axes_dims_rope": (2, 2, 4), "rope_theta": 500.0, "norm_eps": 1e-3},
}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {"Krea-2": ({}, 12_820)}
"""Raw and Turbo have the same: diffusers' defaults."""


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Tensor]:
    """Latents and sequences; sigmas that differ."""
    generator = torch.Generator().manual_seed(1)
    joint = config["num_text_layers"] * config["text_hidden_dim"]
    return {
        "latents": torch.randn(rows, config["in_channels"] // 4, height, width, generator=generator),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": torch.randn(rows, tokens, joint, generator=generator),
    }


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Tensor]) -> Tensor:
    """diffusers' velocity, its latents packed and its timesteps rounded as its pipeline does it."""
    pipeline = reference_library.Krea2Pipeline.__new__(reference_library.Krea2Pipeline)
    pipeline.__dict__ |= {"patch_size": 2, "vae_scale_factor": 8}
    latents, sequence = given["latents"], given["sequence"]
    rows, channels, height, width = latents.shape
    (packed,) = theirs(
        hidden_states=pipeline._pack_latents(latents, rows, channels, height, width),
        timestep=(1000 * given["sigma"] / 1000).to(latents.dtype),
        encoder_hidden_states=sequence.unflatten(-1, (theirs.config.num_text_layers, -1)),
        position_ids=pipeline.prepare_position_ids(sequence.shape[1], height // 2, width // 2, "cpu"),
        return_dict=False,
    )
    unpacked: Tensor = pipeline._unpack_latents(packed, 8 * height, 8 * width)
    return unpacked[:, :, 0]


FAMILY = Family(
    transformer=Krea2Transformer,
    reference="Krea2Transformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"timestep_embed_dim": 128}, "timestep_embed_dim is 128; Krea 2 transformers have 256"),
        ({"in_channels": 18}, "in_channels is 18, but must be a multiple of 4"),
        ({"axes_dims_rope": [4, 4]}, r"axes_dims_rope is \[4, 4\], but must be three even numbers"),
        ({"axes_dims_rope": [4, 2, 4]}, "whose sum is attention_head_dim = 8"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, but must be a multiple of num_key_value"),
        ({"text_num_attention_heads": 5}, "text_hidden_dim is 24, but must be a multiple of text_num"),
        ({"text_num_key_value_heads": 2}, "text_num_attention_heads is 3, but must be a multiple"),
    ],
    tokens=(1, 77, 512),
    inputs=inputs,
    expected_velocity=expected_velocity,
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


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


def test_bfloat16_velocities_are_near_those_of_diffusers() -> None:
    """Norms' weights are float32 in both."""
    theirs, given = reference(SMALL), inputs(SMALL, 3, 8, 12)
    model = ours(theirs, torch.bfloat16)
    assert model.final_norm.weight.dtype is torch.float32
    assert model.blocks[0].attention.norm_q.weight.dtype is torch.float32
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence")}
    theirs.bfloat16()
    for name, module in theirs.named_modules():
        if "norm" in name:
            module.float()

    with torch.inference_mode():
        assert relative_error(model(**given), expected_velocity(theirs, given)) <= 4e-2
