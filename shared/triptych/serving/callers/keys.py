"""API keys: a file that says whose they are and what they may, without the keys themselves.

A key is `tk_`, an id of 8 hex digits that is no secret, and 32 random bytes. The file has its SHA-256: so
many random bytes cannot be guessed, so a slow hash would only cost every call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from triptych.serving.callers.caller import Caller, Role
from triptych.serving.callers.limits import Limits, Name, first_fault

PREFIX = "tk_"
_KEY = re.compile(rf"{PREFIX}(?P<id>[0-9a-f]{{8}})_[A-Za-z0-9_-]{{43}}")
_NOBODYS = bytes(32)


class Key(Limits):
    """What the file says of a key."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: Name
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def caller(self) -> Caller:
        """Who calls with it."""
        return Caller(
            *("key", self.id, self.name, frozenset(self.roles)),
            models=self.models,
            loras=self.loras,
            quota=self.quota,
        )

    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


class KeysFile(BaseModel):
    """The file's contents."""

    model_config = ConfigDict(extra="forbid")

    keys: list[Key] = []

    @classmethod
    def read(cls, data: bytes) -> KeysFile:
        """Raises ValueError that says what is wrong where, and nothing of what is there."""
        try:
            read = cls.model_validate_json(data)
        except ValidationError as error:
            raise ValueError(first_fault(error)) from None
        if len({key.id for key in read.keys}) < len(read.keys):
            raise ValueError("keys: two have the same id")
        return read

    def write(self) -> bytes:
        """The JSON, without what is at its default."""
        return self.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"


def read_keys(data: bytes) -> Mapping[str, Key]:
    """The keys of a file by their ids. Raises ValueError, as KeysFile.read."""
    return {key.id: key for key in KeysFile.read(data).keys}


def new_key(
    name: str,
    roles: Sequence[Role],
    *,
    models: Sequence[str] = ("*",),
    loras: Sequence[str] = ("*",),
    quota: float | None = None,
    expires: datetime | None = None,
) -> tuple[str, Key]:
    """A key, which is nowhere else, and what a file says of it."""
    identity = secrets.token_hex(4)
    text = f"{PREFIX}{identity}_{secrets.token_urlsafe(32)}"
    return text, Key(
        id=identity,
        name=name,
        roles=tuple(roles),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        created=datetime.now(UTC).replace(microsecond=0),
        expires=expires,
        models=tuple(models),
        loras=tuple(loras),
        quota=quota,
    )


def find_key(text: str, keys: Mapping[str, Key]) -> Key | None:
    """The key whose text this is; expired ones too. Compared in constant time."""
    read = _KEY.fullmatch(text)
    key = keys.get(read["id"]) if read else None
    wanted = bytes.fromhex(key.sha256) if key else _NOBODYS
    same = hmac.compare_digest(hashlib.sha256(text.encode()).digest(), wanted)
    return key if same else None
