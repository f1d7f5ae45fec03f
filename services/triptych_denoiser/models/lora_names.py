"""What LoRA files call a transformer's linears: diffusers' names, and those of the family's repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from triptych.checkpoints.layouts import Table, Target, flux_table, fused, sd3_table
from triptych_denoiser.models.loading import Place

Places = Mapping[str, Place]
"""The places of a transformer's linears by diffusers' names of them."""


def sd3_names(places: Places) -> Table:
    """The names in sd3.5's mmditx.py."""
    return sd3_table(_count(places, "transformer_blocks"), places["proj_out"].columns)


def flux_names(places: Places) -> Table:
    """The names in flux's model.py."""
    layers, single_layers = (_count(places, f"{kind}transformer_blocks") for kind in ("", "single_"))
    return flux_table(layers, single_layers, places["proj_out"].columns)


def z_image_names(places: Places) -> Table:
    """The repository's fused projections; its other names are diffusers' own."""
    table: dict[str, tuple[Target, ...]] = {}
    for module, place in places.items():
        attention, _, name = module.rpartition(".to_")
        if name == "q":
            table[f"{attention}.qkv"] = fused(place.rows, *(f"{attention}.to_{part}" for part in "qkv"))
        elif name == "out.0":
            table[f"{attention}.out"] = ((module, None),)
    return table


NAMES: Mapping[str, Callable[[Places], Table]] = {
    "SD3Transformer2DModel": sd3_names,
    "FluxTransformer2DModel": flux_names,
    "ZImageTransformer2DModel": z_image_names,
}
"""By the class that a checkpoint's model_index.json names."""

_PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_")


class LinearNames:
    """Finds diffusers' modules by whatever name a LoRA file has for them.

    Trainers write a module's dots as they are or as underscores; with underscores, names are still distinct.
    """

    def __init__(self, originals: Table, places: Places) -> None:
        """`originals` may name more than this transformer has."""
        self._targets: dict[str, Sequence[Target]] = {_flat(module): [(module, None)] for module in places}
        for name, targets in originals.items():
            if all(module in places for module, _ in targets):
                self._targets[_flat(name)] = targets

    def find(self, name: str) -> Sequence[Target] | None:
        """What a file's module, "transformer.proj_out" or "lora_unet_img_in", is; None for any other name.

        diffusers' modules, each with how its rows are made of those of the file's module.
        """
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                return self._targets.get(_flat(name.removeprefix(prefix)))
        return self._targets.get(_flat(name))


def _count(places: Places, stack: str) -> int:
    """How many blocks a stack has."""
    return len({module.split(".")[1] for module in places if module.startswith(f"{stack}.")})


def _flat(name: str) -> str:
    return name.replace(".", "_")
