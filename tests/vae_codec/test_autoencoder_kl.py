"""Configs and weights that the autoencoder refuses, each with a sentence."""

from typing import Any

import pytest
import torch

from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, build

SMALL = {"block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 4}
DOWN, UP = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu' is supported"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "only DownEncoderBlock2D is",
        ),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries, block_out_channels 2"),
        ({"norm_num_groups": 3}, "must be multiples of norm_num_groups, 3"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std are not supported"),
        ({"layers_per_block": 0}, "must be at least 1"),
        ({"block_out_channels": ["8", 8]}, "must be at least 1"),
        ({"in_channels": 4}, "pixels have 3"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0; it must be positive"),
    ],
)
def test_an_unsupported_config_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoencoderKLConfig.from_dict({**SMALL, "down_block_types": DOWN, "up_block_types": UP, **change})


def test_a_missing_shift_is_zero() -> None:
    config = AutoencoderKLConfig.from_dict(
        {**SMALL, "down_block_types": DOWN, "up_block_types": UP, "shift_factor": None}
    )

    assert config.shift_factor == 0


def test_weights_that_do_not_fit_are_refused() -> None:
    config = {**SMALL, "down_block_types": DOWN, "up_block_types": UP}
    weights = AutoencoderKL(AutoencoderKLConfig.from_dict(config)).state_dict()
    without = {name: tensor for name, tensor in weights.items() if name != "decoder.conv_in.bias"}

    with pytest.raises(ValueError, match=r"1 missing \['decoder.conv_in.bias'\], 1 unknown \['stray'\]"):
        build(config, without | {"stray": torch.zeros(1)}, "cpu", torch.float32)
    with pytest.raises(ValueError, match=r"decoder.conv_in.bias has shape \[9\], the config asks for \[8\]"):
        build(config, weights | {"decoder.conv_in.bias": torch.zeros(9)}, "cpu", torch.float32)
