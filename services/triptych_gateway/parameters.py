"""Parameters of a generation from JSON, by the proto's descriptor: a field of the proto is a field here.

A message is an object, or where it is a choice without numbers, a word: "heun" is {"heun": {}}. Bytes are
base64.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError

from triptych.errors import invalid_argument
from triptych.v1.generation_parameters_pb2 import GenerationParameters

FIELDS = GenerationParameters.DESCRIPTOR.fields_by_name


def read_parameter(name: str, value: Any, said: str) -> GenerationParameters:
    """A message with this field alone; `said` is what the client calls it.

    Raises:
        TriptychError: INVALID_ARGUMENT, the field cannot hold the value.
    """
    field = FIELDS[name]
    try:
        if not _is_unicode(value):
            raise ValueError("has half a surrogate pair, which is no text")
        if is_repeated(field) and not isinstance(value, list):
            value = [value]
        if field.message_type is not None and isinstance(value, str):
            value = _choice(field, value)
        return ParseDict({name: value}, GenerationParameters())
    except (ParseError, ValueError, TypeError, RecursionError) as error:
        said_so = re.sub(r"^Failed to parse \w+ field: ", "", str(error)).strip().rstrip(".")
        raise invalid_argument((said, said_so)) from error


def _is_unicode(value: Any) -> bool:
    """Whether all texts in it can be encoded: protobuf breaks down on some that cannot (7.36)."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field holds several values."""
    return isinstance(field.default_value, list)


def is_text(field: FieldDescriptor) -> bool:
    """Whether a field's values are texts."""
    return field.type == FieldDescriptor.TYPE_STRING


def choices_of(message: Descriptor) -> list[str]:
    """The words that a message may be given as: its fields of which there is one at most."""
    return [one.name for one in message.fields if one.containing_oneof and one.message_type]


def _choice(field: FieldDescriptor, word: str) -> dict[str, dict[str, Any]]:
    choices = choices_of(cast(Descriptor, field.message_type))
    if word not in choices:
        known = f"one of the words {', '.join(choices)}, or an object" if choices else "an object"
        raise ValueError(f"must be {known}, not '{word[:60]}'")
    return {word: {}}
