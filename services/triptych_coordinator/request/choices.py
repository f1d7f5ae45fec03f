"""What a request can choose, from messages to frozen dataclasses and back: field by field, by their names.

A oneof of the proto is a table from the names of its fields to dataclasses, whose fields are those of the
chosen message. Their annotations say what numbers may be, their defaults what is meant where nothing is
said, and a method `violations`, where there is one, what several fields may not be together.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.message import Message

from triptych.errors import MAX_VIOLATIONS, invalid_argument
from triptych_coordinator.request.output_formats import OUTPUT_FORMATS
from triptych_coordinator.sampling.guidance.methods import GUIDANCE_METHODS
from triptych_coordinator.sampling.guidance.schedules import GUIDANCE_SCHEDULES
from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.reuse import STEP_REUSES
from triptych_coordinator.sampling.sigma_schedules import SIGMA_SCHEDULES
from triptych_coordinator.sampling.solvers import SOLVERS

CHOICES: Mapping[str, Mapping[str, type[Any]]] = {
    "solver": SOLVERS,
    "sigma_schedule": SIGMA_SCHEDULES,
    "step_reuse": STEP_REUSES,
    "guidance_schedule": GUIDANCE_SCHEDULES,
    "guidance_method": GUIDANCE_METHODS,
    "output_format": OUTPUT_FORMATS,
}
"""The fields of GenerationParameters that are a oneof, each with its table."""

MAX_ELEMENTS = 1000
"""Of a repeated field."""


class Wrong(dict[str, str]):
    """What is wrong: a field's path, what it must be. Behind the ninth nobody looks."""

    def __setitem__(self, field: str, words: str) -> None:
        """Raises TriptychError with INVALID_ARGUMENT when there are more than an answer names."""
        super().__setitem__(field, words)
        if len(self) > MAX_VIOLATIONS:
            raise invalid_argument(*self.items())


T = TypeVar("T")


def read_choice(message: Message, field: str, default: T, wrong: Wrong) -> T:
    """What `message` chooses in its field of CHOICES; `default` if it chooses nothing."""
    chosen = getattr(message, field)
    (oneof,) = chosen.DESCRIPTOR.oneofs
    name = chosen.WhichOneof(oneof.name)
    if name is None:
        return default
    choice: T = read(CHOICES[field][name], getattr(chosen, name), f"{field}.{name}", wrong)
    return choice


def read(kind: type[T], message: Message, path: str, wrong: Wrong) -> T:
    """The dataclass of a message at `path`; `wrong` hears of what is out of range."""
    values, before = {}, len(wrong)
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):  # type: ignore[arg-type]
        if _is_given(message, field.name):
            given, at = getattr(message, field.name), f"{path}.{field.name}"
            values[field.name] = _value(hints[field.name], given, at, wrong)
    choice = kind(**values)
    if len(wrong) == before and hasattr(choice, "violations"):
        for name, words in choice.violations():
            wrong[f"{path}.{name}"] = words
    return choice


def _is_given(message: Message, field: str) -> bool:
    """Whether a field holds what a client said: one without presence always does."""
    return not message.DESCRIPTOR.fields_by_name[field].has_presence or message.HasField(field)


def number(wire_value: float, path: str, allowed: Range, wrong: Wrong) -> float:
    """The number that the client wrote; `wrong` hears of it if it is not allowed."""
    value = shortest_decimal(wire_value)
    if not (math.isfinite(value) and allowed.least <= value <= allowed.most):
        wrong[path] = f"must be a number from {allowed.least:g} to {allowed.most:g}, not {value:g}"
    return value


def shortest_decimal(wire_value: float) -> float:
    """The number that the client wrote: 0.7 for the float32 0.699999988, so that int(0.7 x 10) is 7."""
    return float(str(np.float32(wire_value)))


def write(choice: Any, message: Message) -> None:
    """The inverse of read."""
    for field in fields(choice):
        write_field(message, field.name, getattr(choice, field.name))


def write_field(message: Message, name: str, value: Any) -> None:
    """Sets a field of a message to the value of a dataclass's field of that name; None leaves it unset."""
    if name in CHOICES:
        message, name = getattr(message, name), name_of(name, value)
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        for element in value:
            write(element, getattr(message, name).add())
    elif isinstance(value, tuple):
        getattr(message, name).extend(value)
    elif is_dataclass(value):
        getattr(message, name).SetInParent()
        write(value, getattr(message, name))
    elif value is not None:
        setattr(message, name, value)


def plain(name: str, value: Any) -> Any:
    """The value of a field as JSON has it."""
    if name in CHOICES:
        return {name_of(name, value): asdict(value)}
    if isinstance(value, tuple):
        return [plain("", element) for element in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def name_of(field: str, choice: Any) -> str:
    """The name of a choice in its table of CHOICES."""
    return next(name for name, kind in CHOICES[field].items() if type(choice) is kind)


def _value(hint: Any, value: Any, path: str, wrong: Wrong) -> Any:
    """A field's value as its type hint has it."""
    if type(None) in get_args(hint):
        hint = get_args(hint)[0]  # what is given is not None
    if get_origin(hint) is Annotated:
        kind, allowed = get_args(hint)
        return kind(number(value, path, allowed, wrong))
    if get_origin(hint) is tuple:
        if len(value) > MAX_ELEMENTS:
            wrong[path] = f"must be at most {MAX_ELEMENTS}, not {len(value)}"
            return ()
        kind = get_args(hint)[0]
        return tuple(_value(kind, element, f"{path}[{i}]", wrong) for i, element in enumerate(value))
    return read(hint, value, path, wrong) if isinstance(hint, type) and is_dataclass(hint) else value
