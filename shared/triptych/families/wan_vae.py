"""Names of an autoencoder as Wan's authors have them, in files of node editors of Qwen-Image's too.

Source: convert_wan_vae_to_diffusers in diffusers' loaders/single_file_utils.py.
"""

from __future__ import annotations

import re
from typing import Any

from triptych.families.layouts import Shapes, Table

MARK = "decoder.middle.0.residual.0.gamma"
"""A tensor that no other autoencoder has."""
QWEN_IMAGE_FILE = "qwen_image_vae.safetensors"
"""What node editors call Qwen-Image's."""

_RESIDUAL = {0: "norm1", 2: "conv1", 3: "norm2", 6: "conv2"}
_RENAMED = (
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    *((rf"\.residual\.{index}\.", f".{name}.") for index, name in _RESIDUAL.items()),
    (r"\.shortcut\.", ".conv_shortcut."),
)
_UP = re.compile(r"decoder\.upsamples\.(\d+)\.(.+)")
_RESAMPLES = re.compile(r"encoder\.downsamples\.(\d+)\.resample\.1\.weight")


def table(shapes: Shapes) -> Table:
    """What the names give in diffusers' AutoencoderKLQwenImage."""
    blocks = config(shapes)["num_res_blocks"]
    return {name: ((_renamed(name, blocks), None),) for name in shapes}


def _renamed(name: str, blocks: int) -> str:
    """`blocks`: residual ones of a level of the encoder. In a level of the decoder one more is before the
    step to the next.
    """
    if match := _UP.fullmatch(name):
        level, index = divmod(int(match[1]), blocks + 2)
        part = "upsamplers.0" if index == blocks + 1 else f"resnets.{index}"
        name = f"decoder.up_blocks.{level}.{part}.{match[2]}"
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' AutoencoderKLQwenImage, but for mean and deviations, which no shape tells.

    Raises KeyError for a tensor that is missing.
    """
    width = shapes["encoder.conv1.weight"][0]
    steps = sorted(int(match[1]) for match in map(_RESAMPLES.fullmatch, shapes) if match)
    first_blocks = [0, *(step + 1 for step in steps)]
    return {
        "base_dim": width,
        "z_dim": shapes["decoder.conv1.weight"][1],
        "dim_mult": [
            shapes[f"encoder.downsamples.{block}.residual.2.weight"][0] // width for block in first_blocks
        ],
        "num_res_blocks": steps[0] if steps else 1,
        "attn_scales": [],
        "temperal_downsample": [f"encoder.downsamples.{step}.time_conv.weight" in shapes for step in steps],
    }
