"""Safetensors files: the shapes in their header, and their tensors, memory-mapped, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


class Weights(Mapping[str, "torch.Tensor"]):
    """The tensors of some safetensors files.

    Each look-up maps the file anew: when the tensor is gone, so are the pages that were read for it, and a
    model that copies its weights one by one never has the file in memory beside itself.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        for path in files:
            self._file_of.update(dict.fromkeys(open_safetensors(path).keys(), path))

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = open_safetensors(self._file_of[name]).get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def open_safetensors(path: Path) -> Any:
    """The file, opened by safetensors for torch. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a file, from its header alone: it needs neither safetensors nor torch.

    The format: 8 bytes with the length of a JSON object, little-endian, and the object
    (https://huggingface.co/docs/safetensors). Raises CheckpointError.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error
