"""Z-Image, and its Turbo.

Sources: ZImagePipeline in diffusers, and convert_z_image_transformer_checkpoint_to_diffusers in its
loaders/single_file_utils.py. Its VAE is FLUX.1's.
"""

from __future__ import annotations

from typing import Any

from triptych.families import flux
from triptych.families.family import Defaults, Family, GuidanceInput, OriginalFile
from triptych.families.layouts import Shapes, Table, Target, count, fused, same

STACKS = ("layers", "noise_refiner", "context_refiner")
PATCH = 2


def table(shapes: Shapes, width: int) -> Table:
    """The repository's names, of which most are diffusers' own; shapes are by either, tokens `width` wide."""
    table: dict[str, tuple[Target, ...]] = {"norm_final.weight": ()}  # is in files, and in no model
    for part in ("linear", "adaLN_modulation.1"):
        table[f"final_layer.{part}"] = same(f"all_final_layer.{PATCH}-1.{part}")
    table["x_embedder"] = same(f"all_x_embedder.{PATCH}-1")
    for stack in STACKS:
        for index in range(count(shapes, stack)):
            attention = f"{stack}.{index}.attention"
            table[f"{attention}.qkv"] = fused(width, *(f"{attention}.to_{part}" for part in "qkv"))
            table[f"{attention}.out"] = same(f"{attention}.to_out.0")
            for part in "qk":
                table[f"{attention}.{part}_norm"] = same(f"{attention}.norm_{part}")
    return table


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' ZImageTransformer2DModel. Raises KeyError for a tensor that is missing."""
    width, patch = shapes["x_embedder.weight"]
    (head_dim,) = shapes["layers.0.attention.q_norm.weight"]
    heads = width // head_dim
    return {
        "all_patch_size": [PATCH],
        "all_f_patch_size": [1],
        "in_channels": patch // PATCH**2,
        "dim": width,
        "n_layers": count(shapes, "layers"),
        "n_refiner_layers": count(shapes, "noise_refiner"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8],
        "axes_lens": [1536, 512, 512],
    }


def lora_names(linears: Shapes) -> Table:
    """The repository's names."""
    return table(linears, linears[f"all_x_embedder.{PATCH}-1"][0])


FAMILY = Family(
    pipeline="ZImagePipeline",
    transformer="ZImageTransformer2DModel",
    grid="even by torch",  # get_default_z_image_sigmas
    # ZImagePipeline.__call__: 50 steps, guidance 5, which there is c + 5 (c - u): u + 6 (c - u).
    defaults={False: Defaults(GuidanceInput.BRANCHES, 50, 6.0)},
    latents=flux.LATENTS,
    lora_names=lora_names,
    mark=f"all_x_embedder.{PATCH}-1.weight",
    original=OriginalFile(
        mark="noise_refiner.0.attention.qkv.weight",
        config=config,
        table=lambda shapes, known: table(shapes, shapes["x_embedder.weight"][0]),
        scheduler=lambda shapes: {},  # the shift of its Turbo is another one
        text_encoders={"text_encoder": "qwen3_4b"},
        vae_file="ae.safetensors",
    ),
    distilled_steps={"z-image-turbo": 8},  # the 9 steps of its model card's example are 8 passes
)
