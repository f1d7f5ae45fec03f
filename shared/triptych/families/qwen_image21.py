"""Qwen-Image 2.1: pictures with an alpha channel; its Turbo has its levels in model_index.json.

Sources: QwenImage21Pipeline in diffusers, and convert_qwen_image21_transformer_checkpoint_to_diffusers in its
loaders/single_file_utils.py: files have diffusers' names, but for node editors, who fuse two of them.
"""

from __future__ import annotations

from typing import Any

from triptych.families.family import Defaults, Family, GuidanceInput, OriginalFile
from triptych.families.layouts import Shapes, Table, count, fused
from triptych.families.reference_sizes import References, of_area

BLOCKS = "transformer_blocks"
MAX_REFERENCES = 10
"""A bound of this server: the reference has none."""
REFERENCE_SIZE = of_area(1024**2, 32, most_aspect=16)
"""Of what the text encoder sees and the VAE encodes: one resize is for both."""


def table(layers: int, hidden: int) -> Table:
    """What node editors fuse: the gate of an MLP of so many channels inside, and what it gates."""
    return {
        f"{BLOCKS}.{index}.img_mlp.gate_up": fused(
            hidden, *(f"{BLOCKS}.{index}.img_mlp.{part}" for part in ("gate_layer", "proj"))
        )
        for index in range(layers)
    }


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' transformer. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["img_in.weight"]
    (head_dim,) = shapes[f"{BLOCKS}.0.attn.norm_q.weight"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": count(shapes, BLOCKS),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "context_in_dim": shapes["txt_in.in_layer.weight"][1],
        "mlp_ratio": shapes[f"{BLOCKS}.0.img_mlp.out.weight"][1] // width,
        "axes_dims_rope": [head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16],
        "eps": 1e-6,
        "causal_condition": True,
    }


def lora_names(linears: Shapes) -> Table:
    """Diffusers' own, and node editors' fused ones."""
    return table(count(linears, BLOCKS), linears[f"{BLOCKS}.0.img_mlp.proj"][0])


FAMILY = Family(
    pipeline="QwenImage21Pipeline",
    transformer="QwenImage21Transformer2DModel",
    grid="even",  # np.linspace(1, 1 / n, n)
    # QwenImage21Pipeline.__call__: 40 steps, true_cfg_scale 1.
    defaults={False: Defaults(GuidanceInput.BRANCHES, 40, 1.0)},
    latents=None,
    # of QwenImage21Pipeline.__call__
    references=References(MAX_REFERENCES, REFERENCE_SIZE, shown=REFERENCE_SIZE, size_of="last"),
    lora_names=lora_names,
    mark=f"{BLOCKS}.0.img_mlp.gate_layer.weight",
    original=OriginalFile(
        mark=f"{BLOCKS}.0.img_mlp.gate_up.weight",
        config=config,
        table=lambda shapes, known: table(
            known["num_layers"], known["mlp_ratio"] * shapes["img_in.weight"][0]
        ),
        scheduler=lambda shapes: {},  # its Turbo has another one
        text_encoders={"text_encoder": "qwen3vl_8b"},
    ),
)
