"""What LoRA files call a transformer's modules: diffusers' names, and those of the family's repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triptych.compute.lora_files import flat, is_for_text_encoders, without_prefix
from triptych.compute.lora_placing import Place
from triptych.families.layouts import Table, Target


class TransformerNames:
    """Finds diffusers' modules by whatever name a LoRA file has for them.

    Trainers write a module's dots as they are or as underscores; with underscores, names are still distinct.
    """

    what = "transformer"
    components = ("transformer",)
    optional = False

    def __init__(self, originals: Table, places: Mapping[str, Place]) -> None:
        """`originals` may name more than this transformer has."""
        self._targets: dict[str, Sequence[Target]] = {}
        for name, targets in originals.items():
            modules = [(module.removesuffix(".weight"), rows_of) for module, rows_of in targets]
            if modules and all(module in places for module, _ in modules):
                self._targets[flat(name.removesuffix(".scale"))] = modules
        self._targets |= {flat(module): [(module, None)] for module in places}

    def find(self, name: str) -> Sequence[Target] | None:
        """As LoraNames: of "transformer.proj_out", "lora_unet_img_in"; None for any other name."""
        found = without_prefix(flat(name), self._targets)
        return None if found is None else self._targets[found]

    def owns(self, key: str) -> bool:
        """What is not for text encoders."""
        return not is_for_text_encoders(key)
