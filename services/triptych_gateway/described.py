"""What a request may say, for programs that show it to people: fields and comments of the proto, in JSON."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

import triptych.v1
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_gateway.parameters import is_repeated

KINDS: Mapping[int, str] = {
    FieldDescriptor.TYPE_INT32: "integer",
    FieldDescriptor.TYPE_INT64: "integer",
    FieldDescriptor.TYPE_UINT64: "integer",
    FieldDescriptor.TYPE_FLOAT: "number",
    FieldDescriptor.TYPE_BOOL: "flag",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_ENUM: "text",
    FieldDescriptor.TYPE_BYTES: "bytes",
}
"""Of fields that hold no message."""

Comments = Mapping[str, str]


@cache
def described_parameters() -> list[dict[str, Any]]:
    """Each field of GenerationParameters: its name, its kind, whether it is repeated and the proto's comment.

    A kind is integer, number, flag, text or bytes; message, with `fields` that are such too; or choice, a
    message of which exactly one field is given, with `choices`.
    """
    return _fields(GenerationParameters.DESCRIPTOR, _comments())


def _fields(message: Descriptor, comments: Comments) -> list[dict[str, Any]]:
    return [_field(field, comments) for field in message.fields]


def _field(field: FieldDescriptor, comments: Comments) -> dict[str, Any]:
    owner = cast(Descriptor, field.containing_type).name
    said = {"name": field.name, "repeated": is_repeated(field), "help": comments[f"{owner}.{field.name}"]}
    message = field.message_type
    if message is None:
        return said | {"kind": KINDS[field.type]}
    kind, inside = ("choice", "choices") if _is_choice(message) else ("message", "fields")
    return said | {"kind": kind, inside: _fields(message, comments)}


def _is_choice(message: Descriptor) -> bool:
    return len(message.oneofs) == 1 and len(message.oneofs[0].fields) == len(message.fields) > 1


def _comments() -> Comments:
    """The proto's comments by "Message.field", from the stubs, where they are docstrings."""
    comments: dict[str, str] = {}
    for stub in sorted(Path(triptych.v1.__path__[0]).glob("*_pb2.pyi")):
        for message in ast.parse(stub.read_text()).body:
            if isinstance(message, ast.ClassDef):
                comments |= {f"{message.name}.{name}": text for name, text in _docstrings(message)}
    return comments


def _docstrings(message: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """A field is a property with a docstring, or a variable with a text behind it."""
    for one, after in zip(message.body, message.body[1:] + message.body[-1:], strict=True):
        if isinstance(one, ast.FunctionDef):
            text = ast.get_docstring(one)
            yield from [(one.name, " ".join(text.split()))] if text else []
        elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield one.target.id, " ".join(text.split())
