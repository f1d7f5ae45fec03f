"""The weights of a component by name, each read when it is looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.checkpoints.formats import read_contents
from triptych.checkpoints.formats.stored import Decoded, Stored
from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class Weights(Mapping[str, "Tensor"]):
    """Stored tensors. The one that was decoded last is kept: its parts are often asked for in a row."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self._tensors = tensors
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """Raises CheckpointError for integers: a weight that is stored as them lacks its scales."""
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        self._last = None
        stored = self._tensors[name]
        tensor = stored.read()
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{stored.file}: {name} holds integers ({stored.dtype}), and nothing says by which scales"
            )
        if isinstance(stored, Decoded):
            self._last = name, tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_weights(files: Sequence[Path]) -> Weights:
    """The weights of some files. Raises CheckpointError."""
    return Weights(read_contents(files).tensors)
