"""Safetensors files: what their header says, and their tensors, memory-mapped.

The format: 8 bytes with the length of a JSON object, little-endian, the object, and the tensors' bytes
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.formats.stored import Contents, Stored
from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class MappedTensor(Stored):
    """A tensor in a safetensors file: its name there, and where its bytes begin and end.

    Each reading maps the file anew: when the tensor is gone, so are the pages that were read for it, and a
    model that copies its weights one by one never has the file in memory beside itself.
    """

    name: str
    begin: int
    end: int

    def read(self) -> Tensor:
        """See Stored."""
        tensor: Tensor = open_safetensors(self.file).get_tensor(self.name)
        return tensor

    def raw(self) -> bytes:
        """See Stored."""
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            return stream.read(self.end - self.begin)


def read_safetensors(path: Path) -> Contents:
    """What a file's header says: it needs neither safetensors nor torch. Raises CheckpointError."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(stream.read(length))
            size = stream.seek(0, 2)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
        end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error
    if size < end:
        raise CheckpointError(
            f"{path} is truncated: it has {size} of the {end} bytes that its header tells of; "
            "download it again"
        )
    return Contents(dict(tensors), metadata)


def open_safetensors(path: Path) -> Any:
    """The file, opened by safetensors for torch. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error


def _tensor(path: Path, name: str, entry: Any, first_byte: int) -> MappedTensor:
    begin, end = entry["data_offsets"]
    return MappedTensor(
        entry["dtype"], tuple(entry["shape"]), path, name, first_byte + begin, first_byte + end
    )
