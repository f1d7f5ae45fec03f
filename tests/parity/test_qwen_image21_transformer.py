"""The transformer gives what diffusers' QwenImage21Transformer2DModel gives."""

from collections.abc import Sequence
from itertools import zip_longest
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
from triptych_denoiser.models.qwen_image21 import QwenImage21Transformer

reference_library: Any = diffusers  # most of it has no types

SMALL: dict[str, Any] = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "context_in_dim": 24,
    "mlp_ratio": 2,
    "axes_dims_rope": (4, 6, 6),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"mlp_ratio": 3},
    "one block": {"num_layers": 1},
    "other axes": {"axes_dims_rope": (8, 2, 6), "out_channels": None},
}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {"Qwen-Image-2.1": ({}, 7_115)}
"""diffusers' defaults; Turbo has the same."""


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Tensor]:
    """Latents and sequences; sigmas that differ."""
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(rows, config["in_channels"], height, width, generator=generator),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": torch.randn(rows, tokens, config["context_in_dim"], generator=generator),
    }


@torch.inference_mode()
def expected_velocity(
    theirs: Any, given: dict[str, Tensor], references: Sequence[Tensor] = (), positions: Sequence[int] = ()
) -> Tensor:
    """diffusers' velocity, its latents packed and its timesteps rounded as its pipeline does it.

    Slots of references have numbers that nobody may read.
    """
    latents, sequence = given["latents"], given["sequence"]
    rows, _, height, width = latents.shape
    pictures = [*references, latents]
    parts: list[Tensor] = []
    for text, picture in zip_longest(sequence.tensor_split(list(positions), dim=1), pictures):
        parts.append(torch.zeros(text.shape[1], dtype=torch.bool))
        parts.append(torch.ones(picture[0, 0].numel() // 4, dtype=torch.bool))
    slots = torch.cat(parts)
    seen = sequence.new_full((rows, len(slots) - height * width // 4, sequence.shape[2]), 100.0)
    seen[:, ~slots[: seen.shape[1]]] = sequence
    (packed,) = theirs(
        hidden_states=torch.cat([picture.flatten(2).mT for picture in pictures], dim=1),
        encoder_hidden_states=seen,
        timestep=(1000 * given["sigma"]).to(latents.dtype) / 1000,
        img_shapes=[[(1, *picture.shape[-2:]) for picture in pictures]] * rows,
        img_mask=slots.expand(rows, -1),
        return_dict=False,
    )
    velocity: Tensor = packed[:, -height * width :].mT.reshape(latents.shape)
    return velocity


FAMILY = Family(
    transformer=QwenImage21Transformer,
    reference="QwenImage21Transformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"patch_size": 2}, r"patch_size is 2; Qwen-Image 2\.1 transformers have 1"),
        ({"causal_condition": False}, "causal_condition is False"),
        ({"eps": 1e-5}, "eps is 1e-05"),
        ({"out_channels": 4}, "in_channels is 8, out_channels 4; they must be equal"),
        ({"axes_dims_rope": [4, 6, 8]}, "whose sum is attention_head_dim = 16"),
    ],
    tokens=(1, 77, 512),
    inputs=inputs,
    expected_velocity=expected_velocity,
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


@pytest.mark.parametrize(
    ("sizes", "positions"),
    [
        ([(4, 6)], [3]),
        ([(6, 2), (2, 10)], [1, 4]),
        ([(2, 4), (4, 4)], [2, 2]),  # without a word between them
        ([(4, 4)], [0]),
        ([(4, 4)], [5]),
    ],
    ids=["one", "two", "side by side", "first", "last"],
)
@torch.inference_mode()
def test_references_inside_the_text_are_read_as_diffusers_reads_them(
    sizes: list[tuple[int, int]], positions: list[int]
) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 2, 4, 6)
    generator = torch.Generator().manual_seed(2)
    pictures = [torch.randn(2, SMALL["in_channels"], *size, generator=generator) for size in sizes]

    velocity = ours(theirs)(**given, references=pictures, reference_positions=positions)

    assert relative_error(velocity, expected_velocity(theirs, given, pictures, positions)) <= 1e-5


@torch.inference_mode()
def test_skipped_layers_are_as_if_diffusers_had_them_not() -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 2, 4, 6)
    velocity = ours(theirs)(**given, skipped_layers=(0, 2))
    del theirs.transformer_blocks[2], theirs.transformer_blocks[0]

    assert relative_error(velocity, expected_velocity(theirs, given)) <= 1e-5


@torch.inference_mode()
def test_in_perturbed_layers_tokens_do_not_see_each_other() -> None:
    model, given = ours(reference(SMALL | {"num_layers": 1})), inputs(SMALL, 1, 4, 6)

    reached = patches_that_a_change_of_the_first_reaches(model, given, patch=1, perturbed_layers=(0,))
    assert reached == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given, patch=1)) == 24


def test_bfloat16_velocities_are_near_those_of_diffusers() -> None:
    """Frequencies of time stay in float32, as where diffusers loads them: bfloat16() rounds them."""
    theirs, given = reference(SMALL), inputs(SMALL, 3, 8, 12)
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence")}

    with torch.inference_mode():
        velocity = ours(theirs, torch.bfloat16)(**given)

    frequencies = theirs.time_text_embed.time_proj.freqs
    theirs.bfloat16().time_text_embed.time_proj.freqs = frequencies
    assert relative_error(velocity, expected_velocity(theirs, given)) <= 4e-2
