"""Addresses a service listens on: their form, and whether one is free."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import quote_from_bytes

from triptych.errors import StartError

_MAX_UNIX_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # sun_path, without its final zero


def check_listen(address: str) -> str:
    """Returns the address if it is "unix:/path", "host:port" or "[::1]:port", where port 0 is any free one.

    Raises ValueError.
    """
    if address.startswith("unix:"):
        if "," in address:
            raise ValueError(f"'{address}' has a comma, which stands between addresses")
        length = len(os.fsencode(unix_path(address)))
        if not 0 < length <= _MAX_UNIX_PATH_BYTES:
            raise ValueError(f"a Unix socket's path has 1 to {_MAX_UNIX_PATH_BYTES} bytes, not {length}")
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"'{address}' is neither host:port nor unix:/path")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"'{address}' needs brackets around its IPv6 address, as in [::1]:50051")
    return address


def grpc_target(address: str) -> str:
    """The address as gRPC reads it: a socket's path is part of a URI, in which # % ? have meanings."""
    if not address.startswith("unix:"):
        return address
    return f"unix:{quote_from_bytes(os.fsencode(unix_path(address)))}"


def unix_path(address: str) -> str:
    """The path in "unix:/path" or "unix:///path"."""
    path = address.removeprefix("unix:")
    return path[2:] if path.startswith("//") else path


def is_local(address: str) -> bool:
    """Whether nobody but this host can connect to it: a Unix socket, or a loopback address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def claim(address: str) -> None:
    """Makes sure that nobody listens on the address; a Unix socket that a dead server left is removed.

    gRPC itself would take a live Unix socket over, and says of a port only that it failed.
    Raises StartError.
    """
    if address.startswith("unix:"):
        _claim_unix(address)
    else:
        _claim_tcp(address)


def _claim_unix(address: str) -> None:
    path = Path(unix_path(address))
    if not path.parent.is_dir():
        raise StartError(f"cannot listen on {address}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StartError(f"cannot listen on {address}: this user cannot write in the folder {path.parent}")
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise StartError(f"cannot listen on {address}: that file exists and is no socket")
    try:
        if _answers(path):
            raise StartError(f"cannot listen on {address}: another server listens there")
        path.unlink(missing_ok=True)
    except PermissionError as error:
        raise StartError(f"cannot listen on {address}: another user's socket is there") from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # its backlog is full
            return True
    return True


def _claim_tcp(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror}") from error
    refusals = [refusal for entry in found if (refusal := _refusal(entry[0], entry[4])) is not None]
    taken = [refusal for refusal in refusals if refusal.errno == errno.EADDRINUSE]
    if taken:
        raise StartError(f"cannot listen on {address}: another server listens there")
    if len(refusals) == len(found):
        raise StartError(f"cannot listen on {address}: {refusals[0].strerror}")


def _refusal(family: int, target: tuple[str | int | bytes, ...]) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
    except OSError as error:
        return error
    return None
