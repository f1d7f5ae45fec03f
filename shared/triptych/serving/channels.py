"""Channel arguments for clients of the services, and where they connect."""

import re

from triptych.serving.addresses import grpc_target
from triptych.serving.settings import DEFAULT_MAX_MESSAGE_BYTES


def target(address: str) -> str:
    """What gRPC connects to for an address as people write it: of http://host:port/, host:port.

    Raises:
        ValueError: it is of https, or has a path.
    """
    scheme, separator, rest = address.partition("://")
    if scheme.lower() == "https" and separator:
        raise ValueError(f"'{address}': the services do not speak TLS yet, so it is http://{rest}")
    if scheme.lower() == "http" and separator:
        host = rest.rstrip("/")
        if "/" in host or not host:
            raise ValueError(f"'{address}' is not http://host:port: gRPC's addresses have no path")
        return host if re.search(r":[0-9]+$", host) else f"{host}:80"
    return grpc_target(address if address.startswith("unix:") else address.rstrip("/"))


def channel_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Message limits both ways, no proxy, quick reconnection, and pings that find a dead peer within 30 s.

    A proxy that the environment names for the world outside knows nothing of services here.

    `min_reconnect_backoff_ms` is how long a connection may take to be made, e.g. to a server whose cores are
    busy; one that is refused is tried again sooner. `ping_timeout_ms` says when a ping counts as lost;
    `keepalive_timeout_ms` alone is not heeded (gRPC 1.85).
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
