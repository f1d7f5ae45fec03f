"""Files that are read again when they change, while a server runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from triptych.errors import StartError

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 16 << 20


class Reloaded(Generic[T]):
    """What a file says now.

    A version that cannot be read is said in the log, and the one before it stays until the next: write files
    whole, beside their place, and rename them, as `triptych keys` does and as Kubernetes mounts secrets.
    """

    def __init__(self, file: Path, read: Callable[[bytes], T]) -> None:
        """`read` raises ValueError with a sentence that tells nothing of what the file holds.

        Raises:
            StartError: the file cannot be read.
        """
        self._file = file
        self._read = read
        try:
            self._version = _version(file)
            self._value = self._read_file()
        except (OSError, ValueError) as error:
            raise StartError(f"cannot read {file}: {_sentence(error)}") from error

    def value(self) -> T:
        """As of the newest version that can be read. Looks at the file's date each time, which is cheap."""
        try:
            version = _version(self._file)
            if version != self._version:
                self._version = version
                self._value = self._read_file()
                log.info("read %s, which has changed", self._file)
        except (OSError, ValueError) as error:
            self._complain(_sentence(error))
        else:
            self._complaint = ""
        return self._value

    _complaint = ""

    def _complain(self, sentence: str) -> None:
        """Once, not for each call."""
        if sentence != self._complaint:
            self._complaint = sentence
            log.error("cannot read %s: %s; what it said before still counts", self._file, sentence)

    def _read_file(self) -> T:
        with self._file.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return self._read(data)


def _version(file: Path) -> tuple[int, ...]:
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _sentence(error: OSError | ValueError) -> str:
    return error.strerror or "it cannot be opened" if isinstance(error, OSError) else str(error)
