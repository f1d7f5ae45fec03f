"""What LoRA files call a transformer's linears: diffusers' names, and those of the family's repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triptych.families.layouts import Table, Target
from triptych_denoiser.models.loading import Place

Places = Mapping[str, Place]
"""The places of a transformer's linears by diffusers' names of them."""


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


def _flat(name: str) -> str:
    return name.replace(".", "_")
