"""FLUX.1: dev, which takes the guidance scale as an input, and schnell, which takes none.

Sources: FluxPipeline in diffusers; model.py and cli.py in black-forest-labs/flux, and
convert_flux_transformer_checkpoint_to_diffusers in diffusers' loaders/single_file_utils.py. The colours are
ComfyUI's (comfy/latent_formats.py, Flux), fitted by its authors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triptych.families import mag_ratios, teacache
from triptych.families.family import Defaults, Family, GuidanceInput, LatentSpace, OriginalFile
from triptych.families.layouts import Shapes, Table, Target, count, fused, same, swapped

ROPE_AXES = (16, 56, 56)
DEV_SHIFTS = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def table(layers: int, single_layers: int, width: int) -> Table:
    """FLUX.1's transformer with so many blocks of two streams and of one, `width` channels of a token."""
    embedders = (
        ("time_in", "timestep_embedder"),
        ("vector_in", "text_embedder"),
        ("guidance_in", "guidance_embedder"),
    )
    table = {
        "img_in": same("x_embedder"),
        "txt_in": same("context_embedder"),
        "final_layer.linear": same("proj_out"),
        "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
    }
    for theirs, ours in embedders:
        table[f"{theirs}.in_layer"] = same(f"time_text_embed.{ours}.linear_1")
        table[f"{theirs}.out_layer"] = same(f"time_text_embed.{ours}.linear_2")
    for index in range(layers):
        for stream in (_IMAGE, _TEXT):
            block = _double_stream(f"transformer_blocks.{index}", width, *stream)
            table |= {f"double_blocks.{index}.{name}": targets for name, targets in block}
    for index in range(single_layers):
        block = _single_block(f"single_transformer_blocks.{index}", width)
        table |= {f"single_blocks.{index}.{name}": targets for name, targets in block}
    return table


# What a stream's names begin with, and diffusers' names: products, norms, output, MLP, modulation.
_IMAGE = ("img", "to_{}", "norm_{}", "to_out.0", "ff", "norm1")
_TEXT = ("txt", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context", "norm1_context")


def _double_stream(
    block: str, width: int, stream: str, product: str, norm: str, out: str, mlp: str, modulation: str
) -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield f"{stream}_mod.lin", same(f"{block}.{modulation}.linear")
    yield f"{stream}_attn.qkv", fused(width, *(f"{block}.attn.{product.format(part)}" for part in "qkv"))
    yield f"{stream}_attn.proj", same(f"{block}.attn.{out}")
    yield f"{stream}_attn.norm.query_norm.scale", same(f"{block}.attn.{norm.format('q')}.weight")
    yield f"{stream}_attn.norm.key_norm.scale", same(f"{block}.attn.{norm.format('k')}.weight")
    yield f"{stream}_mlp.0", same(f"{block}.{mlp}.net.0.proj")
    yield f"{stream}_mlp.2", same(f"{block}.{mlp}.net.2")


def _single_block(block: str, width: int) -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield "modulation.lin", same(f"{block}.norm.linear")
    products = (f"{block}.attn.to_{part}" for part in "qkv")
    yield "linear1", fused(width, *products, f"{block}.proj_mlp")
    yield "linear2", same(f"{block}.proj_out")
    yield "norm.query_norm.scale", same(f"{block}.attn.norm_q.weight")
    yield "norm.key_norm.scale", same(f"{block}.attn.norm_k.weight")


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' FluxTransformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count(shapes, "double_blocks"),
        "num_single_layers": count(shapes, "single_blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": takes_guidance(shapes),
        "axes_dims_rope": list(ROPE_AXES),
    }


def takes_guidance(shapes: Shapes) -> bool:
    """Whether FLUX.1's transformer takes the guidance scale as an input, as dev does and schnell does not."""
    return "guidance_in.in_layer.weight" in shapes


def scheduler(shapes: Shapes) -> dict[str, Any]:
    """The scheduler_config.json of dev or of schnell."""
    return dict(DEV_SHIFTS) if takes_guidance(shapes) else {"shift": 1.0}


def lora_names(linears: Shapes) -> Table:
    """The names in flux's model.py."""
    layers, single_layers = (count(linears, f"{kind}transformer_blocks") for kind in ("", "single_"))
    width = linears["proj_out"][1]
    return {**table(layers, single_layers, width), **_xlabs_names(layers, single_layers, width)}


def _xlabs_names(layers: int, single_layers: int, width: int) -> Table:
    """Of attention's processors in x-flux's src/flux/modules/layers.py."""
    names: dict[str, tuple[Target, ...]] = {}
    for index in range(layers):
        theirs, block = f"double_blocks.{index}.processor", f"transformer_blocks.{index}.attn"
        for number, (_, product, _, out, *_) in enumerate((_IMAGE, _TEXT), 1):
            names[f"{theirs}.qkv_lora{number}"] = fused(
                width, *(f"{block}.{product.format(p)}" for p in "qkv")
            )
            names[f"{theirs}.proj_lora{number}"] = same(f"{block}.{out}")
    for index in range(single_layers):
        theirs, block = f"single_blocks.{index}.processor", f"single_transformer_blocks.{index}"
        names[f"{theirs}.qkv_lora"] = fused(width, *(f"{block}.attn.to_{p}" for p in "qkv"))
        names[f"{theirs}.proj_lora"] = same(f"{block}.proj_out")
    return names


LATENTS = LatentSpace(
    vae="AutoencoderKL",
    scaling_factor=0.3611,
    shift_factor=0.1159,
    rgb_factors=(
        (-0.0346, 0.0244, 0.0681),
        (0.0034, 0.0210, 0.0687),
        (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617),
        (0.0859, 0.0721, 0.0329),
        (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915),
        (-0.0236, -0.0185, -0.0259),
        (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421),
        (-0.0515, 0.0201, 0.0011),
        (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749),
        (-0.1264, -0.0522, -0.1103),
        (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    rgb_bias=(-0.0329, -0.0718, -0.0851),
)

FAMILY = Family(
    pipeline="FluxPipeline",
    transformer="FluxTransformer2DModel",
    grid="even",  # np.linspace(1, 1 / n, n)
    defaults={
        # of FluxPipeline.__call__
        True: Defaults(
            *(GuidanceInput.EMBEDDED, 28, 3.5),
            mag_ratios=mag_ratios.FLUX_1_DEV,
            teacache_coefficients=teacache.FLUX_1_DEV,
        ),
        False: Defaults(GuidanceInput.NONE, 4, 1.0),  # its example for schnell, and its authors' cli.py
    },
    latents=LATENTS,
    lora_names=lora_names,
    mark="single_transformer_blocks.0.attn.to_q.weight",
    original=OriginalFile(
        mark="double_blocks.0.img_mod.lin.weight",  # FLUX.2 has one modulation for all blocks
        config=config,
        table=lambda shapes, known: table(
            known["num_layers"], known["num_single_layers"], shapes["img_in.weight"][0]
        ),
        scheduler=scheduler,
        text_encoders={"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
        vae_file="ae.safetensors",
    ),
)
