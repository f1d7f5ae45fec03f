"""Clients' channels: where they connect, their options, and TLS whose files may be replaced."""

from __future__ import annotations

import asyncio
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from triptych.serving.addresses import grpc_target
from triptych.serving.credentials import TlsFiles, TlsMaterial, channel_credentials, reloaded_tls
from triptych.serving.reloading import Reloaded
from triptych.serving.settings import DEFAULT_MAX_MESSAGE_BYTES

_PORTS = {"http": 80, "https": 443}


def target(address: str) -> str:
    """What gRPC connects to for an address as people write it: of https://host/, host:443.

    Raises:
        ValueError: it has a path.
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme.lower() in _PORTS:
        host = rest.rstrip("/")
        if "/" in host or not host:
            raise ValueError(f"'{address}' is not {scheme}://host:port: gRPC's addresses have no path")
        return host if re.search(r":[0-9]+$", host) else f"{host}:{_PORTS[scheme.lower()]}"
    return grpc_target(address if address.startswith("unix:") else address.rstrip("/"))


@dataclass(frozen=True)
class Tls:
    """How a client speaks TLS.

    material: the roots, and the client's certificate if it has one.
    server_name: what the server's certificate must say, a DNS name or an IP address; None: the host of the
        address, localhost for a Unix socket.
    """

    material: Reloaded[TlsMaterial]
    server_name: str | None = None

    def __post_init__(self) -> None:
        if self.server_name is not None and not re.fullmatch(r"[A-Za-z0-9._:-]+", self.server_name):
            raise ValueError(
                f"'{self.server_name}' is no DNS name or IP address, which is what gRPC looks for in a "
                "server's certificate"
            )

    def options(self, address: str) -> list[tuple[str, str]]:
        """Channel arguments for a server at an address."""
        name = self.server_name or ("localhost" if address.startswith("unix:") else None)
        return [] if name is None else [("grpc.ssl_target_name_override", name)]


def tls_of(
    address: str,
    roots: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    server_name: str | None = None,
) -> Tls | None:
    """How to speak TLS to an address: if it begins with https:// or anything is said of certificates.

    Raises ValueError for what contradicts itself, StartError for files that cannot be used.
    """
    files = TlsFiles(*(None if file is None else Path(file) for file in (roots, certificate, key)))
    if not address.lower().startswith("https://") and files == TlsFiles() and server_name is None:
        return None
    if address.lower().startswith("http://"):
        raise ValueError(f"'{address}' is without TLS, and certificates are given: it is https://")
    return Tls(reloaded_tls(files), server_name)


def open_channel(
    address: str, tls: Tls | None = None, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> grpc.aio.Channel:
    """A channel to a server. Raises ValueError for what is no address."""
    options: list[tuple[str, Any]] = [*channel_options(max_message_bytes)]
    if tls is None:
        return grpc.aio.insecure_channel(target(address), options=options)
    options += tls.options(address)

    def connect(material: TlsMaterial) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target(address), channel_credentials(material), options=options)

    return ReloadingChannel(tls.material, connect)


class _Connection:
    """A channel of gRPC, and the calls that run on it. Once it is retired, it closes when none is left."""

    def __init__(self, material: TlsMaterial, channel: grpc.aio.Channel) -> None:
        self.material = material
        self.channel = channel
        self.retired = False
        self._calls = 0
        self._closing: asyncio.Task[None] | None = None

    def begin(self, call: Any) -> Any:
        """Counts a call until it has ended."""
        self._calls += 1
        call.add_done_callback(self._ended)
        return call

    def retire(self) -> None:
        """No new calls come."""
        self.retired = True
        self._close_if_unused()

    def _ended(self, _call: Any) -> None:
        self._calls -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.retired and not self._calls and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.channel.close())


class ReloadingChannel(grpc.aio.Channel):
    """A channel whose new calls have the newest certificate and roots; running ones end where they began.

    gRPC cannot change those of a channel (grpc#41779), so it is a new one for each.
    """

    def __init__(
        self, reloaded: Reloaded[TlsMaterial], connect: Callable[[TlsMaterial], grpc.aio.Channel]
    ) -> None:
        self._reloaded = reloaded
        self._connect = connect
        material = reloaded.latest()
        self._newest = _Connection(material, connect(material))
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet([self._newest])

    def _latest(self) -> _Connection:
        material = self._reloaded.latest()
        if material is not self._newest.material:
            old, self._newest = self._newest, _Connection(material, self._connect(material))
            self._all.add(self._newest)
            old.retire()
        return self._newest

    def _callable(self, kind: str, method: str, *codecs: Any, **others: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            latest = self._latest()
            made = getattr(latest.channel, kind)(method, *codecs, **others)
            return latest.begin(made(*arguments, **options))

        return call

    def unary_unary(self, method: str, *codecs: Any, **others: Any) -> Any:
        """As grpc.aio.Channel's, and so are the next ones."""
        return self._callable("unary_unary", method, *codecs, **others)

    def unary_stream(self, method: str, *codecs: Any, **others: Any) -> Any:
        """One request, many answers."""
        return self._callable("unary_stream", method, *codecs, **others)

    def stream_unary(self, method: str, *codecs: Any, **others: Any) -> Any:
        """Many requests, one answer."""
        return self._callable("stream_unary", method, *codecs, **others)

    def stream_stream(self, method: str, *codecs: Any, **others: Any) -> Any:
        """Many of both."""
        return self._callable("stream_stream", method, *codecs, **others)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the newest."""
        return self._latest().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the newest."""
        await self._latest().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the newest is connected."""
        await self._latest().channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Closes all; running calls are cancelled, after so many seconds."""
        await asyncio.gather(*(connection.channel.close(grace) for connection in self._all))

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class BlockingChannels:
    """The same for callers that block: `latest` is the channel for a new call.

    An older one is gone when nobody holds it and its calls have ended.
    """

    def __init__(self, address: str, tls: Tls | None, max_message_bytes: int) -> None:
        self._target = target(address)
        self._options: list[tuple[str, Any]] = [*channel_options(max_message_bytes)]
        self._reloaded = None if tls is None else tls.material
        if tls is not None:
            self._options += tls.options(address)
        self._lock = threading.Lock()
        self._material: TlsMaterial | None = None
        self._newest: grpc.Channel | None = None
        self._all: weakref.WeakSet[grpc.Channel] = weakref.WeakSet()

    def latest(self) -> grpc.Channel:
        """With the newest certificate and roots."""
        with self._lock:
            material = None if self._reloaded is None else self._reloaded.latest()
            if self._newest is None or material is not self._material:
                self._newest, self._material = self._connect(material), material
                self._all.add(self._newest)
            return self._newest

    def _connect(self, material: TlsMaterial | None) -> grpc.Channel:
        if material is None:
            return grpc.insecure_channel(self._target, options=self._options)
        return grpc.secure_channel(self._target, channel_credentials(material), options=self._options)

    def close(self) -> None:
        """Closes all; running calls are cancelled."""
        for channel in list(self._all):
            channel.close()


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
