"""Messages with a large tensor, written with one copy of it where protobuf makes several.

The bytes are protobuf's own, and protobuf reads them: it copies a tensor once there, as any reader would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import grpc.aio
from google.protobuf.message import Message

from triptych.v1 import tensor_pb2

MIN_BYTES = 256 << 10
"""Of a tensor that is kept out of its message: for less, protobuf is as fast."""

_FIRST_FIELD, _DATA = 0x0A, 0x7A  # tags: number of the field x 8 + kind of value

M = TypeVar("M", bound=Message)


class TensorLike(Protocol):
    """What is read of a tensor_pb2.Tensor and of a TensorView. Each read of a message's `data` copies it."""

    @property
    def dtype(self) -> tensor_pb2.Dtype.ValueType: ...  # noqa: D102

    @property
    def shape(self) -> Any: ...  # noqa: D102

    @property
    def data(self) -> bytes | memoryview: ...  # noqa: D102


@dataclass(frozen=True)
class TensorView:
    """What a tensor_pb2.Tensor says, with the elements in memory of someone else."""

    dtype: tensor_pb2.Dtype.ValueType
    shape: tuple[int, ...]
    data: memoryview

    def message(self) -> tensor_pb2.Tensor:
        """The message, with a copy of the elements."""
        return tensor_pb2.Tensor(dtype=self.dtype, shape=self.shape, data=self.data.tobytes())


class WithTensor:
    """A message whose first field is a tensor that lies beside it. Fields are read as the message's are."""

    def __init__(self, others: Message, tensor: TensorView) -> None:
        self.others = others
        self.tensor = tensor
        self._field = tensor_field(type(others))

    def __getattr__(self, field: str) -> Any:
        return self.tensor if field == self._field else getattr(self.others, field)

    def SerializeToString(self) -> bytes:
        """The bytes of the whole message, in protobuf's order of fields."""
        tensor, data = self.tensor, self.tensor.data
        header = tensor_pb2.Tensor(dtype=tensor.dtype, shape=tensor.shape).SerializeToString()
        header += _tag_and_size(_DATA, data.nbytes)
        first = _tag_and_size(_FIRST_FIELD, len(header) + data.nbytes)
        return b"".join((first, header, data, self.others.SerializeToString()))

    def in_region(self, region: str) -> Message:
        """The message that says that the elements are at the start of a region of shared memory."""
        tensor, message = self.tensor, type(self.others)()
        message.CopyFrom(self.others)
        shared = tensor_pb2.SharedData(region=region, length=tensor.data.nbytes)
        inside = tensor_pb2.Tensor(dtype=tensor.dtype, shape=tensor.shape, shared=shared)
        getattr(message, self._field).CopyFrom(inside)
        return message


def with_tensor(others: M, tensor: TensorView) -> M:
    """The message `others` with its first field, the tensor. A large one is not copied."""
    if tensor.data.nbytes >= MIN_BYTES:
        return cast(M, WithTensor(others, tensor))
    getattr(others, tensor_field(type(others))).CopyFrom(tensor.message())
    return others


def serializer(usual: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """What writes messages as `usual` does, and `with_tensor` messages too."""

    def serialize(message: Any) -> bytes:
        return message.SerializeToString() if isinstance(message, WithTensor) else usual(message)

    return serialize


def tensor_field(kind: type[Message]) -> str:
    """The name of a message's field number 1."""
    return kind.DESCRIPTOR.fields_by_number[1].name


class TensorChannel:
    """A channel for generated stubs whose unary calls take `with_tensor` messages."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *, request_serializer: Callable[[Any], bytes], **others: Any) -> Any:
        """As grpc.aio.Channel's."""
        return self._channel.unary_unary(method, serializer(request_serializer), **others)


def _tag_and_size(tag: int, size: int) -> bytes:
    encoded = bytearray([tag])
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
