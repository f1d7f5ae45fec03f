"""The transformer gives what diffusers' Flux2Transformer2DModel gives, for every variant of the config."""

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
from triptych_denoiser.models.flux2 import Flux2Transformer

reference_library: Any = diffusers  # most of it has no types

SMALL: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 40,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 4, 4, 4),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "klein": {},
    "with guidance, as dev": {"guidance_embeds": True},
    "one block of each kind": {"num_layers": 1, "num_single_layers": 1},
    "double blocks alone": {"num_layers": 3, "num_single_layers": 0},
    "single blocks alone": {"num_layers": 0, "num_single_layers": 3},
    "other axes, base and MLPs": {"axes_dims_rope": (2, 6, 2, 6), "rope_theta": 500, "mlp_ratio": 2.5},
}
KLEIN: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
DEV = {
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "guidance_embeds": True,
}
KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {
    "FLUX.2-dev": (KLEIN | DEV, 32_223),
    "FLUX.2-klein-4B": (KLEIN, 3_876),
    "FLUX.2-klein-9B": (KLEIN | KLEIN_9B, 9_079),
}
"""Those of the base models are the same."""


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Tensor]:
    """Latents and sequences; sigmas and guidance scales that differ."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "latents": torch.randn(rows, config["in_channels"], height, width, generator=generator),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": torch.randn(rows, tokens, config["joint_attention_dim"], generator=generator),
    }
    guidance = {"guidance": torch.linspace(3.5, 1.0, rows)} if config["guidance_embeds"] else {}
    return given | guidance


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Any]) -> Tensor:
    """diffusers' velocity, its latents packed and its timesteps rounded as its pipeline does it."""
    pipeline, latents = reference_library.Flux2KleinPipeline, given["latents"]
    ids = all_ids = pipeline._prepare_latent_ids(latents)
    references = given.get("references", [])
    if references:
        theirs_of_one = pipeline._prepare_image_ids([each[:1] for each in references])
        all_ids = torch.cat([ids, theirs_of_one.repeat(len(latents), 1, 1)], dim=1)
    (packed,) = theirs(
        hidden_states=torch.cat([pipeline._pack_latents(each) for each in (latents, *references)], dim=1),
        timestep=(1000 * given["sigma"]).to(latents.dtype) / 1000,
        guidance=given.get("guidance"),
        encoder_hidden_states=given["sequence"],
        txt_ids=pipeline._prepare_text_ids(given["sequence"]),
        img_ids=all_ids,
        return_dict=False,
    )
    unpacked: Tensor = pipeline._unpack_latents_with_ids(packed[:, : ids.shape[1]], ids)
    return unpacked


FAMILY = Family(
    transformer=Flux2Transformer,
    reference="Flux2Transformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"patch_size": 2}, r"patch_size is 2; FLUX\.2 transformers have 1"),
        ({"eps": 1e-5}, r"eps is 1e-05; FLUX\.2 transformers have 1e-06"),
        ({"timestep_guidance_channels": 128}, "timestep_guidance_channels is 128"),
        ({"in_channels": 384, "out_channels": 64}, "in_channels is 384, out_channels 64; supported are"),
        ({"axes_dims_rope": [4, 6, 6]}, r"axes_dims_rope is \[4, 6, 6\], but must be four even numbers"),
        ({"axes_dims_rope": [4, 4, 4, 6]}, "whose sum is attention_head_dim = 16"),
    ],
    tokens=(1, 77, 512),
    inputs=inputs,
    expected_velocity=expected_velocity,
    sizes=[(1, 8, 8), (3, 5, 7), (2, 1, 33)],
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


@pytest.mark.parametrize("variant", ["klein", "with guidance, as dev"])
@pytest.mark.parametrize("sizes", [[(5, 7)], [(3, 9), (8, 2)], [(1, 1), (6, 5), (40, 2)]])
def test_velocities_beside_references_are_those_of_diffusers(
    sizes: list[tuple[int, int]], variant: str
) -> None:
    config = SMALL | VARIANTS[variant]
    generator = torch.Generator().manual_seed(2)
    pictures = [torch.randn(2, config["in_channels"], *size, generator=generator) for size in sizes]
    given = inputs(config, 2, 5, 6) | {"references": pictures}

    assert error(reference(config), given) <= 1e-5


@pytest.mark.parametrize("skipped", [(0,), (1, 2), (0, 3)])
@torch.inference_mode()
def test_skipped_layers_are_as_if_diffusers_had_them_not(skipped: tuple[int, ...]) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 2, 5, 6)
    velocity = ours(theirs)(**given, skipped_layers=skipped)
    for layer in reversed(skipped):  # those of one stream are counted after the two of two
        blocks = theirs.transformer_blocks if layer < 2 else theirs.single_transformer_blocks
        del blocks[layer % 2]

    assert relative_error(velocity, expected_velocity(theirs, given)) <= 1e-5


@pytest.mark.parametrize("kind", ["num_layers", "num_single_layers"])
@torch.inference_mode()
def test_in_perturbed_layers_tokens_do_not_see_each_other(kind: str) -> None:
    model = ours(reference(SMALL | {"num_layers": 0, "num_single_layers": 0, kind: 1}))
    given = inputs(SMALL, 1, 4, 3)

    reached = patches_that_a_change_of_the_first_reaches(model, given, patch=1, perturbed_layers=(0,))
    assert reached == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given, patch=1)) == 12


@pytest.mark.parametrize("variant", ["klein", "with guidance, as dev"])
def test_bfloat16_velocities_are_near_those_of_diffusers(variant: str) -> None:
    """Far nearer than to float32's: there t and guidance are not rounded."""
    config = SMALL | VARIANTS[variant]
    theirs, given = reference(config), inputs(config, 3, 8, 12)
    exact = expected_velocity(theirs, given)
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence")}

    velocity = ours(theirs, torch.bfloat16)(**given)

    assert relative_error(velocity, expected_velocity(theirs.bfloat16(), given)) <= 3e-2
    assert relative_error(velocity, exact) >= 1e-1


def test_float16_that_overflows_is_clipped_as_in_diffusers() -> None:
    theirs = reference(SMALL)
    theirs.transformer_blocks[0].ff_context.linear_out.weight.data *= 3e4
    theirs.single_transformer_blocks[0].attn.to_out.weight.data *= 3e4
    theirs.half()
    given = {name: tensor.half() for name, tensor in inputs(SMALL, 2, 8, 8).items()}
    given["sigma"] = given["sigma"].float()

    velocity = ours(theirs, torch.float16)(**given)

    assert velocity.isfinite().all()
    assert relative_error(velocity, expected_velocity(theirs, given)) <= 2e-2


def test_a_model_that_takes_guidance_says_so_when_there_is_none() -> None:
    config = SMALL | {"guidance_embeds": True}
    given = inputs(config, 1, 2, 2)
    del given["guidance"]

    with pytest.raises(ValueError, match="takes a guidance scale for every row"):
        ours(reference(config))(**given)
