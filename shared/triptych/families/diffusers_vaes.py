"""Autoencoders in files with diffusers' names: their classes and configs, which shapes tell."""

from __future__ import annotations

import re
from typing import Any

from triptych.families import wan_vae
from triptych.families.layouts import FLUX2_VAE_MARK, Shapes, count, flux2_vae_config, vae_config

MARK = "decoder.mid_block.resnets.0.conv1.weight"
"""A tensor that all of them have, and nothing else."""

_IN_BLOCKS = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.(.+)")


def described(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """The class in diffusers and its config, without mean, deviations, scale and shift, which no shape tells.

    Raises KeyError for a tensor that is missing.
    """
    if "decoder.norm_out.gamma" not in shapes:
        original = _as_original(shapes)
        if FLUX2_VAE_MARK in shapes:
            return "AutoencoderKLFlux2", flux2_vae_config(original)
        return "AutoencoderKL", vae_config(original)
    if "encoder.down_blocks.0.conv1.weight" in shapes:
        return "AutoencoderKLQwenImage", wan_vae.config(_as_wan(shapes))
    return "AutoencoderKLQwenImage21", _qwen_image21(shapes)


def _as_original(shapes: Shapes) -> Shapes:
    """AutoencoderKL's shapes by the names that its authors gave what tells its config."""
    levels = count(shapes, "encoder.down_blocks")

    def renamed(name: str) -> str:
        if match := _IN_BLOCKS.fullmatch(name):
            part, level = match[1], int(match[2])
            return f"{part}.{level if part == 'encoder.down' else levels - 1 - level}.block.{match[3]}"
        return name.replace(".mid_block.attentions.0.to_q.", ".mid.attn_1.q.")

    return {renamed(name): shape for name, shape in shapes.items()}


def _as_wan(shapes: Shapes) -> Shapes:
    """AutoencoderKLQwenImage's shapes by the names that Wan's authors gave what tells its config."""

    def renamed(name: str) -> str:
        name = name.replace("coder.conv_in.", "coder.conv1.")
        if name.startswith("encoder.down_blocks."):
            return name.replace("down_blocks.", "downsamples.").replace(".conv1.", ".residual.2.")
        return name

    return {renamed(name): shape for name, shape in shapes.items()}


def _qwen_image21(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes["encoder.conv_in.weight"][:2]
    levels = count(shapes, "encoder.down_blocks")
    widths = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    return {
        "base_dim": width,
        "decoder_base_dim": shapes["decoder.norm_out.gamma"][0] * width // widths[0],
        "z_dim": shapes["decoder.conv_in.weight"][1],
        "dim_mult": [each // width for each in widths],
        "num_res_blocks": count(shapes, "encoder.down_blocks.0.resnets"),
        "attn_scales": [],
        "temperal_downsample": [
            f"encoder.down_blocks.{level}.downsampler.time_conv.weight" in shapes
            for level in range(levels - 1)
        ],
        "in_channels": channels,
        "out_channels": shapes["decoder.conv_out.weight"][0],
    }
