"""Qwen-Image, guided by two branches, and what Lightning distilled from it to few steps.

Sources: QwenImagePipeline in diffusers; of Lightning the example of ModelTC/Qwen-Image-Lightning, whose
scheduler has base_shift = max_shift = ln 3 and no shift_terminal. Files have diffusers' names. The colours
are ComfyUI's (latent_formats.py, Wan21), whose latents these are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from triptych.families import mag_ratios, wan_vae
from triptych.families.family import Defaults, Family, GuidanceInput, NormalizedLatents, OriginalFile
from triptych.families.layouts import Shapes, Table, count

BLOCKS = "transformer_blocks"
LIGHTNING = {"lightning-4steps": 4, "lightning-8steps": 8}
"""Steps of what it distilled, by what the names of its models and LoRAs have in them."""
SCHEDULER = {
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
_CLEAN_REFERENCES = "__index_timestep_zero__"
"""An empty tensor that node editors put into files of models with zero_cond_t."""
_LAYERED = "time_text_embed.addition_t_embedding.weight"

LATENTS = NormalizedLatents(
    vae="AutoencoderKLQwenImage",
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
    rgb_factors=(
        (-0.1299, -0.1692, 0.2932),
        (0.0671, 0.0406, 0.0442),
        (0.3568, 0.2548, 0.1747),
        (0.0372, 0.2344, 0.1420),
        (0.0313, 0.0189, -0.0328),
        (0.0296, -0.0956, -0.0665),
        (-0.3477, -0.4059, -0.2925),
        (0.0166, 0.1902, 0.1975),
        (-0.0412, 0.0267, -0.1364),
        (-0.1293, 0.0740, 0.1636),
        (0.0680, 0.3019, 0.1128),
        (0.0032, 0.0581, 0.0639),
        (-0.1251, 0.0927, 0.1699),
        (0.0060, -0.0633, 0.0005),
        (0.3477, 0.2275, 0.2950),
        (0.1984, 0.0913, 0.1861),
    ),
    rgb_bias=(-0.1835, -0.0868, -0.3360),
)


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' QwenImageTransformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["img_in.weight"]
    (head_dim,) = shapes[f"{BLOCKS}.0.attn.norm_q.weight"]
    return {
        "patch_size": 2,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count(shapes, BLOCKS),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "guidance_embeds": False,
        "axes_dims_rope": [head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16],
        "zero_cond_t": _CLEAN_REFERENCES in shapes,
        "use_additional_t_cond": _LAYERED in shapes,
    }


def table(shapes: Shapes, known: Mapping[str, Any]) -> Table:
    """The names are diffusers' own."""
    return {_CLEAN_REFERENCES: ()}


FAMILY = Family(
    pipeline="QwenImagePipeline",
    transformer="QwenImageTransformer2DModel",
    grid="even",  # np.linspace(1, 1 / n, n)
    # QwenImagePipeline.__call__: 50 steps, true_cfg_scale 4; without a negative prompt it does not guide, and
    # " " is the one that its docstring and its model card name.
    defaults={False: Defaults(GuidanceInput.BRANCHES, 50, 4.0, mag_ratios=mag_ratios.QWEN_IMAGE)},
    guidance_method="norm_preserving",
    negative_prompt=" ",
    distilled_mu=math.log(3),
    latents=LATENTS,
    lora_names=lambda linears: {},  # diffusers' own
    mark="txt_norm.weight",
    original=OriginalFile(
        mark=f"{BLOCKS}.0.txt_mod.1.weight",
        config=config,
        table=table,
        scheduler=lambda shapes: SCHEDULER,
        text_encoders={"text_encoder": "qwen25_7b"},
        vae_file=wan_vae.QWEN_IMAGE_FILE,
    ),
    distilling_loras=LIGHTNING,
    distilled_steps=LIGHTNING,
)
