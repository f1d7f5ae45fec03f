"""Tensors on the wire: numpy arrays and torch tensors to messages and back, checked."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from triptych.errors import invalid_argument
from triptych.v1 import tensor_pb2
from triptych.wire.messages import TensorLike, TensorView

if TYPE_CHECKING:
    import torch

MAX_DIMENSIONS = 8
MAX_BYTES = 2**62  # of the shape with its zeros left out, so that strides fit in 64 bits

_NUMPY_DTYPES: dict[int, np.dtype[Any]] = {
    tensor_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DTYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DTYPE_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    tensor_pb2.DTYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DTYPE_INT64: np.dtype("<i8"),
}
_NAMES: dict[int, str] = {number: dtype.name for number, dtype in _NUMPY_DTYPES.items()}
_DTYPES_BY_NAME: dict[str, tensor_pb2.Dtype.ValueType] = {
    name: tensor_pb2.Dtype.Value(f"DTYPE_{name.upper()}") for name in _NAMES.values()
}

Shape = Sequence[int | str]
"""An expected shape: a number is required as it is, a name stands for any size: ("samples", 16, "height")."""


def array_to_message(array: npt.NDArray[Any]) -> tensor_pb2.Tensor:
    """Returns the message for an array of any shape and memory layout.

    Raises TypeError if the array's dtype has no place on the wire (see Dtype in tensor.proto).
    """
    return array_view(array).message()


def array_view(array: npt.NDArray[Any]) -> TensorView:
    """As array_to_message, over the array's own memory where its layout allows: it must not change later."""
    dtype = _wire_dtype(array.dtype.name)
    little_endian = np.ascontiguousarray(array, dtype=_NUMPY_DTYPES[dtype])
    return TensorView(dtype, array.shape, _octets(little_endian))


def message_to_array(
    message: TensorLike,
    field: str,
    *,
    dtypes: Collection[str] | None = None,
    shape: Shape | None = None,
) -> npt.NDArray[Any]:
    """Returns a read-only array over the message's data. bfloat16 comes as ml_dtypes.bfloat16.

    `field` is the message's path in the request, for errors. `dtypes` (names as numpy gives them) and `shape`
    are what the caller accepts; without them anything valid is. Raises TriptychError INVALID_ARGUMENT.
    """
    data = _checked_data(message, field, dtypes, shape)
    return np.frombuffer(data, dtype=_NUMPY_DTYPES[message.dtype]).reshape(tuple(message.shape))


def torch_to_message(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """Returns the message for a tensor of any shape, memory layout and device.

    Raises TypeError if the tensor's dtype has no place on the wire (see Dtype in tensor.proto).
    """
    return torch_view(tensor).message()


def torch_view(tensor: torch.Tensor) -> TensorView:
    """As torch_to_message, over the memory of a contiguous tensor on the CPU, which must not change later."""
    dtype = _wire_dtype(str(tensor.dtype).removeprefix("torch."))
    octets = tensor.detach().cpu().contiguous().reshape(-1).view(_torch().uint8)
    return TensorView(dtype, tuple(tensor.shape), _octets(octets.numpy()))


def message_to_torch(
    message: TensorLike,
    field: str,
    *,
    dtypes: Collection[str] | None = None,
    shape: Shape | None = None,
) -> torch.Tensor:
    """Returns a CPU tensor over the message's data; arguments and errors as for message_to_array.

    Do not write to it: its memory is a Python bytes object. Operations that make new tensors are fine.
    """
    data = _checked_data(message, field, dtypes, shape)
    backend = _torch()
    dtype = getattr(backend, _NAMES[message.dtype])
    flat: torch.Tensor = backend.frombuffer(data, dtype=dtype) if data else backend.empty(0, dtype=dtype)
    return flat.reshape(tuple(message.shape))


def _wire_dtype(name: str) -> tensor_pb2.Dtype.ValueType:
    try:
        return _DTYPES_BY_NAME[name]
    except KeyError:
        raise TypeError(f"{name} cannot be sent; one of {', '.join(_DTYPES_BY_NAME)} can") from None


def _octets(array: npt.NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, read-only."""
    return array.reshape(-1).view(np.uint8).data.toreadonly()


def _checked_data(
    message: TensorLike, field: str, dtypes: Collection[str] | None, shape: Shape | None
) -> bytes | memoryview:
    """The message's elements, read once (each read of a bytes field copies), or INVALID_ARGUMENT."""
    if isinstance(message, tensor_pb2.Tensor) and message.HasField("shared"):
        allowed = "only the first tensor of a call may be in shared memory, of a server that has some"
        raise invalid_argument((f"{field}.shared", allowed))
    name = _NAMES.get(message.dtype)
    if name is None:
        raise invalid_argument((f"{field}.dtype", f"{message.dtype} is no known dtype"))
    if dtypes is not None and name not in dtypes:
        raise invalid_argument((f"{field}.dtype", f"must be {' or '.join(dtypes)}, not {name}"))
    _check_shape(message, field, shape)
    data = message.data
    expected = math.prod(message.shape) * _NUMPY_DTYPES[message.dtype].itemsize
    if len(data) != expected:
        described = f"shape {_written(message.shape)} of {name}"
        raise invalid_argument((f"{field}.data", f"{described} needs {expected} bytes, got {len(data)}"))
    return data


def _check_shape(message: TensorLike, field: str, expected: Shape | None) -> None:
    sizes = tuple(message.shape)
    if len(sizes) > MAX_DIMENSIONS:
        raise invalid_argument(
            (f"{field}.shape", f"has {len(sizes)} dimensions, at most {MAX_DIMENSIONS} are allowed")
        )
    if any(size < 0 for size in sizes):
        raise invalid_argument((f"{field}.shape", f"{_written(sizes)} has a negative size"))
    if math.prod(size for size in sizes if size) * _NUMPY_DTYPES[message.dtype].itemsize > MAX_BYTES:
        raise invalid_argument((f"{field}.shape", f"{_written(sizes)} is too large"))
    if expected is not None and not _matches(sizes, expected):
        raise invalid_argument((f"{field}.shape", f"must be {_written(expected)}, not {_written(sizes)}"))


def _matches(sizes: Sequence[int], expected: Shape) -> bool:
    return len(sizes) == len(expected) and all(
        isinstance(want, str) or size == want for size, want in zip(sizes, expected, strict=True)
    )


def _written(shape: Shape) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


@functools.cache
def _torch() -> Any:
    """torch, which warns once per process that a buffer is read-only: message_to_torch documents that."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0", dtype=torch.uint8)
    return torch
