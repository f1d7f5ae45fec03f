"""`triptych keys`: makes, lists and revokes API keys in a file."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import StartError
from triptych.serving.callers.keys import Key, KeysFile, new_key
from triptych_local.commands.settings import ListKeySettings, MakeKeySettings, RevokeKeySettings
from triptych_local.output import note, say, write_private


async def make_key(asked: MakeKeySettings) -> None:
    """Makes a key and prints it. Raises StartError or OSError."""
    text, key = new_key(
        asked.name,
        asked.role or ["client"],
        models=asked.model or ["*"],
        loras=[] if asked.no_loras else asked.lora or ["*"],
        quota=asked.quota,
        expires=asked.expires,
    )
    with _locked(asked.file):
        keys = _read(asked.file, missing_is_empty=True)
        write_private(asked.file, KeysFile(keys=[*keys, key]).write())
    note(f"the key {key.id} of {key.name!r}, which is stored nowhere: keep it")
    say(text)


async def list_key(asked: ListKeySettings) -> None:
    """Prints a line for each key. Raises StartError or OSError."""
    rows: list[tuple[str, ...]] = [("id", "name", "roles", "created", "expires", "quota", "models", "LoRAs")]
    rows += [_row(key) for key in _read(asked.file)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


async def revoke_key(asked: RevokeKeySettings) -> None:
    """Removes a key. Raises StartError or OSError."""
    with _locked(asked.file):
        keys = _read(asked.file)
        found = [key for key in keys if asked.id in (key.id, key.name)]
        if not found:
            raise StartError(f"{asked.file} has no key {asked.id!r}: `triptych keys list` names them")
        if len(found) > 1:
            ids = " or ".join(key.id for key in found)
            raise StartError(f"{len(found)} keys are called {asked.id!r}: name one by its id, {ids}")
        write_private(asked.file, KeysFile(keys=[key for key in keys if key is not found[0]]).write())
    say(f"revoked the key {found[0].id} of {found[0].name!r}")


def _row(key: Key) -> tuple[str, ...]:
    expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}"
    return (
        *(key.id, key.name, ",".join(key.roles), f"{key.created:%Y-%m-%d %H:%M}"),
        f"{expires} (over)" if key.has_expired() else expires,
        "any" if key.quota is None else f"{key.quota:g}/min",
        *(",".join(key.models), ",".join(key.loras) or "none"),
    )


def _read(file: Path, missing_is_empty: bool = False) -> list[Key]:
    if missing_is_empty and not file.exists():
        return []
    try:
        return KeysFile.read(file.read_bytes()).keys
    except OSError as error:
        raise StartError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise StartError(f"{file} is no file of keys: {error}") from error


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile. Raises StartError if there is no such folder."""
    try:
        folder = open(file.resolve().parent / f".{file.name}.lock", "a")  # noqa: SIM115
    except OSError as error:
        raise StartError(f"cannot write {file}: {error.strerror}") from error
    with folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
