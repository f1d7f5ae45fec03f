"""The transformer gives what diffusers' FluxTransformer2DModel gives, for every variant of the config."""

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
from triptych_denoiser.models.flux import FluxTransformer
from triptych_denoiser.models.layers import rounded_guidance, rounded_timesteps, timestep_features

reference_library: Any = diffusers  # most of it has no types

SMALL = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 40,
    "pooled_projection_dim": 24,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 6, 6),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "without guidance": {},
    "with guidance": {"guidance_embeds": True},
    "one block of each kind": {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
    "double blocks alone": {"num_layers": 3, "num_single_layers": 0},
    "single blocks alone": {"num_layers": 0, "num_single_layers": 3},
    "16 channels": {"in_channels": 64},
    "other axes": {"axes_dims_rope": (8, 2, 6)},
}
REAL = {  # FLUX.1-schnell, as its config.json has it
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
}
FILL = {"in_channels": 96, "out_channels": 16, "guidance_embeds": True}
"""4 channels of latents, 4 of a masked picture and 16 of its mask, of 2 x 2 latent pixels each."""
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {
    "FLUX.1-Fill-dev": (REAL | {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}, 11_902),
    "FLUX.1-schnell": (REAL, 11_891),
    "FLUX.1-dev": (REAL | {"guidance_embeds": True}, 11_901),
}


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Tensor]:
    """Latents, sequences and pooled vectors; sigmas and guidance scales that differ."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "latents": torch.randn(rows, config["in_channels"] // 4, height, width, generator=generator),
        "sigma": torch.linspace(1.0, 0.01, rows),
        "sequence": torch.randn(rows, tokens, config["joint_attention_dim"], generator=generator),
        "pooled": torch.randn(rows, config["pooled_projection_dim"], generator=generator),
    }
    guidance = {"guidance": torch.linspace(3.5, 1.0, rows)} if config["guidance_embeds"] else {}
    return given | guidance


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Any]) -> Tensor:
    """diffusers' velocity, its latents packed and its timesteps rounded as its pipeline does it."""
    pipeline, latents = reference_library.FluxPipeline, given["latents"]
    rows, _, height, width = latents.shape
    pictures = [latents, *given.get("references", ())]
    packed = [pipeline._pack_latents(each, *each.shape) for each in pictures]
    ids = [
        pipeline._prepare_latent_image_ids(rows, *(n // 2 for n in each.shape[2:]), None, latents.dtype)
        for each in pictures
    ]
    if theirs.config.out_channels not in (None, theirs.config.in_channels):  # as FluxFillPipeline
        hidden, ids = torch.cat(packed, dim=2), ids[:1]
    else:  # as FluxKontextPipeline
        hidden = torch.cat(packed, dim=1)
        for each in ids[1:]:
            each[..., 0] = 1
    (velocity,) = theirs(
        hidden_states=hidden,
        timestep=(1000 * given["sigma"]).to(latents.dtype) / 1000,
        guidance=given.get("guidance"),
        pooled_projections=given["pooled"],
        encoder_hidden_states=given["sequence"],
        txt_ids=torch.zeros(given["sequence"].shape[1], 3, dtype=latents.dtype),
        img_ids=torch.cat(ids),
        return_dict=False,
    )
    tokens = (height // 2) * (width // 2)
    unpacked: Tensor = pipeline._unpack_latents(velocity[:, :tokens], 8 * height, 8 * width, 8)
    return unpacked


FAMILY = Family(
    transformer=FluxTransformer,
    reference="FluxTransformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"patch_size": 2}, "patch_size is 2; FLUX transformers have 1"),
        ({"out_channels": 20}, "out_channels is 20, but must be a multiple of 4 up to in_channels = 16"),
        ({"out_channels": 6}, "out_channels is 6, but must be a multiple of 4"),
        ({"in_channels": 18}, "in_channels is 18, but must be a multiple of 4"),
        ({"axes_dims_rope": [4, 6]}, r"axes_dims_rope is \[4, 6\], but must be three even numbers"),
        ({"axes_dims_rope": [4, 5, 7]}, "axes_dims_rope"),
        ({"axes_dims_rope": [4, 6, 8]}, "whose sum is attention_head_dim = 16"),
    ],
    tokens=(1, 77),
    inputs=inputs,
    expected_velocity=expected_velocity,
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


def picture(rows: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(rows, channels, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [(8, 8), (4, 14), (34, 2)])
def test_velocities_beside_a_reference_are_those_of_diffusers(size: tuple[int, int]) -> None:
    config = SMALL | {"guidance_embeds": True}
    given = inputs(config, 2, 6, 10) | {"references": [picture(2, 4, *size)]}

    assert error(reference(config), given) <= 1e-5


def test_velocities_of_a_masked_picture_are_those_of_diffusers() -> None:
    config = SMALL | FILL
    given = inputs(config, 2, 6, 10)
    given |= {"latents": given["latents"][:, :4], "references": [picture(2, 20, 6, 10)]}

    assert error(reference(config), given) <= 1e-5
    model = ours(reference(config))
    assert (model.inputs.channels, model.inputs.reference_channels) == (4, 20)


@torch.inference_mode()
def test_in_perturbed_layers_patches_see_references() -> None:
    model, given = ours(reference(SMALL | {"num_layers": 0, "num_single_layers": 1})), inputs(SMALL, 1, 4, 4)
    velocities = [model(**given, references=[picture(1, 4, *size)]) for size in ((4, 4), (4, 6))]
    perturbed = [
        model(**given, references=[picture(1, 4, *size)], perturbed_layers=(0,)) for size in ((4, 4), (4, 6))
    ]
    assert not torch.isclose(*velocities).all(dim=1).any()
    assert not torch.isclose(*perturbed).all(dim=1).any()
    alone = {"perturbed_layers": (0,), "references": [picture(1, 4, 4, 4)]}
    assert patches_that_a_change_of_the_first_reaches(model, given, **alone) == {(0, 0)}


@pytest.mark.parametrize("skipped", [(0,), (1, 2), (0, 3)])
@torch.inference_mode()
def test_skipped_layers_are_as_if_diffusers_had_them_not(skipped: tuple[int, ...]) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 2, 8, 6)
    velocity = ours(theirs)(**given, skipped_layers=skipped)
    for layer in reversed(skipped):  # those of one stream are counted after the two of two
        blocks = theirs.transformer_blocks if layer < 2 else theirs.single_transformer_blocks
        del blocks[layer % 2]

    assert relative_error(velocity, expected_velocity(theirs, given)) <= 1e-5


@pytest.mark.parametrize("kind", ["num_layers", "num_single_layers"])
@torch.inference_mode()
def test_in_perturbed_layers_patches_do_not_see_each_other(kind: str) -> None:
    model = ours(reference(SMALL | {"num_layers": 0, "num_single_layers": 0, kind: 1}))
    given = inputs(SMALL, 1, 8, 8)

    assert patches_that_a_change_of_the_first_reaches(model, given, perturbed_layers=(0,)) == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given)) == 16


def test_bfloat16_timesteps_and_guidance_are_those_of_diffusers() -> None:
    config = SMALL | {"guidance_embeds": True}
    theirs = reference(config).bfloat16()
    given = inputs(config, 64, 2, 2)
    given |= {"sigma": torch.linspace(0, 1, 64), "guidance": torch.linspace(0, 9, 64)}
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence", "pooled")}
    seen: list[Tensor] = []
    theirs.time_text_embed.time_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    expected_velocity(theirs, given)

    timesteps = rounded_timesteps(given["sigma"], torch.bfloat16)
    scales = rounded_guidance(given["guidance"], torch.bfloat16)

    torch.testing.assert_close(timestep_features(timesteps), seen[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(timestep_features(scales), seen[1], rtol=0, atol=1e-3)
    assert rounded_timesteps(torch.tensor([0.97705]), torch.bfloat16).item() == 976
    assert rounded_guidance(torch.tensor([3.5]), torch.bfloat16).item() == 3504


@pytest.mark.parametrize("variant", ["with guidance", "without guidance"])
def test_bfloat16_velocities_are_near_those_of_diffusers(variant: str) -> None:
    """Far nearer than to float32's: there t and guidance are not rounded."""
    config = SMALL | VARIANTS[variant]
    theirs, given = reference(config), inputs(config, 3, 8, 12)
    exact = expected_velocity(theirs, given)
    given |= {name: given[name].bfloat16() for name in ("latents", "sequence", "pooled")}

    velocity = ours(theirs, torch.bfloat16)(**given)

    assert relative_error(velocity, expected_velocity(theirs.bfloat16(), given)) <= 3e-2
    assert relative_error(velocity, exact) >= 1e-1


def test_float16_that_overflows_is_clipped_as_in_diffusers() -> None:
    theirs = reference(SMALL)
    for bias in (
        theirs.transformer_blocks[0].ff_context.net[2].bias,
        theirs.single_transformer_blocks[0].proj_out.bias,
    ):
        bias.data += 65000 * torch.linspace(-1, 1, len(bias))
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
