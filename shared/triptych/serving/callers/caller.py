"""Who calls: what its credential says of it, known for the length of a call."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

Role = Literal["client", "operator", "coordinator"]
"""client: asks for pictures. operator: watches over services. coordinator: calls the stages."""
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Caller:
    """Who sent a call, and what its credential lets it have. Nothing of it is secret.

    kind: of its credential.
    id: what tells it from every other caller with such a credential: a key's id, issuer and subject of a
        token, the name in a certificate.
    groups: those that a token says it is of.
    models, loras: patterns of the names that it may use; a * stands for any characters.
    quota: pictures as the model makes them by default that it may have in a minute; None for any number.
    """

    kind: Literal["key", "token", "certificate"]
    id: str
    name: str
    roles: frozenset[Role]
    groups: frozenset[str] = frozenset()
    models: tuple[str, ...] = ("*",)
    loras: tuple[str, ...] = ("*",)
    quota: float | None = None

    def __str__(self) -> str:
        """For logs and sentences: 'alice' (key 3f9a02c7)."""
        return repr(self.name) if self.kind == "certificate" else f"{self.name!r} ({self.kind} {self.id})"

    @property
    def share(self) -> str:
        """What it has a share and a quota as, whichever connections it comes from."""
        return f"{self.kind} {self.id}"

    def may_use_model(self, name: str) -> bool:
        """Whether one of its patterns fits a model's name."""
        return matches(name, self.models)

    def may_use_lora(self, name: str) -> bool:
        """Whether one of its patterns fits a LoRA's name."""
        return matches(name, self.loras)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the whole name; a * stands for any characters, all else for itself."""
    return any(fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]")) for pattern in patterns)


_current: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current_caller() -> Caller | None:
    """Who sent the call that is being answered; None where no credential is asked for."""
    return _current.get()


def current_share() -> str:
    """The share of who sent the call that is being answered; "" where no credential is asked for.

    What is remembered for one is not found by another.
    """
    caller = current_caller()
    return "" if caller is None else caller.share


def set_caller(caller: Caller | None) -> None:
    """From now on the call of this task, and of tasks that it starts, is that caller's."""
    _current.set(caller)
