"""GGUF files: every kind of quantization that the package gguf decodes, a tensor at a time.

Names are those of the file. A tensor that was made rectangular to be quantized has its own shape in the
metadata, as `comfy.gguf.orig_shape.NAME` (tools/convert.py in city96/ComfyUI-GGUF).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.formats.stored import Contents, Decoded, Stored
from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_SHAPE = "comfy.gguf.orig_shape."
_ARCHITECTURE = "general.architecture"
_CHUNK_BYTES = 1 << 20
_PLAIN = {"F16", "F32", "F64", "BF16"}


@dataclass(frozen=True)
class Blocks:
    """Where a tensor's rows are in a file.

    kind: gguf's name of how they are quantized.
    rows, row_bytes: how many there are, and how long.
    """

    file: Path
    offset: int
    kind: str
    rows: int
    row_bytes: int
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor in float32, or in the dtype that it has; some rows at a time."""
        import numpy as np
        import torch

        packed = np.memmap(self.file, np.uint8, "r", self.offset, (self.rows, self.row_bytes))
        if self.kind in _PLAIN:
            dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}.get(
                self.kind, torch.float64
            )
            return torch.from_numpy(np.array(packed)).view(dtype).reshape(self.shape)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.kind]
        values = np.empty((self.rows, prod(self.shape) // self.rows), np.float32)
        step = max(1, _CHUNK_BYTES // self.row_bytes)

        def fill(start: int) -> None:
            values[start : start + step] = dequantize(packed[start : start + step], kind)

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            list(pool.map(fill, range(0, self.rows, step)))
        return torch.from_numpy(values).reshape(self.shape)


def read_gguf(path: Path) -> Contents:
    """What a file's header says. Needs gguf, and no torch. Raises CheckpointError."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path} is a GGUF file, which needs the package gguf: pip install 'triptych[gguf]'"
        ) from error
    try:
        reader = GGUFReader(path)
        tensors = {tensor.name: _tensor(path, reader, tensor) for tensor in reader.tensors}
        field = reader.get_field(_ARCHITECTURE)
        metadata = {_ARCHITECTURE: str(field.contents())} if field is not None else {}
    except CheckpointError:
        raise
    except Exception as error:  # of a broken file the reader has as many exceptions as there are bytes
        raise CheckpointError(
            f"{path} is a GGUF file, but truncated or broken ({type(error).__name__}: {error}): "
            "download it again"
        ) from error
    return Contents(tensors, metadata)


def _tensor(path: Path, reader: Any, tensor: Any) -> Stored:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import _type_traits

    kind = tensor.tensor_type
    if kind.name not in _PLAIN and kind not in _type_traits:
        raise CheckpointError(f"{path}: {tensor.name} is quantized as {kind.name}, which gguf cannot decode")
    stored = tuple(int(length) for length in reversed(tensor.shape))
    field = reader.get_field(_SHAPE + tensor.name)
    shape = tuple(int(length) for length in field.contents()) if field is not None else stored
    if prod(shape) != prod(stored):
        raise CheckpointError(f"{path}: {tensor.name} of shape {list(stored)} is said to be {list(shape)}")
    block, size = GGML_QUANT_SIZES[kind]
    rows, row_bytes = prod(stored[:-1]), stored[-1] // block * size
    blocks = Blocks(path, int(tensor.data_offset), kind.name, rows, row_bytes, shape)
    return Decoded(kind.name, shape, path, blocks.read)
