"""The transformer gives what diffusers' SD3Transformer2DModel gives, for every variant of the config."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.parity.transformers import (
    Family,
)
from triptych_denoiser.models.loading import load_weights
from triptych_denoiser.models.sd3 import SD3Transformer

reference_library: Any = diffusers  # most of it has no types

SMALL = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 40,
    "caption_projection_dim": 48,
    "pooled_projection_dim": 56,
    "pos_embed_max_size": 12,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "no qk norm": {},
    "qk norm": {"qk_norm": "rms_norm"},
    "one layer": {"num_layers": 1},
    "one layer with qk norm": {"num_layers": 1, "qk_norm": "rms_norm"},
    "dual layers": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "dual last layer, no qk norm": {"num_layers": 2, "dual_attention_layers": (1,)},
    "four layers, one of them dual": {"num_layers": 4, "qk_norm": "rms_norm", "dual_attention_layers": (2,)},
    "16 channels": {"in_channels": 16, "out_channels": 16, "sample_size": 16},
    "patches of 4": {"patch_size": 4},
}
# SD3-medium, SD3.5-medium and SD3.5-large, as their config.json have them.
REAL = {
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
}
MEDIUM = REAL | {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
PUBLIC: dict[str, tuple[dict[str, Any], int]] = {
    "SD3-medium": (MEDIUM | {"pos_embed_max_size": 192}, 2_028),
    "SD3.5-medium": (
        MEDIUM
        | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        2_243,
    ),
    "SD3.5-large": (
        REAL
        | {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
        8_057,
    ),
}


def inputs(config: dict[str, Any], rows: int, height: int, width: int, tokens: int = 5) -> dict[str, Tensor]:
    """Latents, sequences and pooled vectors; sigmas that differ."""
    generator = torch.Generator().manual_seed(1)
    shapes = (
        (rows, config["in_channels"], height, width),
        (rows, tokens, config["joint_attention_dim"]),
        (rows, config["pooled_projection_dim"]),
    )
    latents, sequence, pooled = (torch.randn(shape, generator=generator) for shape in shapes)
    sigma = torch.linspace(1.0, 0.01, rows)
    return {"latents": latents, "sigma": sigma, "sequence": sequence, "pooled": pooled}


@torch.inference_mode()
def expected_velocity(theirs: Any, given: dict[str, Tensor]) -> Tensor:
    latents, sigma, sequence, pooled = given.values()
    velocity: Tensor = theirs(latents, sequence, pooled, 1000 * sigma, return_dict=False)[0]
    return velocity


FAMILY = Family(
    transformer=SD3Transformer,
    reference="SD3Transformer2DModel",
    small=SMALL,
    variants=VARIANTS,
    public=PUBLIC,
    refused=[
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ({"out_channels": 8}, "out_channels is 8, but must equal in_channels = 4"),
        ({"caption_projection_dim": 64}, "caption_projection_dim is 64, but must equal"),
    ],
    tokens=(),
    inputs=inputs,
    expected_velocity=expected_velocity,
    sizes=[(1, 8, 8), (3, 16, 8), (2, 4, 20)],
)
reference, ours, error = FAMILY.of_diffusers, FAMILY.ours, FAMILY.error


@pytest.mark.parametrize("variant", ["qk norm", "dual layers", "one layer"])
@torch.inference_mode()
def test_repeats_of_the_last_token_equal_the_tokens_written_out(variant: str) -> None:
    config = SMALL | VARIANTS[variant]
    theirs = reference(config)
    latents, sigma, sequence, pooled = inputs(config, 2, 8, 12).values()
    zero = torch.zeros_like(sequence[:, :1])

    collapsed = ours(theirs)(latents, sigma, torch.cat([sequence, zero], 1), pooled, 256)
    (expected,) = theirs(
        latents,
        torch.cat([sequence, zero.expand(-1, 256, -1)], 1),
        pooled,
        1000 * sigma,
        return_dict=False,
    )

    assert (collapsed - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_weights_that_do_not_fit_are_refused() -> None:
    theirs = reference(SMALL)
    targets, weights = ours(theirs).checkpoint_keys(), dict(theirs.state_dict())
    key = "transformer_blocks.0.attn.to_q.weight"
    missing = {name: tensor for name, tensor in weights.items() if name != key}

    with pytest.raises(ValueError, match=r"1 missing \['transformer_blocks.0.attn.to_q.weight'\], 0 unknown"):
        load_weights(targets, missing)
    with pytest.raises(ValueError, match=r"0 missing \[\], 1 unknown \['lora'\]"):
        load_weights(targets, weights | {"lora": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"to_q.weight has shape \[48, 47\], the config asks for \[48, 48\]"):
        load_weights(targets, weights | {key: torch.zeros(48, 47)})
