"""A message of the proto as words, by its descriptor: its numbers with colons between, "64:0:64:0".

A repeated field has commas: "7,8,9:2.8". A oneof is the name of its choice, then the choice's numbers:
"karras:7". Numbers with a default may be left out: all of them, or behind others all but the first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

CHOSEN_AS = {
    "ClassifierFreeGuidance": "cfg",
    "AdaptiveProjectedGuidance": "apg",
    "ExplicitGuidance": "list",
}
"""What people call a choice, by its message, where it is not the name of its field."""

SPOKEN = {
    "StepReuse": "reuse between steps",
    "SkipLayerGuidance": "layers",
    "PerturbedAttentionGuidance": "layers",
}
"""What a message is in a sentence, where it is not its name."""


def read_message(text: str, kind: type[M]) -> M:
    """The message of "heun", "beta:0.5:0.7", "explicit:1,0.75,0.5", "64:0:64:0" or "7,8,9:2.8".

    Raises ValueError.
    """
    words, message, described = text.strip().split(":"), kind(), cast(Descriptor, kind.DESCRIPTOR)
    try:
        if is_choice(described):
            (chosen,) = [field for field in described.fields if _word(field) == words[0]]
            getattr(message, chosen.name).SetInParent()
            _set_numbers(getattr(message, chosen.name), _message(chosen), words[1:])
        else:
            _set_numbers(message, described, words)
    except ValueError:
        spoken = SPOKEN.get(described.name, re.sub(r"(?<!^)(?=[A-Z])", " ", described.name).lower())
        be, it = ("are", "they are") if spoken in ("layers", "margins") else ("is", "it is")
        raise ValueError(f"'{text}' {be} no {spoken}: {it} {form(described)}") from None
    return message


def is_choice(message: Descriptor) -> bool:
    """Whether a message is a oneof of several."""
    return len(message.oneofs) == 1 and len(message.oneofs[0].fields) == len(message.fields) > 1


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field holds several values."""
    return isinstance(field.default_value, list)


def form(message: Descriptor) -> str:
    """What it looks like: "none, guidance[:EVERY] or features[:THRESHOLD]", "LEFT:TOP:RIGHT:BOTTOM"."""
    if not is_choice(message):
        return _numbers(message).removeprefix(":")
    *others, last = [_word(field) + _numbers(_message(field)) for field in message.fields]
    return f"{', '.join(others)} or {last}"


def _word(chosen: FieldDescriptor) -> str:
    return CHOSEN_AS.get(_message(chosen).name, chosen.name.replace("_", "-"))


def _message(field: FieldDescriptor) -> Descriptor:
    return cast(Descriptor, field.message_type)


def _parts(message: Descriptor) -> list[list[FieldDescriptor]]:
    """The fields that are given together: those that must be, then those that may be.

    A list behind numbers with a default may be left out, too.
    """
    needed = _needed(message)
    others = [field for field in message.fields if field.has_presence]
    lists = [field for field in message.fields if not field.has_presence and field not in needed]
    parts = [needed, others[:1], others[1:]] if needed else [others]
    return [part for part in (*parts, lists) if part]


def _needed(message: Descriptor) -> list[FieldDescriptor]:
    """Those without a default, before all with one."""
    return list(itertools.takewhile(lambda field: not field.has_presence, message.fields))


def _numbers(message: Descriptor) -> str:
    """What its numbers look like: ":START:STOP", "[:ETA]", ":LAYER,LAYER,...[:SCALE[:START:STOP]]"."""
    said, needed = "", _needed(message)
    for part in reversed(_parts(message)):
        said = "".join(map(_number, part)) + said
        said = said if part[0] in needed else f"[{said}]"
    return said


def _number(field: FieldDescriptor) -> str:
    name = field.name.replace("_", "-").upper()
    return f":{name[:-1]},{name[:-1]},..." if is_repeated(field) else f":{name}"


def _set_numbers(message: Message, described: Descriptor, words: Sequence[str]) -> None:
    """Sets the fields of the first parts. Raises ValueError."""
    parts = _parts(described)
    fields = [field for part in parts for field in part]
    ends = {sum(map(len, parts[:end])) for end in range(len(parts) + 1)}
    if len(words) not in ends or len(words) < len(_needed(described)):
        raise ValueError
    for field, word in zip(fields, words, strict=False):
        number = float if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else int
        if is_repeated(field):
            getattr(message, field.name).extend(number(part) for part in word.split(","))
        else:
            setattr(message, field.name, number(word))
