"""Krea 2: Raw, guided by two branches, and Turbo, distilled from it to eight steps.

Sources: Krea2Pipeline in diffusers; of its authors' names convert_krea2_transformer_checkpoint_to_diffusers,
in loaders/single_file_utils.py there. Its VAE is Qwen-Image's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from triptych.families import qwen_image, wan_vae
from triptych.families.family import Defaults, Family, GuidanceInput, OriginalFile
from triptych.families.layouts import Shapes, Table, Target, count, same

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULER = {
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 6400,
}
TURBO_MU = 1.15


def table(layers: int, layerwise: int, refiners: int) -> Table:
    """Krea 2's transformer with so many blocks, and so many of each kind in its text fusion."""
    table = {
        "first": same("img_in"),
        "tmlp.0": same("time_embed.linear_1"),
        "tmlp.2": same("time_embed.linear_2"),
        "tproj.1": same("time_mod_proj"),
        "txtmlp.0.scale": same("txt_in.norm.weight"),
        "txtmlp.1": same("txt_in.linear_1"),
        "txtmlp.3": same("txt_in.linear_2"),
        "txtfusion.projector": same("text_fusion.projector"),
        "last.linear": same("final_layer.linear"),
        "last.norm.scale": same("final_layer.norm.weight"),
        "last.modulation.lin": (("final_layer.scale_shift_table", _in_two),),
    }
    stacks = {
        "blocks": ("transformer_blocks", layers),
        "txtfusion.layerwise_blocks": ("text_fusion.layerwise_blocks", layerwise),
        "txtfusion.refiner_blocks": ("text_fusion.refiner_blocks", refiners),
    }
    for theirs, (ours, blocks) in stacks.items():
        for index in range(blocks):
            for name, targets in _block(f"{ours}.{index}"):
                table[f"{theirs}.{index}.{name}"] = targets
    return table


def _block(block: str) -> Iterator[tuple[str, tuple[Target, ...]]]:
    for theirs, ours in (
        ("wq", "to_q"),
        ("wk", "to_k"),
        ("wv", "to_v"),
        ("wo", "to_out.0"),
        ("gate", "to_gate"),
    ):
        yield f"attn.{theirs}", same(f"{block}.attn.{ours}")
    for part in "qk":
        yield f"attn.qknorm.{part}norm.scale", same(f"{block}.attn.norm_{part}.weight")
    for part in ("gate", "up", "down"):
        yield f"mlp.{part}", same(f"{block}.ff.{part}")
    yield "prenorm.scale", same(f"{block}.norm1.weight")
    yield "postnorm.scale", same(f"{block}.norm2.weight")
    if block.startswith("transformer_blocks"):
        yield "mod.lin", ((f"{block}.scale_shift_table", _in_six),)


def _in_six(modulations: Tensor) -> Tensor:
    return modulations.reshape(6, -1)


def _in_two(modulations: Tensor) -> Tensor:
    return modulations.reshape(2, -1)


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' Krea2Transformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["first.weight"]
    text_block = "txtfusion.layerwise_blocks.0"
    (head_dim,), (text_head_dim,) = (
        shapes[f"{block}.attn.qknorm.qnorm.scale"] for block in ("blocks.0", text_block)
    )
    text_width = shapes["txtmlp.1.weight"][1]
    return {
        "in_channels": channels,
        "num_layers": count(shapes, "blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "num_key_value_heads": shapes["blocks.0.attn.wk.weight"][0] // head_dim,
        "intermediate_size": shapes["blocks.0.mlp.gate.weight"][0],
        "timestep_embed_dim": shapes["tmlp.0.weight"][1],
        "text_hidden_dim": text_width,
        "num_text_layers": shapes["txtfusion.projector.weight"][1],
        "text_num_attention_heads": text_width // text_head_dim,
        "text_num_key_value_heads": shapes[f"{text_block}.attn.wk.weight"][0] // text_head_dim,
        "text_intermediate_size": shapes[f"{text_block}.mlp.gate.weight"][0],
        "num_layerwise_text_blocks": count(shapes, "txtfusion.layerwise_blocks"),
        "num_refiner_text_blocks": count(shapes, "txtfusion.refiner_blocks"),
        "axes_dims_rope": [head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8],
        "rope_theta": 1000.0,
        "norm_eps": 1e-5,
    }


def lora_names(linears: Shapes) -> Table:
    """Its authors' names."""
    stacks = ("transformer_blocks", "text_fusion.layerwise_blocks", "text_fusion.refiner_blocks")
    return table(*(count(linears, stack) for stack in stacks))


FAMILY = Family(
    pipeline="Krea2Pipeline",
    transformer="Krea2Transformer2DModel",
    grid="even",  # np.linspace(1, 1 / n, n)
    # Krea2Pipeline.__call__: 28 steps, guidance 4.5, which there is c + 4.5 (c - u): u + 5.5 (c - u).
    defaults={False: Defaults(GuidanceInput.BRANCHES, 28, 5.5)},
    distilled=Defaults(GuidanceInput.BRANCHES, 8, 1.0),  # of its docstring
    distilled_mu=TURBO_MU,
    latents=qwen_image.LATENTS,
    lora_names=lora_names,
    mark="text_fusion.projector.weight",
    original=OriginalFile(
        mark="txtfusion.projector.weight",
        config=config,
        table=lambda shapes, known: table(
            *(known[f"num_{kind}"] for kind in ("layers", "layerwise_text_blocks", "refiner_text_blocks"))
        ),
        scheduler=lambda shapes: SCHEDULER,
        text_encoders={"text_encoder": "qwen3vl_4b"},
        vae_file=wan_vae.QWEN_IMAGE_FILE,
    ),
    distilled_steps={"krea-2-turbo": 8, "krea2-turbo": 8},
)
