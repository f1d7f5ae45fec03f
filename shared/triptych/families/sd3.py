"""Stable Diffusion 3 and 3.5.

Sources: StableDiffusion3Pipeline in diffusers; mmditx.py in Stability-AI/sd3.5, and
convert_sd3_transformer_checkpoint_to_diffusers in diffusers' loaders/single_file_utils.py. The colours are
ComfyUI's (comfy/latent_formats.py, SD3), fitted by its authors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from triptych.families.family import Defaults, Family, GuidanceInput, LatentSpace, OriginalFile
from triptych.families.layouts import Shapes, Table, Target, count, fused, same, swapped

HEAD_DIM = 64


def table(layers: int, width: int) -> Table:
    """SD3's and SD3.5's transformer with so many blocks, `width` channels of a token."""
    table = {
        "pos_embed": same("pos_embed.pos_embed"),
        "x_embedder.proj": same("pos_embed.proj"),
        "context_embedder": same("context_embedder"),
        "t_embedder.mlp.0": same("time_text_embed.timestep_embedder.linear_1"),
        "t_embedder.mlp.2": same("time_text_embed.timestep_embedder.linear_2"),
        "y_embedder.mlp.0": same("time_text_embed.text_embedder.linear_1"),
        "y_embedder.mlp.2": same("time_text_embed.text_embedder.linear_2"),
        "final_layer.linear": same("proj_out"),
        "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
    }
    for index in range(layers):
        block = dict(_block(f"transformer_blocks.{index}", width, last=index == layers - 1))
        table |= {f"joint_blocks.{index}.{name}": targets for name, targets in block.items()}
    return table


def _block(block: str, width: int, last: bool) -> Iterator[tuple[str, tuple[Target, ...]]]:
    for attention in ("attn", "attn2"):
        parts = (f"{block}.{attention}.to_{part}" for part in "qkv")
        yield f"x_block.{attention}.qkv", fused(width, *parts)
        yield f"x_block.{attention}.proj", same(f"{block}.{attention}.to_out.0")
        for part in "qk":
            yield f"x_block.{attention}.ln_{part}", same(f"{block}.{attention}.norm_{part}")
    yield "context_block.attn.qkv", fused(width, *(f"{block}.attn.add_{part}_proj" for part in "qkv"))
    yield "context_block.attn.proj", same(f"{block}.attn.to_add_out")
    for part in "qk":
        yield f"context_block.attn.ln_{part}", same(f"{block}.attn.norm_added_{part}")
    yield "x_block.adaLN_modulation.1", same(f"{block}.norm1.linear")
    # The last block only normalizes the text, and diffusers has that norm's scale before its shift.
    modulation = swapped if last else same
    yield "context_block.adaLN_modulation.1", modulation(f"{block}.norm1_context.linear")
    for theirs, ours in (("x_block", "ff"), ("context_block", "ff_context")):
        yield f"{theirs}.mlp.fc1", same(f"{block}.{ours}.net.0.proj")
        yield f"{theirs}.mlp.fc2", same(f"{block}.{ours}.net.2")


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' SD3Transformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    layers = count(shapes, "joint_blocks")
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": width // HEAD_DIM,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": [
            index for index in range(layers) if f"joint_blocks.{index}.x_block.attn2.qkv.weight" in shapes
        ],
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def lora_names(linears: Shapes) -> Table:
    """The names in sd3.5's mmditx.py."""
    return table(count(linears, "transformer_blocks"), linears["proj_out"][1])


FAMILY = Family(
    pipeline="StableDiffusion3Pipeline",
    transformer="SD3Transformer2DModel",
    grid="training",  # set_timesteps(num_inference_steps)
    defaults={False: Defaults(GuidanceInput.BRANCHES, 28, 7.0)},  # of StableDiffusion3Pipeline.__call__
    latents=LatentSpace(
        vae="AutoencoderKL",
        scaling_factor=1.5305,
        shift_factor=0.0609,
        rgb_factors=(
            (-0.0922, -0.0175, 0.0749),
            (0.0311, 0.0633, 0.0954),
            (0.1994, 0.0927, 0.0458),
            (0.0856, 0.0339, 0.0902),
            (0.0587, 0.0272, -0.0496),
            (-0.0006, 0.1104, 0.0309),
            (0.0978, 0.0306, 0.0427),
            (-0.0042, 0.1038, 0.1358),
            (-0.0194, 0.0020, 0.0669),
            (-0.0488, 0.0130, -0.0268),
            (0.0922, 0.0988, 0.0951),
            (-0.0278, 0.0524, -0.0542),
            (0.0332, 0.0456, 0.0895),
            (-0.0069, -0.0030, -0.0810),
            (-0.0596, -0.0465, -0.0293),
            (-0.1448, -0.1463, -0.1189),
        ),
        rgb_bias=(0.2394, 0.2135, 0.1925),
    ),
    lora_names=lora_names,
    mark="pos_embed.proj.weight",
    original=OriginalFile(
        mark="joint_blocks.0.x_block.attn.qkv.weight",
        config=config,
        table=lambda shapes, known: table(known["num_layers"], known["caption_projection_dim"]),
        scheduler=lambda shapes: {"shift": 3.0},
        text_encoders={"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    ),
    # The model card's example.
    distilled_steps={"stable-diffusion-3.5-large-turbo": 4, "sd3.5-large-turbo": 4},
)
