"""Stability's and Black Forest Labs' key names: which of diffusers' each is, and the config that shapes tell.

Sources: sd3.5's mmditx.py (Stability-AI/sd3.5), flux's model.py and autoencoder.py (black-forest-labs/flux),
and convert_sd3_transformer_checkpoint_to_diffusers, convert_flux_transformer_checkpoint_to_diffusers and
convert_ldm_vae_checkpoint in diffusers' loaders/single_file_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""The tensors of one component by their original names."""

Target = tuple[str, "Callable[[Tensor], Tensor] | None"]
"""A name in diffusers, and how its tensor is made of the original one; None: it is the same."""

Table = Mapping[str, tuple[Target, ...]]
"""What each original name gives. Names stand for a module (its weight and bias) or for one tensor."""

SD3_HEAD_DIM = 64
FLUX_ROPE_AXES = (16, 56, 56)


def diffusers_tensors(
    table: Table, names: Shapes
) -> dict[str, tuple[str, Callable[[Tensor], Tensor] | None]]:
    """diffusers' names of tensors, each with the original name and how it is made of that tensor.

    What the table does not have keeps its name, so that whoever loads the tensors sees that it is unknown.
    """
    found: dict[str, tuple[str, Callable[[Tensor], Tensor] | None]] = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        if name in table:
            found.update({target: (name, change) for target, change in table[name]})
        elif module in table:
            found.update({f"{target}.{parameter}": (name, change) for target, change in table[module]})
        else:
            found[name] = (name, None)
    return found


def sd3_table(layers: int, width: int) -> Table:
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
        "final_layer.adaLN_modulation.1": _swapped("norm_out.linear"),
    }
    for index in range(layers):
        block = dict(_sd3_block(f"transformer_blocks.{index}", width, last=index == layers - 1))
        table |= {f"joint_blocks.{index}.{name}": targets for name, targets in block.items()}
    return table


def _sd3_block(block: str, width: int, last: bool) -> Iterator[tuple[str, tuple[Target, ...]]]:
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
    modulation = _swapped if last else same
    yield "context_block.adaLN_modulation.1", modulation(f"{block}.norm1_context.linear")
    for theirs, ours in (("x_block", "ff"), ("context_block", "ff_context")):
        yield f"{theirs}.mlp.fc1", same(f"{block}.{ours}.net.0.proj")
        yield f"{theirs}.mlp.fc2", same(f"{block}.{ours}.net.2")


def sd3_config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' SD3Transformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    layers = _count(shapes, "joint_blocks")
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": SD3_HEAD_DIM,
        "num_attention_heads": width // SD3_HEAD_DIM,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": [
            index for index in range(layers) if f"joint_blocks.{index}.x_block.attn2.qkv.weight" in shapes
        ],
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def flux_table(layers: int, single_layers: int, width: int) -> Table:
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
        "final_layer.adaLN_modulation.1": _swapped("norm_out.linear"),
    }
    for theirs, ours in embedders:
        table[f"{theirs}.in_layer"] = same(f"time_text_embed.{ours}.linear_1")
        table[f"{theirs}.out_layer"] = same(f"time_text_embed.{ours}.linear_2")
    for index in range(layers):
        for stream in (_IMAGE, _TEXT):
            block = _flux_double_stream(f"transformer_blocks.{index}", width, *stream)
            table |= {f"double_blocks.{index}.{name}": targets for name, targets in block}
    for index in range(single_layers):
        block = _flux_single_block(f"single_transformer_blocks.{index}", width)
        table |= {f"single_blocks.{index}.{name}": targets for name, targets in block}
    return table


