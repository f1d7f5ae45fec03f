"""FLUX.3 klein: base, guided by two branches, and the flow map that was distilled from it to sixteen steps.

Sources: Flux3ModularPipeline and Flux3DistilledModularPipeline in diffusers; of its authors' names
convert_flux3_transformer_checkpoint_to_diffusers, in loaders/single_file_utils.py there. Its VAE is FLUX.2's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from triptych.families import flux2
from triptych.families.family import Defaults, Family, GuidanceInput, OriginalFile
from triptych.families.layouts import Shapes, Table, Target, count, same, swapped
from triptych.families.reference_sizes import References, padded, shrunk_and_cropped

ROPE_AXES = 4
SHIFT = 6.93
MAX_REFERENCES = 10
MODES = ("image", "image_cond", "txt")
"""The kinds of tokens: the picture's, the references' and the text's."""


def table(layers: int, single_layers: int) -> Table:
    """FLUX.3's transformer with so many blocks of each mode, and of all."""
    table = {
        "txt_in": same("context_embedder"),
        "time_in.in_layer": same("timestep_embedder.linear_1"),
        "time_in.out_layer": same("timestep_embedder.linear_2"),
        "ref_time_in.in_layer": same("target_timestep_embedder.linear_1"),  # a flow map's
        "ref_time_in.out_layer": same("target_timestep_embedder.linear_2"),
        "final_layer.image.linear": same("proj_out"),
        "final_layer.image.adaLN_modulation.1": swapped("norm_out.linear"),
    }
    for mode in MODES:
        if mode != "txt":
            table[f"emb_in.{mode}"] = same(f"x_embedders.{mode}")
        for stream in ("early", "single"):
            name = f"{stream}_stream_modulations.{mode}"
            table[f"{name}.lin"] = same(f"{name}.linear")
    stacks = {
        "content_mode_blocks.image": ("mode_blocks.image", layers),
        "content_mode_blocks.image_cond": ("mode_blocks.image_cond", layers),
        "txt_mode_blocks": ("txt_mode_blocks", layers),
        "single_blocks": ("single_transformer_blocks", single_layers),
    }
    for theirs, (ours, blocks) in stacks.items():
        for index in range(blocks):
            block = _block(f"{ours}.{index}")
            table |= {f"{theirs}.{index}.{name}": targets for name, targets in block}
    return table


def _block(block: str) -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield from ((f"{part}_proj", same(f"{block}.attn.to_{part}")) for part in "qkv")
    yield "attn_out", same(f"{block}.attn.to_out.0")
    yield "norm.query_norm.scale", same(f"{block}.attn.norm_q.weight")
    yield "norm.key_norm.scale", same(f"{block}.attn.norm_k.weight")
    yield "mlp_in", same(f"{block}.ff.linear_in")
    yield "mlp_out", same(f"{block}.ff.linear_out")


def original_table(shapes: Shapes) -> Table:
    """That of a file, whose heads of training are of no use."""
    layers, single_layers = count(shapes, "txt_mode_blocks"), count(shapes, "single_blocks")
    of_training = {name: () for name in shapes if name.startswith("repa_projectors.")}
    return {**table(layers, single_layers), **of_training}


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' Flux3Transformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["emb_in.image.weight"]
    (head_dim,) = shapes["single_blocks.0.norm.query_norm.scale"]
    return {
        "in_channels": channels,
        "cond_in_channels": shapes["emb_in.image_cond.weight"][1],
        "num_layers": count(shapes, "txt_mode_blocks"),
        "num_single_layers": count(shapes, "single_blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": shapes["single_blocks.0.mlp_out.weight"][1] / width,
        "axes_dims_rope": [head_dim // ROPE_AXES] * ROPE_AXES,
        "rope_theta": 10_000,
        "eps": 1e-6,
        "flow_map": "ref_time_in.in_layer.weight" in shapes,
    }


def lora_names(linears: Shapes) -> Table:
    """Its authors' names."""
    return table(count(linears, "txt_mode_blocks"), count(linears, "single_transformer_blocks"))


FAMILY = Family(
    pipeline="Flux3ModularPipeline",
    transformer="Flux3Transformer2DModel",
    grid="even",  # np.linspace(1, 1 / n, n)
    # of Flux3SetTimestepsStep and Flux3LoopDenoiser
    defaults={False: Defaults(GuidanceInput.BRANCHES, 50, 3.5)},
    latents=flux2.LATENTS,
    # of Flux3ImageProcessor
    references=References(
        MAX_REFERENCES, shrunk_and_cropped(1024**2, 16), alone=padded(4 * 1024**2, 16, 64, 4096)
    ),
    lora_names=lora_names,
    mark="x_embedders.image.weight",
    original=OriginalFile(
        mark="emb_in.image.weight",
        config=config,
        table=lambda shapes, known: original_table(shapes),
        scheduler=lambda shapes: {"shift": SHIFT},
        text_encoders={"text_encoder": "qwen3vl_4b"},
    ),
    makes_its_scheduler=True,
)
DISTILLED = replace(
    FAMILY,
    pipeline="Flux3DistilledModularPipeline",
    defaults={False: Defaults(GuidanceInput.NONE, 16, 1.0)},
    flow_map=True,
)
