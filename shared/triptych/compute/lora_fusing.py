"""LoRAs in the weights for good, as a checkpoint's tensors are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from triptych.compute.lora_changes import Change, LoraFile, Part, rows_of_target
from triptych.errors import CheckpointError


class FusedTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors with LoRAs in them, each computed in float32 when it is looked up."""

    def __init__(self, tensors: Mapping[str, Tensor], loras: Sequence[tuple[LoraFile, float]]) -> None:
        """Raises CheckpointError if a bias is changed that the checkpoint does not have."""
        self._tensors = tensors
        self._changes: dict[str, list[tuple[Change, float]]] = {}
        for file, weight in loras:
            for change in file.changes:
                for module, _ in change.targets:
                    self._changes.setdefault(module, []).append((change, weight))
                    if change.bias is not None and f"{module}.bias" not in tensors:
                        raise CheckpointError(
                            f"--lora: {change.name} changes the bias of {module}, which has none: it cannot "
                            "be fused into the weights, but requests can name such a LoRA"
                        )

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        module, _, parameter = key.rpartition(".")
        for change, weight in self._changes.get(module, ()):
            added = self._added(change, module, parameter)
            if added is not None:
                tensor = tensor.float() + weight * added.reshape(tensor.shape)
        return tensor

    def _added(self, change: Change, module: str, parameter: str) -> Tensor | None:
        rows_of = dict(change.targets)[module]
        if parameter == "bias":
            return None if change.bias is None else rows_of_target(change.bias, rows_of)
        if parameter != "weight" or not change.factors:
            return None
        gains = change.gains(self._weight)
        gain = gains[[target for target, _ in change.targets].index(module)]
        return Part(0, change.form, change.factors, rows_of, gain).delta(self._weight(module))

    def _weight(self, module: str) -> Tensor:
        weight = self._tensors[f"{module}.weight"]
        return weight.reshape(len(weight), -1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
