"""Messages that no client in its right mind sends, made from what the proto says of their fields."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

MANY = 2000
"""Elements of a list that is too long."""
MAX_DEPTH = 6

_INT32 = (0, -1, 1, 7, 2**31 - 1, -(2**31))
_INT64 = (*_INT32, 2**63 - 1, -(2**63))
_UINT64 = (0, 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 0.5, 2.0, 1e-42, 3e38, -3e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "",
    " ",
    "\0",
    "../../../etc/passwd",
    "(" * 100,
    "(a:9999)",
    "((a:1.5):nan)",
    "\u202e\U0010ffff",
    "x" * 100_000,
    "é" * 20_000,
)
_BYTES = (
    b"",
    b"\0",
    b"x" * 31,
    b"x" * 33,
    b"\x89PNG\r\n\x1a\n" + b"\xff" * 100,
    b"\xff\xd8\xff\xe0" + b"\0" * 64,
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"\xff" * 100_000,
)
_VALUES: dict[int, Sequence[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_FLOAT: _FLOATS,
    FieldDescriptor.CPPTYPE_BOOL: (True, False),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 4, 5, 6, 999, -1),
}


@dataclass(frozen=True)
class Hostile:
    """A message, and where it differs from a good one."""

    message: Message
    what: str


def hostile_messages(good: Message) -> Iterator[Hostile]:
    """For every field that a message has or could have, the message with every odd value of that field."""
    yield Hostile(type(good)(), "nothing")
    for path in _paths(good, ()):
        for what, change in _changes(path[-1]):
            message = type(good)()
            message.CopyFrom(good)
            change(_parent(message, path))
            yield Hostile(message, f"{'.'.join(field.name for field in path)}: {what}")


def mutated(good: M, chance: random.Random, faults: int = 3) -> M:
    """A message with up to so many fields changed at random."""
    message = type(good)()
    message.CopyFrom(good)
    for _ in range(chance.randint(1, faults)):
        path = _any_path(message, chance)
        _, change = chance.choice(list(_changes(path[-1])))
        change(_parent(message, path))
    return message


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes with some of them changed, left out, repeated or added."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + chance.randint(1, 16)]
            case 2:
                changed[at:at] = changed[at : at + chance.randint(1, 64)]
            case _:
                changed[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(changed)


Path = tuple[FieldDescriptor, ...]


def _paths(message: Message, before: Path) -> Iterator[Path]:
    for field in message.DESCRIPTOR.fields:
        path = (*before, field)
        yield path
        if field.message_type is not None and len(path) < MAX_DEPTH:
            yield from _paths(_child(_copy(message), field), path)


def _any_path(message: Message, chance: random.Random) -> Path:
    path: Path = ()
    inner = _copy(message)
    while True:
        field = chance.choice(inner.DESCRIPTOR.fields)
        path = (*path, field)
        descend = field.message_type is not None and field.message_type.fields
        if not descend or chance.random() < 0.1 or len(path) == MAX_DEPTH:
            return path
        inner = _child(inner, field)


def _copy(message: M) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _child(message: Message, field: FieldDescriptor) -> Message:
    """The message in a field, made if it is not there; of a list its first."""
    value = getattr(message, field.name)
    child: Message
    if field.is_repeated:
        child = value[0] if value else value.add()
    else:
        value.SetInParent()
        child = value
    return child


def _parent(message: Message, path: Path) -> Message:
    """The message that the last field of a path is set in."""
    for field in path[:-1]:
        message = _child(message, field)
    return message


Change = Callable[[Message], None]


def _changes(field: FieldDescriptor) -> Iterator[tuple[str, Change]]:
    """What can be done to a field of a message."""
    name = field.name
    yield "left out", lambda message: message.ClearField(name)
    if field.message_type is not None:
        yield "empty", lambda message: _clear_child(message, field)
        if field.is_repeated:
            yield "twice", lambda message: _repeat(message, field, 2)
            yield "many", lambda message: _repeat(message, field, MANY)
        return
    for value in _values(field):
        if field.is_repeated:
            yield f"[{_shown(value)}]", lambda message, value=value: _set_list(message, name, [value])
            yield f"2 x {_shown(value)}", lambda message, value=value: _set_list(message, name, [value] * 2)
        else:
            yield _shown(value), lambda message, value=value: setattr(message, name, value)
    if field.is_repeated:
        value = _values(field)[1]
        yield f"many {_shown(value)}", lambda message: _set_list(message, name, [value] * MANY)


def _values(field: FieldDescriptor) -> Sequence[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _BYTES
    return _TEXTS if field.type == FieldDescriptor.TYPE_STRING else _VALUES[field.cpp_type]


def _shown(value: Any) -> str:
    return f"{repr(value)[:40]}"


def _clear_child(message: Message, field: FieldDescriptor) -> None:
    _child(message, field).Clear()


def _repeat(message: Message, field: FieldDescriptor, times: int) -> None:
    child = _copy(_child(message, field))
    getattr(message, field.name).extend([child] * times)


def _set_list(message: Message, name: str, values: Sequence[Any]) -> None:
    message.ClearField(name)
    getattr(message, name).extend(values)
