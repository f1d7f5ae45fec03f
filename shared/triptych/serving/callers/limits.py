"""What callers may have of what their role may call: models, LoRAs, pictures a minute.

An API key's are in its own entry of the keys file. Tokens and certificates are made elsewhere, so theirs are
rules in a file, found by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from triptych.serving.callers.caller import Caller, matches


def _check_name(name: str) -> str:
    """Raises ValueError for a name that would spoil a line of a log."""
    if not name.isprintable() or not name.strip():
        raise ValueError("a name is printable characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_name)]


class Limits(BaseModel):
    """Patterns of models and LoRAs, * for any characters, and a quota.

    quota: pictures as the model makes them by default, in a minute; None for any number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[tuple[Name, ...], Field(min_length=1)] = ("*",)
    loras: tuple[Name, ...] = ("*",)
    quota: float | None = Field(None, gt=0, allow_inf_nan=False)


class Rule(Limits):
    """Limits of the callers that it fits: each has them for itself.

    token: a pattern of tokens' subjects. group: of their groups. certificate: of the names in certificates.
    """

    token: Name | None = None
    group: Name | None = None
    certificate: Name | None = None

    @model_validator(mode="after")
    def _is_for_somebody(self) -> Self:
        if sum(pattern is not None for pattern in (self.token, self.group, self.certificate)) != 1:
            raise ValueError("a rule has one of token, group and certificate")
        return self

    def fits(self, caller: Caller) -> bool:
        """Whether it is for that caller."""
        if caller.kind == "certificate":
            return self.certificate is not None and matches(caller.name, [self.certificate])
        if self.token is not None:
            return matches(caller.name, [self.token])
        return self.group is not None and any(matches(group, [self.group]) for group in caller.groups)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limits: tuple[Rule, ...]


def read_limits(data: bytes) -> tuple[Rule, ...]:
    """The rules of a file. Raises ValueError that says what is wrong where, and nothing of what is there."""
    try:
        return _File.model_validate_json(data).limits
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """What is wrong where in a file, without a word of it."""
    wrong = error.errors(include_input=False, include_context=False)[0]
    place = ".".join(map(str, wrong["loc"])) or "it"
    return f"{place}: {wrong['msg']}"


def limited(caller: Caller, rules: Sequence[Rule]) -> Caller:
    """A token's or certificate's caller with the limits of the first rule that fits it; without one, none."""
    for rule in rules:
        if rule.fits(caller):
            return replace(caller, models=rule.models, loras=rule.loras, quota=rule.quota)
    return caller
