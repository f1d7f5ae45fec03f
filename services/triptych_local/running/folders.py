"""Where the sockets of this user's services are."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from triptych.errors import StartError
from triptych.serving.addresses import check_listen

COORDINATOR_SOCKET = "coordinator.sock"
CERTIFICATES = "certificates"
"""The folder of `triptych up --mtls`, among the sockets."""
LONGEST_SOCKET = "text-encoder-64.sock"


def well_known_folder() -> Path:
    """The folder of `triptych up`: in $XDG_RUNTIME_DIR, else in the temporary folder, else in /tmp.

    The next one is taken where the runtime folder is missing, another user's or not to be written in, as
    after `su`; and where no socket can be: its path would be longer than the system allows (107 bytes on
    Linux) or have a comma.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folders = [Path(runtime) / "triptych"] if runtime and _is_own(Path(runtime)) else []
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
    with _open_lock(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise StartError(
                f"'triptych up' already runs in {folder} (process {lock.read().strip()})"
            ) from error
        with suppress(OSError):  # a full disk: the lock holds without the number
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield folder


def _open_lock(folder: Path) -> TextIO:
    try:
        return (folder / "up.lock").open("a+")
    except OSError as error:
        raise StartError(f"cannot open {folder}/up.lock: {error.strerror}") from error


def standing_coordinator(folder: Path) -> str | None:
    """The address of the coordinator of `triptych up` in its folder; None if there is no socket.

    Raises StartError when the folder or the socket is another user's, who would get the prompts.
    """
    if not os.path.lexists(folder):
        return None
    _check_private(folder)
    path = folder / COORDINATOR_SOCKET
    if not path.is_socket():
        return None
    if path.lstat().st_uid != os.getuid():
        raise StartError(f"{path} is another user's socket")
    return f"unix:{path}"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, closed to other users, that is removed with all that is in it."""
    short = _fits(Path(tempfile.gettempdir()) / "triptych-12345678")
    with tempfile.TemporaryDirectory(prefix="triptych-", dir=None if short else "/tmp") as folder:
        yield Path(folder)


def _is_own(folder: Path) -> bool:
    """Whether it is a folder of this user, who can write in it."""
    try:
        return folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


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
