"""Messages with a large tensor, to bytes and back with one copy where protobuf makes several.

The bytes are protobuf's own: a peer with nothing but generated code reads and writes the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import grpc.aio
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from triptych.v1 import tensor_pb2

MIN_BYTES = 32 << 10
"""Of a tensor that is kept out of its message: for less, protobuf is as fast."""

_FIRST_FIELD, _DTYPE, _SHAPE, _DATA = 0x0A, 0x08, 0x12, 0x7A  # tags: number of the field x 8 + kind of value
_VARINT_BITS = 63

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
        self._others = others
        self._tensor = tensor
        self._field = tensor_field(type(others))

    def __getattr__(self, field: str) -> Any:
        return self._tensor if field == self._field else getattr(self._others, field)

    def SerializeToString(self) -> bytes:
        """The bytes of the whole message, in protobuf's order of fields."""
        tensor, data = self._tensor, self._tensor.data
        header = tensor_pb2.Tensor(dtype=tensor.dtype, shape=tensor.shape).SerializeToString()
        header += _tag_and_size(_DATA, data.nbytes)
        first = _tag_and_size(_FIRST_FIELD, len(header) + data.nbytes)
        return b"".join((first, header, data, self._others.SerializeToString()))


def with_tensor(others: M, tensor: TensorView) -> M:
    """The message `others` with its first field, the tensor. A large one is not copied."""
    if tensor.data.nbytes >= MIN_BYTES:
        return cast(M, WithTensor(others, tensor))
    getattr(others, tensor_field(type(others))).CopyFrom(tensor.message())
    return others


def serialize(message: Message | WithTensor) -> bytes:
    """The bytes of a message."""
    return message.SerializeToString()


def parse(kind: type[M], data: bytes) -> M:
    """The message in `data`; a large tensor in its first field stays where it is.

    Raises:
        DecodeError: `data` is no message of this kind.
    """
    layout = _layout(data) if len(data) >= MIN_BYTES else None
    if layout is None:
        return kind.FromString(data)
    others = kind.FromString(data[layout.end :])
    if others.HasField(tensor_field(kind)):  # it comes in two parts, and protobuf knows how to join them
        return kind.FromString(data)
    header = tensor_pb2.Tensor.FromString(data[layout.header : layout.data_tag])
    elements = memoryview(data)[layout.data : layout.end]
    return cast(M, WithTensor(others, TensorView(header.dtype, tuple(header.shape), elements)))


def tensor_field(kind: type[Message]) -> str:
    """The name of a message's field number 1 if that is a Tensor, else ""."""
    return _tensor_field(kind.DESCRIPTOR)


@functools.cache
def _tensor_field(message: Descriptor) -> str:
    field = message.fields_by_number.get(1)
    if field is None or field.is_repeated or field.message_type is not tensor_pb2.Tensor.DESCRIPTOR:
        return ""
    return field.name


def parser(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """What parses as `deserializer`, a message class's FromString, does, without copying a large tensor."""
    kind: type[Message] = deserializer.__self__  # type: ignore[attr-defined]
    return functools.partial(parse, kind) if tensor_field(kind) else deserializer


class TensorChannel:
    """A channel for generated stubs whose unary calls take `with_tensor` messages and give parsed ones."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(
        self,
        method: str,
        request_serializer: Any,
        response_deserializer: Callable[[bytes], Any],
        **options: Any,
    ) -> Any:
        """As grpc.aio.Channel's."""
        del request_serializer
        return self._channel.unary_unary(method, serialize, parser(response_deserializer), **options)


@dataclass(frozen=True)
class _Layout:
    """Where things are in a message that begins with a tensor that ends with its elements."""

    header: int
    data_tag: int
    data: int
    end: int


def _layout(message: bytes) -> _Layout | None:
    """None if the message is not laid out as protobuf's libraries do it, e.g. because it is malformed."""
    try:
        return _read_layout(message)
    except (IndexError, ValueError):
        return None


def _read_layout(message: bytes) -> _Layout | None:
    if message[0] != _FIRST_FIELD:
        return None
    size, header = _varint(message, 1)
    at = header
    if message[at] == _DTYPE:
        _, at = _varint(message, at + 1)
    if message[at] == _SHAPE:
        shape_bytes, at = _varint(message, at + 1)
        at += shape_bytes
    if message[at] != _DATA:
        return None
    data_bytes, data = _varint(message, at + 1)
    end = data + data_bytes
    return _Layout(header, at, data, end) if end == header + size <= len(message) else None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    number = shift = 0
    while message[at] >= 0x80:
        number |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if shift > _VARINT_BITS:
            raise ValueError("a number of more than 64 bits")
    return number | message[at] << shift, at + 1


def _tag_and_size(tag: int, size: int) -> bytes:
    encoded = bytearray([tag])
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
