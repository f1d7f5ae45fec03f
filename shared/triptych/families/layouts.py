"""Names of tensors as a model's authors have them: which of diffusers' each is, and what shapes tell.

A transformer's are in the file of its family; here is what they are written with, and what families share.
Sources: autoencoder.py (black-forest-labs/flux) and convert_ldm_vae_checkpoint in diffusers'
loaders/single_file_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of one component's tensors by their original names, or of linears' weights by module."""

Target = tuple[str, "Callable[[Tensor], Tensor] | None"]
"""A name in diffusers, and how its tensor is made of the original one; None: it is the same."""

Table = Mapping[str, tuple[Target, ...]]
"""What each original name gives. Names stand for a module (its weight and bias) or for one tensor."""

FLUX2_VAE_MARK = "bn.running_mean"
"""A tensor that no autoencoder but FLUX.2's has."""


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
    """AutoencoderKL and AutoencoderKLFlux2.

    The decoder's blocks count from the pixels here, from the latents in diffusers.
    """
    table: dict[str, tuple[Target, ...]] = {
        "encoder.quant_conv": same("quant_conv"),  # FLUX.2's: SD1's are not in encoder and decoder
        "decoder.post_quant_conv": same("post_quant_conv"),
    }
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
        "use_quant_conv": not shapes.keys().isdisjoint({"quant_conv.weight", "encoder.quant_conv.weight"}),
        "use_post_quant_conv": not shapes.keys().isdisjoint(
            {"post_quant_conv.weight", "decoder.post_quant_conv.weight"}
        ),
    }


def flux2_vae_config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' AutoencoderKLFlux2. Raises KeyError for a tensor that is missing."""
    config = vae_config(shapes)
    side = math.isqrt(shapes[FLUX2_VAE_MARK][0] // config["latent_channels"])
    levels = range(len(config["block_out_channels"]))
    decoder = [shapes[f"decoder.up.{level}.block.0.conv1.weight"][0] for level in levels]
    return config | {"decoder_block_out_channels": decoder, "patch_size": [side, side], "sample_size": 1024}


def _vae_levels(shapes: Shapes) -> tuple[int, int]:
    """How many resolutions there are, and how many residual blocks at each on the encoder's side."""
    return count(shapes, "encoder.down"), count(shapes, "encoder.down.0.block")


def count(shapes: Shapes, prefix: str) -> int:
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


def swapped(name: str) -> tuple[Target, ...]:
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
