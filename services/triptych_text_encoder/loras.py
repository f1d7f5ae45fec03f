"""LoRAs on text encoders: what files call their modules, and how changes are added to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.lora_changes import Loras, ModuleChange
from triptych.compute.lora_files import Modules, flat, is_for_text_encoders, without_prefix
from triptych.compute.lora_placing import Place
from triptych.families import family_of
from triptych_text_encoder.components import spellings

if TYPE_CHECKING:
    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.families.layouts import Target
    from triptych_text_encoder.recipes import Recipe

_NAME = re.compile(
    r"(?:base_model\.model\.)?"
    r"(?:(?P<component>text_encoder(?:_\d)?)\.|text_encoders\.(?P<maker>[^.]+)\.|lora_te(?P<number>\d?)_)"
    r"(?P<module>.+)"
)
#: What the makers call the encoders that sd-scripts numbers, whichever of them a model has.
_MAKERS = {"": "clip_l", "1": "clip_l", "2": "clip_g", "3": "t5xxl"}


class TextEncoderNames:
    """Finds linears of the encoders by the names of diffusers, sd-scripts and node editors."""

    what = "model's text encoders"
    optional = True  # SD3 may be served without the T5 that a LoRA was trained with

    def __init__(self, makers: dict[str, str], linears: Sequence[str]) -> None:
        """`makers` has the components by their makers' names, `linears` begin with their component."""
        self.components = list(dict.fromkeys(linear.split(".")[0] for linear in linears))
        self._makers = makers
        self._targets: dict[str, dict[str, list[Target]]] = {name: {} for name in self.components}
        for linear in linears:
            component, _, path = linear.partition(".")
            for spelling in spellings(path):
                self._targets[component][flat(spelling)] = [(linear, None)]

    def find(self, name: str) -> Sequence[Target] | None:
        """As LoraNames: of "text_encoder_2.encoder...", "lora_te1_text_model..."; None for others."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        number = match["number"] or "1"
        maker = match["maker"] or _MAKERS.get(number)
        numbered = "text_encoder" if number == "1" else f"text_encoder_{number}"
        component = match["component"] or self._makers.get(maker or "", numbered)
        known = self._targets.get(component, {})
        found = without_prefix(flat(match["module"]), known)
        return None if found is None else known[found]

    def owns(self, key: str) -> bool:
        """What is for text encoders."""
        return is_for_text_encoders(key)


def model_of(recipe: Recipe) -> nn.ModuleDict:
    """The encoders by their components' names."""
    return nn.ModuleDict(
        {name: tower.model for name, tower in zip(recipe.encoders, recipe.towers, strict=True)}
    )


def modules_of(checkpoint: Checkpoint, model: nn.ModuleDict) -> Modules:
    """The encoders' linears, by the names that LoRA files have for them."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    places = {
        name: Place(name, 0, linear.out_features, linear.out_features, linear.in_features)
        for name, linear in linears.items()
    }
    family = family_of(str(checkpoint.index["_class_name"]))
    encoders = family.original.text_encoders if family and family.original else {}
    makers = {maker: component for component, maker in encoders.items()}
    return Modules(places, TextEncoderNames(makers, list(places)))


@contextmanager
def added(model: nn.Module, loras: Loras) -> Iterator[None]:
    """Within it, the encoders' linears, which are transformers' own, add the LoRAs to their products."""
    with ExitStack() as hooks:
        for lora, weight in loras:
            for name, change in lora.changes.items():
                handle = model.get_submodule(name).register_forward_hook(_adding(change, weight))
                hooks.callback(handle.remove)
        yield


def _adding(change: ModuleChange, times: float) -> Any:
    def hook(linear: nn.Linear, inputs: tuple[Tensor, ...], product: Tensor) -> Tensor:
        rows, features = inputs[0].flatten(0, -2), product.flatten(0, -2)
        return change.added(features, rows, linear.weight, times, F.linear).view_as(product)

    return hook
