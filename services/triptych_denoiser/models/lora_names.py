"""What LoRA files call a transformer's linears: diffusers' names, and those of the family's repository."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from triptych_denoiser.models.loading import Place

Names = Sequence[tuple[str, Sequence[str]]]
"""A module of the family's own repository, and diffusers' modules that have its rows, one after the other.

A * stands for the number of a block.
"""


def _each(pattern: str, letters: str = "qkv") -> list[str]:
    return [pattern.replace("?", letter) for letter in letters]


# https://github.com/Stability-AI/sd3.5 (mmditx.py), as diffusers' scripts/convert_sd3_to_diffusers.py has it.
SD3: Names = (
    ("x_embedder.proj", ["pos_embed.proj"]),
    ("t_embedder.mlp.0", ["time_text_embed.timestep_embedder.linear_1"]),
    ("t_embedder.mlp.2", ["time_text_embed.timestep_embedder.linear_2"]),
    ("y_embedder.mlp.0", ["time_text_embed.text_embedder.linear_1"]),
    ("y_embedder.mlp.2", ["time_text_embed.text_embedder.linear_2"]),
    ("joint_blocks.*.x_block.adaLN_modulation.1", ["transformer_blocks.*.norm1.linear"]),
    ("joint_blocks.*.x_block.attn.qkv", _each("transformer_blocks.*.attn.to_?")),
    ("joint_blocks.*.x_block.attn.proj", ["transformer_blocks.*.attn.to_out.0"]),
    ("joint_blocks.*.x_block.attn2.qkv", _each("transformer_blocks.*.attn2.to_?")),
    ("joint_blocks.*.x_block.attn2.proj", ["transformer_blocks.*.attn2.to_out.0"]),
    ("joint_blocks.*.x_block.mlp.fc1", ["transformer_blocks.*.ff.net.0.proj"]),
    ("joint_blocks.*.x_block.mlp.fc2", ["transformer_blocks.*.ff.net.2"]),
    ("joint_blocks.*.context_block.adaLN_modulation.1", ["transformer_blocks.*.norm1_context.linear"]),
    ("joint_blocks.*.context_block.attn.qkv", _each("transformer_blocks.*.attn.add_?_proj")),
    ("joint_blocks.*.context_block.attn.proj", ["transformer_blocks.*.attn.to_add_out"]),
    ("joint_blocks.*.context_block.mlp.fc1", ["transformer_blocks.*.ff_context.net.0.proj"]),
    ("joint_blocks.*.context_block.mlp.fc2", ["transformer_blocks.*.ff_context.net.2"]),
    ("final_layer.adaLN_modulation.1", ["norm_out.linear"]),
    ("final_layer.linear", ["proj_out"]),
)

# https://github.com/black-forest-labs/flux (src/flux/model.py), as diffusers' convert_flux_to_diffusers.py
# has it.
FLUX: Names = (
    ("img_in", ["x_embedder"]),
    ("txt_in", ["context_embedder"]),
    ("time_in.in_layer", ["time_text_embed.timestep_embedder.linear_1"]),
    ("time_in.out_layer", ["time_text_embed.timestep_embedder.linear_2"]),
    ("guidance_in.in_layer", ["time_text_embed.guidance_embedder.linear_1"]),
    ("guidance_in.out_layer", ["time_text_embed.guidance_embedder.linear_2"]),
    ("vector_in.in_layer", ["time_text_embed.text_embedder.linear_1"]),
    ("vector_in.out_layer", ["time_text_embed.text_embedder.linear_2"]),
    ("double_blocks.*.img_mod.lin", ["transformer_blocks.*.norm1.linear"]),
    ("double_blocks.*.img_attn.qkv", _each("transformer_blocks.*.attn.to_?")),
    ("double_blocks.*.img_attn.proj", ["transformer_blocks.*.attn.to_out.0"]),
    ("double_blocks.*.img_mlp.0", ["transformer_blocks.*.ff.net.0.proj"]),
    ("double_blocks.*.img_mlp.2", ["transformer_blocks.*.ff.net.2"]),
    ("double_blocks.*.txt_mod.lin", ["transformer_blocks.*.norm1_context.linear"]),
    ("double_blocks.*.txt_attn.qkv", _each("transformer_blocks.*.attn.add_?_proj")),
    ("double_blocks.*.txt_attn.proj", ["transformer_blocks.*.attn.to_add_out"]),
    ("double_blocks.*.txt_mlp.0", ["transformer_blocks.*.ff_context.net.0.proj"]),
    ("double_blocks.*.txt_mlp.2", ["transformer_blocks.*.ff_context.net.2"]),
    ("single_blocks.*.modulation.lin", ["single_transformer_blocks.*.norm.linear"]),
    (
        "single_blocks.*.linear1",
        [*_each("single_transformer_blocks.*.attn.to_?"), "single_transformer_blocks.*.proj_mlp"],
    ),
    ("single_blocks.*.linear2", ["single_transformer_blocks.*.proj_out"]),
    ("final_layer.adaLN_modulation.1", ["norm_out.linear"]),
    ("final_layer.linear", ["proj_out"]),
)

# diffusers keeps the repository's names, but for fused projections.
Z_IMAGE: Names = tuple(
    (f"{blocks}.*.attention.{theirs}", targets)
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for theirs, targets in (
        ("qkv", _each(f"{blocks}.*.attention.to_?")),
        ("out", [f"{blocks}.*.attention.to_out.0"]),
    )
)

NAMES: Mapping[str, Names] = {
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
    "ZImageTransformer2DModel": Z_IMAGE,
}
"""By the class that a checkpoint's model_index.json names."""

_PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_")


@dataclass(frozen=True)
class Spelled:
    """diffusers' modules that have the rows of a LoRA's module, one after the other.

    halves_swapped: whether the rows are a shift and then a scale, which diffusers has the other way round.
    """

    modules: Sequence[str]
    halves_swapped: bool = False


class LinearNames:
    """Finds diffusers' modules by whatever name a LoRA file has for them.

    Trainers write a module's dots as they are or as underscores; with underscores, names are still distinct.
    """

    def __init__(self, names: Names, places: Mapping[str, Place]) -> None:
        self._spelled = {_flat(module): Spelled([module]) for module in places}
        self._spelled |= {_flat(name): spelled for name, spelled in _originals(names, places)}

    def find(self, name: str) -> Spelled | None:
        """What a file's module, "transformer.proj_out" or "lora_unet_img_in", is; None for any other name."""
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                return self._spelled.get(_flat(name.removeprefix(prefix)))
        return self._spelled.get(_flat(name))


def _originals(names: Names, places: Mapping[str, Place]) -> Iterator[tuple[str, Spelled]]:
    """The repository's modules that this transformer has."""
    numbers = sorted({number for module in places for number in re.findall(r"\.(\d+)\.", module)})
    for name, patterns in names:
        for number in numbers if "*" in name else [""]:
            modules = [pattern.replace("*", number) for pattern in patterns]
            if all(module in places for module in modules):
                place = places[modules[0]]
                swapped = "adaLN_modulation" in name and place.rows == 2 * place.columns
                yield name.replace("*", number), Spelled(modules, swapped)


def _flat(name: str) -> str:
    return name.replace(".", "_")
