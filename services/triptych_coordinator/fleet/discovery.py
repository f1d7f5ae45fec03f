"""Where the replicas of a stage are: a list of addresses, in which a name may stand for several."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

from triptych.serving.addresses import check_listen

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IP addresses of a host name, asked for with a port. Raises OSError if there are none."""


def check_replicas(text: str) -> str:
    """Returns the text if it is addresses with commas between: host:port, [::1]:port or unix:/path.

    Raises ValueError.
    """
    for address in text.split(","):
        check_listen(address.strip())
    return text


def has_names(text: str) -> bool:
    """Whether what the text stands for can change: an address in it is neither a socket nor an IP address."""
    return any(_name(address) is not None for address in _addresses(text))


async def resolve(text: str, look_up: LookUp) -> dict[str, str | None]:
    """The addresses of all replicas, each with the name that stands for it, if any.

    Raises OSError if a name has none.

    A name of one host stays as it is, even if it has an IPv4 and an IPv6 address: connecting to the one that
    answers is gRPC's affair. Of several hosts with both, the more numerous kind is taken, so that none is
    counted twice.
    """
    resolved: dict[str, str | None] = {}
    for address in _addresses(text):
        name, found = _name(address), [address]
        if name is not None:
            port = address.rpartition(":")[2]
            found = _hosts(address, port, await look_up(name, int(port)))
        for one in found:
            resolved.setdefault(one, name)
    return resolved


async def look_up(name: str, port: int) -> list[str]:
    """The IP addresses that the system's resolver knows. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _hosts(address: str, port: str, found: Sequence[str]) -> list[str]:
    parsed = sorted({ipaddress.ip_address(one) for one in found}, key=lambda ip: (ip.version, int(ip)))
    v4 = [f"{ip}:{port}" for ip in parsed if ip.version == 4]
    v6 = [f"[{ip}]:{port}" for ip in parsed if ip.version == 6]
    if len(v4) <= 1 and len(v6) <= 1:
        return [address]
    return v6 if len(v6) > len(v4) else v4


def _addresses(text: str) -> list[str]:
    return [address.strip() for address in text.split(",")]


def _name(address: str) -> str | None:
    """The host name in an address; None for a socket or an IP address."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:"):
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return None
