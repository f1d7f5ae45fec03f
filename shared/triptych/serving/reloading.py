"""Files that are read again when they change, while a server runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from triptych.errors import StartError

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 16 << 20
RETRY_SECONDS = 1.0
"""How soon files are read again that could not be read and have not changed since."""

_Stamps = tuple[tuple[int, ...], ...]


class Reloaded(Generic[T]):
    """What some files say together now. May be shared by threads.

    What cannot be read, or does not fit together yet, is said in the log, once, and what was read before
    stays: Kubernetes swaps a link above its files, others write one file after the other.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T], seconds: float = 0.0) -> None:
        """Looks whether the files have changed when it is asked, at most once in so many seconds.

        Raises:
            StartError: `read` raised it, with a sentence that tells nothing secret of what the files hold.
        """
        self._files = files
        self._read = read
        self._seconds = seconds
        self._lock = threading.Lock()
        self._stamps = _stamps(files)
        self._value = read()
        self._refused: _Stamps | None = None
        self._retry_at = 0.0
        self._next_look = time.monotonic() + seconds

    def latest(self) -> T:
        """As of the newest versions that can be read; the same object until there is another."""
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._look()
                self._next_look = time.monotonic() + self._seconds
            return self._value

    def _look(self) -> None:
        stamps = _stamps(self._files)
        if stamps == self._stamps or (stamps == self._refused and time.monotonic() < self._retry_at):
            return
        try:
            value = self._read()
        except StartError as error:
            if stamps != self._refused:
                log.error("%s; what was read before stays", error)
            self._refused, self._retry_at = stamps, time.monotonic() + RETRY_SECONDS
            return
        self._stamps, self._refused = stamps, None
        if value != self._value:
            self._value = value
            log.info("read %s again, which has changed", self._files[0])


def reloaded_file(file: Path, parse: Callable[[bytes], T]) -> Reloaded[T]:
    """What one file says now; looked at for every call, which is cheap.

    `parse` raises ValueError with a sentence that tells nothing of what the file holds.

    Raises:
        StartError: the file cannot be read.
    """
    return Reloaded([file], partial(_parsed, file, parse))


def _parsed(file: Path, parse: Callable[[bytes], T]) -> T:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return parse(data)
    except OSError as error:
        raise StartError(f"cannot read {file}: {error.strerror or 'it cannot be opened'}") from error
    except ValueError as error:
        raise StartError(f"cannot read {file}: {error}") from error


def _stamps(files: Sequence[Path]) -> _Stamps:
    """What changes when a file does, also when a link above it does."""
    return tuple(map(_stamp, files))


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
