"""Memory that two processes of one user on one host share: made by one, opened and checked by the other.

A region is a Linux memfd: memory with a file descriptor and no place in any folder. It is gone when the last
process that has it is, however that ended, so nothing is left to clean up. The other process opens it through
/proc, mode 0600: who can do so runs as the same user or as root, and could read the first one's memory
anyway. It is sealed at its size: nobody can cut it off under a reader, which would end the reader by SIGBUS.
Its content is not protected from the one who shares it: copy what is there before checking it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import mmap
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import StartError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform == "linux" else 0


@dataclass(frozen=True)
class Region:
    """Mapped memory of `size` bytes. It is unmapped when nobody refers to it any more."""

    name: str
    memory: mmap.mmap

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.memory)

    def write(self, data: memoryview | bytes) -> None:
        """Copies bytes to the start."""
        self.memory[: len(data)] = data

    def read(self, length: int) -> bytes:
        """A copy of the first bytes."""
        return self.memory[:length]


def check_regions() -> None:
    """Raises StartError where the operating system has no such memory."""
    if sys.platform != "linux":
        raise StartError(f"--shared-memory-mb needs Linux, this is {sys.platform}: leave it out")


@functools.cache
def host_id() -> str:
    """The same for two processes that can open each other's regions, if they are of one user; "" for none.

    That is a kernel since it was started, and a PID namespace: the other containers on a host have their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:32]


def create_region(size: int) -> tuple[Region, int]:
    """A region with a new name, and the file descriptor by which others find it, for the caller to close.

    All its memory is taken now. Raises OSError if there is not enough.
    """
    name = secrets.token_hex(16)
    descriptor = os.memfd_create(f"triptych-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(descriptor, 0o600)
        os.posix_fallocate(descriptor, 0, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return Region(name, _mapped(descriptor, size)), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def open_region(name: str, size: int, process_id: int, descriptor: int) -> Region:
    """The region that another process made. Raises OSError if it is not there, as on another host."""
    path = f"/proc/{process_id}/fd/{descriptor}"
    _check_link(path, name)  # before it is opened: elsewhere, that may be anything
    opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _check_link(f"/proc/self/fd/{opened}", name)
        if os.fstat(opened).st_size != size or fcntl.fcntl(opened, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(f"{path} is not sealed at {size} bytes")
        return Region(name, _mapped(opened, size))
    finally:
        os.close(opened)


def _check_link(path: str, name: str) -> None:
    if (target := os.readlink(path)) != f"/memfd:triptych-{name} (deleted)":
        raise OSError(f"{path} is {target}, not the region {name}")


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    """Its pages are looked up now, not one by one in the first call."""
    return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
