"""Where the sockets of this user's services are."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import StartError
from triptych.serving.addresses import check_listen

COORDINATOR_SOCKET = "coordinator.sock"
LONGEST_SOCKET = "text-encoder-64.sock"


def well_known_folder() -> Path:
    """The folder of `triptych up`: in $XDG_RUNTIME_DIR, else in the temporary folder, else in /tmp.

    The next one is taken where a socket's path would be longer than the system allows (107 bytes on Linux).
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folders = [Path(runtime) / "triptych"] if runtime else []
    folders += [Path(parent) / f"triptych-{os.getuid()}" for parent in (tempfile.gettempdir(), "/tmp")]
    return next((folder for folder in folders if _fits(folder)), folders[-1])


@contextmanager
def claimed_folder(folder: Path) -> Iterator[Path]:
    """The folder, made if it is missing, for this process alone and closed to other users.

    Raises StartError when another process has it or it is not this user's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot make the folder {folder}: {error.strerror}") from error
    _check_private(folder)
    with (folder / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise StartError(
                f"'triptych up' already runs in {folder} (process {lock.read().strip()})"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, closed to other users, that is removed with all that is in it."""
    short = _fits(Path(tempfile.gettempdir()) / "triptych-12345678")
    with tempfile.TemporaryDirectory(prefix="triptych-", dir=None if short else "/tmp") as folder:
        yield Path(folder)


def _fits(folder: Path) -> bool:
    try:
        check_listen(f"unix:{folder / LONGEST_SOCKET}")
    except ValueError:
        return False
    return True


def _check_private(folder: Path) -> None:
    """Refuses a folder that someone else owns, or that someone else could replace sockets in."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise StartError(f"{folder} is not a folder of this user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StartError(f"{folder} is open to other users: chmod 700 {folder}")