# What a stream's names begin with, and diffusers' names: products, norms, output, MLP, modulation.
_IMAGE = ("img", "to_{}", "norm_{}", "to_out.0", "ff", "norm1")
_TEXT = ("txt", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context", "norm1_context")


def _flux_double_stream(
    block: str, width: int, stream: str, product: str, norm: str, out: str, mlp: str, modulation: str
) -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield f"{stream}_mod.lin", same(f"{block}.{modulation}.linear")
    yield f"{stream}_attn.qkv", fused(width, *(f"{block}.attn.{product.format(part)}" for part in "qkv"))
    yield f"{stream}_attn.proj", same(f"{block}.attn.{out}")
    yield f"{stream}_attn.norm.query_norm.scale", same(f"{block}.attn.{norm.format('q')}.weight")
    yield f"{stream}_attn.norm.key_norm.scale", same(f"{block}.attn.{norm.format('k')}.weight")
    yield f"{stream}_mlp.0", same(f"{block}.{mlp}.net.0.proj")
    yield f"{stream}_mlp.2", same(f"{block}.{mlp}.net.2")


def _flux_single_block(block: str, width: int) -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield "modulation.lin", same(f"{block}.norm.linear")
    products = (f"{block}.attn.to_{part}" for part in "qkv")
    yield "linear1", fused(width, *products, f"{block}.proj_mlp")
    yield "linear2", same(f"{block}.proj_out")
    yield "norm.query_norm.scale", same(f"{block}.attn.norm_q.weight")
    yield "norm.key_norm.scale", same(f"{block}.attn.norm_k.weight")


def flux_config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' FluxTransformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": _count(shapes, "double_blocks"),
        "num_single_layers": _count(shapes, "single_blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": flux_guidance(shapes),
        "axes_dims_rope": list(FLUX_ROPE_AXES),
    }


def flux_guidance(shapes: Shapes) -> bool:
    """Whether FLUX.1's transformer takes the guidance scale as an input, as dev does and schnell does not."""
    return "guidance_in.in_layer.weight" in shapes


def clip_table(shapes: Shapes) -> Table:
    """CLIP-L, whose files may lack the projection of its pooled vector: it is the identity then.

    Source: CLIPTextModel in other_impls.py (Stability-AI/sd3.5), which begins with the identity, and
    create_diffusers_clip_model_from_ldm.
    """
    norm = "text_model.final_layer_norm.weight"
    if "text_projection.weight" in shapes or norm not in shapes:
        return {}
    return {norm: ((norm, None), ("text_projection.weight", _identity))}


def vae_table(shapes: Shapes) -> Table:
    """AutoencoderKL. The decoder's blocks count from the pixels here, from the latents in diffusers."""
    table: dict[str, tuple[Target, ...]] = {}
    for coder in ("encoder", "decoder"):
        table[f"{coder}.norm_out"] = same(f"{coder}.conv_norm_out")
        table[f"{coder}.mid.attn_1.norm"] = same(f"{coder}.mid_block.attentions.0.group_norm")
        for theirs, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            target = f"{coder}.mid_block.attentions.0.{ours}"
            table[f"{coder}.mid.attn_1.{theirs}"] = ((target, _as_linear),)
        for number in (1, 2):
            table |= _vae_resnet(f"{coder}.mid.block_{number}", f"{coder}.mid_block.resnets.{number - 1}")
    levels, resnets = _vae_levels(shapes)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        table[f"encoder.down.{level}.downsample.conv"] = same(f"{down}.downsamplers.0.conv")
        table[f"decoder.up.{level}.upsample.conv"] = same(f"{up}.upsamplers.0.conv")
        for index in range(resnets + 1):  # the decoder has one more
            table |= _vae_resnet(f"encoder.down.{level}.block.{index}", f"{down}.resnets.{index}")
            table |= _vae_resnet(f"decoder.up.{level}.block.{index}", f"{up}.resnets.{index}")
    return table


def _vae_resnet(theirs: str, ours: str) -> Table:
    kept = {f"{theirs}.{name}": same(f"{ours}.{name}") for name in ("norm1", "conv1", "norm2", "conv2")}
    return kept | {f"{theirs}.nin_shortcut": same(f"{ours}.conv_shortcut")}


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' AutoencoderKL, but for scaling_factor and shift_factor, which no shape tells.

    Raises KeyError for a tensor that is missing.
    """
    levels, resnets = _vae_levels(shapes)
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [
            shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)
        ],
        "layers_per_block": resnets,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _vae_levels(shapes: Shapes) -> tuple[int, int]:
    """How many resolutions there are, and how many residual blocks at each on the encoder's side."""
    return _count(shapes, "encoder.down"), _count(shapes, "encoder.down.0.block")


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules there are under a prefix."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{prefix}.")})


def same(name: str) -> tuple[Target, ...]:
    """The tensor as it is."""
    return ((name, None),)


def fused(width: int, *names: str) -> tuple[Target, ...]:
    """Products computed as one: `width` rows are each one's, the rest the last one's."""
    starts = [width * index for index in range(len(names))]
    stops = [*starts[1:], None]
    return tuple(
        (name, partial(_rows, start=start, stop=stop))
        for name, start, stop in zip(names, starts, stops, strict=True)
    )


def _swapped(name: str) -> tuple[Target, ...]:
    """A modulation with the shift before the scale, where diffusers has the scale first."""
    return ((name, _halves_swapped),)


def _rows(tensor: Tensor, start: int, stop: int | None) -> Tensor:
    return tensor[start:stop]


def _halves_swapped(tensor: Tensor) -> Tensor:
    return tensor.roll(len(tensor) // 2, dims=0)


def _as_linear(tensor: Tensor) -> Tensor:
    """A 1x1 convolution's weight, [out, in, 1, 1], as a linear's."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor


def _identity(tensor: Tensor) -> Tensor:
    """The identity of a vector's size, in its dtype."""
    return tensor.new_ones(tensor.shape).diag()
