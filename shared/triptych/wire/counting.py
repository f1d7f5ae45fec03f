"""How much a message holds, counted on its bytes before anything is made of them.

Eight megabytes of empty submessages are four million objects: what a message costs is not told by its size.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_MAX_DEPTH = 20
_FOUR_BYTES = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32)
_EIGHT_BYTES = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64)
_BYTES_EACH = dict.fromkeys(_FOUR_BYTES, 4) | dict.fromkeys(_EIGHT_BYTES, 8)
"""Of an element of a packed list; others have at least 1."""
_OPAQUE = {FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING}


def holds_at_most(data: bytes, message: Descriptor, most: int) -> bool:
    """Whether a message has at most so many values, those of its submessages and packed lists included.

    A value is a number, a text, or bytes however many. What protobuf would not read is said to be too much.
    """
    try:
        return _left(memoryview(data), message, most, _MAX_DEPTH) >= 0
    except (IndexError, ValueError):
        return False


def _left(data: memoryview, message: Descriptor | None, left: int, depth: int) -> int:
    """What is left of `left` after the values in `data`; below 0 as soon as there are more."""
    if depth == 0:
        raise ValueError("too deep")
    fields = message.fields_by_number if message else {}
    at, end = 0, len(data)
    while at < end and left >= 0:
        tag, at = _varint(data, at)
        left -= 1
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(data, at)
                if at + length > end:
                    raise ValueError("cut off")
                field = fields.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    left = _left(data[at : at + length], field.message_type, left, depth - 1)
                elif field is not None and field.type not in _OPAQUE:
                    left -= length // _BYTES_EACH.get(field.type, 1)
                at += length
            case _:
                raise ValueError("no kind of value")
    return left


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number, and where the next value begins."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no number")
