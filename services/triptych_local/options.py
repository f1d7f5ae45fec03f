"""The command line's library: a settings class gives a command its options, and its words give an object.

A field is an option: its name, type, range, default and description are the option's. A field whose type is
itself a settings class stands for all fields of that class. Only what was given is set in the object.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

M = TypeVar("M", bound=BaseModel)

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
"""Of the limits of a field's value."""


@dataclass(frozen=True)
class Written:
    """How a field is written where its name and type do not say it, as metadata of its annotation.

    also: other names of the option, e.g. ("--output", "-o") has "-o".
    form: what stands for the value in the help, e.g. "WIDTHxHEIGHT".
    name: the option's, if it is not the field's.
    argument: told by its place, without a name.
    """

    also: tuple[str, ...] = ()
    form: str = ""
    name: str = ""
    argument: bool = False


def parameters(kind: type[BaseModel]) -> Iterator[click.Parameter]:
    """The options and arguments of a settings class."""
    for name, field in kind.model_fields.items():
        if (nested := _nested(field)) is not None:
            yield from parameters(nested)
        elif written(field).argument:
            many = -1 if is_list(field) else 1
            yield click.Argument([name], nargs=many, required=True, help=field.description)
        else:
            yield _option(name, field)


def written(field: FieldInfo) -> Written:
    """What the annotation of a field says of how it is written."""
    return next((one for one in field.metadata if isinstance(one, Written)), Written())


def is_list(field: FieldInfo) -> bool:
    """Whether the option may be given several times."""
    return get_origin(_without_none(field.annotation)) is list


def read(kind: type[M], context: click.Context) -> M:
    """The object of a settings class that the words of a command give. Raises click.BadParameter."""
    given: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if (nested := _nested(field)) is not None:
            given[name] = read(nested, context)
        elif context.params[name] not in (None, ()):
            given[name] = context.params[name]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        named = {parameter.name: parameter for parameter in context.command.get_params(context)}
        wrong = error.errors()[0]
        at = named.get(str(wrong["loc"][0])) if wrong["loc"] else None
        raise click.BadParameter(sentence(error), context, at) from error


def sentence(error: ValidationError) -> str:
    """What is wrong with the first wrong value."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def command_line(kind: type[BaseModel], given: Mapping[str, Any]) -> list[str]:
    """The options of a settings class that give the values, for a program of its own."""
    said: list[str] = []
    for name in kind.model_fields:
        value, option = given.get(name), f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            said.append(option if value else option.replace("--", "--no-", 1))
        elif value is not None:
            each = value if isinstance(value, list) else [value]
            said += [word for one in each for word in (option, str(one))]
    return said


def _option(name: str, field: FieldInfo) -> click.Option:
    how, kind = written(field), _without_none(field.annotation)
    option = how.name or f"--{name.replace('_', '-')}"
    if kind is bool:
        either = f"{option}/--no-{option.removeprefix('--')}" if field.default else option
        return click.Option([name, either, *how.also], is_flag=True, default=None, help=_help(field))
    return click.Option(
        [name, option, *how.also],
        metavar=how.form or _form(kind),
        multiple=is_list(field),
        required=field.is_required(),
        help=_help(field),
    )


def _form(kind: Any) -> str:
    """What stands for a value of a type: <int>, <path>, <auto|math>."""
    if get_origin(kind) is list:
        return _form(_without_none(get_args(kind)[0]))
    return f"<{'|'.join(get_args(kind)) if get_origin(kind) is Literal else kind.__name__.lower()}>"


def _help(field: FieldInfo) -> str:
    """The description, the default unless the description says it, and the range."""
    text, facts = field.description or "", []
    silent = field.default in (PydanticUndefined, None, []) or field.default is False
    if not silent and "Default" not in text:
        facts.append(f"default: {field.default}")
    of_each = getattr(get_args(field.annotation)[0], "__metadata__", ()) if is_list(field) else ()
    for limit in (*field.metadata, *of_each):
        facts += [f"x{sign}{getattr(limit, name)}" for name, sign in SIGNS.items() if hasattr(limit, name)]
    return f"{text}  [{'; '.join(facts)}]" if facts else text


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _without_none(kind: Any) -> Any:
    """X of Annotated[X, ...] and X | None."""
    if get_origin(kind) in (Union, types.UnionType):
        return _without_none(next(one for one in get_args(kind) if one is not type(None)))
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
