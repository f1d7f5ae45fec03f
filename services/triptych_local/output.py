"""What commands write: files whole or not at all, results on standard output, notes on standard error."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path


def open_missing_streams() -> None:
    """Gives a process that was started without one of the standard streams an empty one in its place.

    Else the next file or socket that is opened would be taken for it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def write_file(file: Path, data: bytes) -> None:
    """Writes a file whole or not at all. Raises OSError with a sentence."""
    try:
        target = file.resolve()
        if target.exists() and not target.is_file():  # a device or a pipe, which must not be replaced
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise OSError(f"cannot write {file}: {error.strerror}") from error


def _replace(file: Path, data: bytes) -> None:
    """Writes beside the file, which it then takes the place of."""
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else None
    whole = file.with_name(f".{file.stem[:100]}.{os.getpid()}.part")
    try:
        whole.write_bytes(data)
        if mode is not None:
            whole.chmod(mode)
        whole.replace(file)
    except OSError:
        with suppress(OSError):
            whole.unlink()
        raise


def write_private(file: Path, data: bytes) -> None:
    """Writes a file for its user alone, whole or not at all. Raises OSError with a sentence."""
    whole = file.with_name(f".{file.name[:100]}.{os.getpid()}.part")
    try:
        target = file.resolve()
        whole = target.with_name(whole.name)
        whole.unlink(missing_ok=True)
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as part:
            part.write(data)
            os.fsync(part.fileno())
        whole.replace(target)
    except OSError as error:
        with suppress(OSError):
            whole.unlink()
        raise OSError(f"cannot write {file}: {error.strerror}") from error


def say(line: str) -> None:
    """Prints a result. Raises BrokenPipeError if nobody reads any more, else OSError with a sentence."""
    try:
        print(line, flush=True)
    except OSError as error:
        _silence(1)
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"cannot write to standard output: {error.strerror}") from error


def note(line: str, end: str = "\n") -> None:
    """Prints what is not a result. Where that cannot be done, the work goes on without."""
    try:
        print(line, end=end, file=sys.stderr, flush=True)
    except OSError:
        _silence(2)


def _silence(number: int) -> None:
    """Throws away what a standard stream still holds and what comes: at exit it would fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
