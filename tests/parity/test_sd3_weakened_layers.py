"""A transformer with skipped or perturbed layers gives what diffusers' SD3Transformer2DModel gives."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import PAGCFGJointAttnProcessor2_0, PAGJointAttnProcessor2_0

from tests.parity.test_sd3_transformer import SMALL, VARIANTS, inputs, ours, reference
from tests.parity.transformers import patches_that_a_change_of_the_first_reaches, relative_error


@pytest.mark.parametrize("variant", ["no qk norm", "qk norm", "dual layers", "four layers, one of them dual"])
@pytest.mark.parametrize("skipped", [(0,), (1,), (0, 2), (0, 1, 2)])
@torch.inference_mode()
def test_skipped_layers(variant: str, skipped: tuple[int, ...]) -> None:
    config = SMALL | VARIANTS[variant]
    theirs = reference(config)
    latents, sigma, sequence, pooled = inputs(config, 2, 8, 12).values()

    velocity = ours(theirs)(latents, sigma, sequence, pooled, skipped_layers=skipped)
    (expected,) = theirs(
        latents, sequence, pooled, 1000 * sigma, skip_layers=list(skipped), return_dict=False
    )

    assert relative_error(velocity, expected) <= 1e-5


@pytest.mark.parametrize("with_cfg", [False, True], ids=["prompt alone", "with the negative prompt"])
@pytest.mark.parametrize("variant", ["no qk norm", "four layers"])
@pytest.mark.parametrize("perturbed", [(0,), (1,), (0, 2)])
@torch.inference_mode()
def test_perturbed_layers_are_those_of_the_pag_pipeline(
    variant: str, perturbed: tuple[int, ...], with_cfg: bool
) -> None:
    """diffusers' processors perturb the last part of a batch; they know neither qk norm nor dual layers."""
    config = SMALL | {"no qk norm": {}, "four layers": {"num_layers": 4}}[variant]
    theirs, parts = reference(config), 3 if with_cfg else 2
    model = ours(theirs)
    latents, _, sequence, pooled = inputs(config, 2, 8, 12).values()
    sigma = torch.tensor([0.9, 0.3])
    processor: Any = PAGCFGJointAttnProcessor2_0() if with_cfg else PAGJointAttnProcessor2_0()
    for layer in perturbed:
        theirs.transformer_blocks[layer].attn.processor = processor

    velocity = model(latents, sigma, sequence, pooled, perturbed_layers=perturbed)
    (expected,) = theirs(
        latents.repeat(parts, 1, 1, 1),
        sequence.repeat(parts, 1, 1),
        pooled.repeat(parts, 1),
        1000 * sigma.repeat(parts),
        return_dict=False,
    )

    assert relative_error(velocity, expected[-2:]) <= 1e-5
    assert relative_error(model(latents, sigma, sequence, pooled), expected[:2]) <= 1e-5


@pytest.mark.parametrize("variant", ["qk norm", "dual layers"])
@torch.inference_mode()
def test_repeats_of_the_last_token_equal_the_tokens_written_out_in_a_perturbed_layer(variant: str) -> None:
    config = SMALL | VARIANTS[variant]
    model = ours(reference(config))
    latents, sigma, sequence, pooled = inputs(config, 2, 8, 12).values()
    zero = torch.zeros_like(sequence[:, :1])

    collapsed = model(latents, sigma, torch.cat([sequence, zero], 1), pooled, 256, perturbed_layers=(0, 1))
    written_out = torch.cat([sequence, zero.expand(-1, 256, -1)], 1)
    expected = model(latents, sigma, written_out, pooled, perturbed_layers=(0, 1))

    assert relative_error(collapsed, expected) <= 1e-5


@torch.inference_mode()
def test_in_perturbed_layers_patches_do_not_see_each_other() -> None:
    config = SMALL | {"num_layers": 1, "dual_attention_layers": (0,)}
    model = ours(reference(config))
    latents, sigma, sequence, pooled = inputs(config, 1, 8, 8).values()
    given = {"latents": latents, "sigma": sigma, "sequence": sequence, "pooled": pooled}

    assert patches_that_a_change_of_the_first_reaches(model, given, perturbed_layers=(0,)) == {(0, 0)}
    assert len(patches_that_a_change_of_the_first_reaches(model, given)) == 16
