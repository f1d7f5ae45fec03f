"""The one server bootstrap: health, reflection, limits, errors, log lines and a stop that loses no call."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from triptych.errors import StartError, invalid_argument, resource_exhausted
from triptych.serving.addresses import claim, grpc_target, is_local
from triptych.serving.allocator import keep_freed_memory, spare_what_is_loaded
from triptych.serving.callers.allowed_names import AllowedNamesInterceptor
from triptych.serving.callers.authorization import Authorization
from triptych.serving.credentials import server_credentials, server_files
from triptych.serving.interceptors import ErrorInterceptor
from triptych.serving.logs import log_to_stderr
from triptych.serving.settings import ServerSettings
from triptych.serving.stopping import end_at_once_when_told
from triptych.telemetry.exporting import switched_on
from triptych.v1.shared_memory_pb2_grpc import add_SharedMemoryServiceServicer_to_server
from triptych.wire.shared_memory import NAME as SHARED_MEMORY
from triptych.wire.shared_memory import SharedMemory, SharedMemoryInterceptor

log = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_MAX_NAME = 200
_WATCHED_SECONDS = 10.0

MAX_WATCHERS = 256
"""Of health."""
MAX_CONNECTIONS = 1024
HANDSHAKE_SECONDS = 20.0
"""How long a new connection may take to speak HTTP/2."""
SILENT_SECONDS = 30.0
"""After which a client is pinged."""
PING_SECONDS = 10.0
"""How long it may take to answer; then its connection and its calls end."""
MAX_STREAMS = 1000
"""Of one connection; a client holds more back by itself."""
MAX_HEALTH_MESSAGE_BYTES = 1 << 20
MAX_CALLS = 4096
"""Of a server; more are refused with RESOURCE_EXHAUSTED."""


async def _nothing() -> None:
    """Closes nothing."""


def _no_streams() -> None:
    """Ends nothing."""


@dataclass(frozen=True)
class Service:
    """A gRPC service: its full name, and what adds its servicer to a server.

    E.g. "triptych.v1.DenoiserService" and partial(add_DenoiserServiceServicer_to_server, servicer).
    end_streams: ends calls that would last for ever, when the server has drained.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]
    end_streams: Callable[[], None] = _no_streams


@dataclass(frozen=True)
class Loaded:
    """What is ready to serve: services, a few words for the log, and what to await after the last call.

    shared_memory: for clients on this host; None for none.
    """

    services: Sequence[Service]
    description: str
    close: Callable[[], Awaitable[None]] = _nothing
    shared_memory: SharedMemory | None = None


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """gRPC's health service with its newest method, and with a bound on who watches."""

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> None:
        """The status of a service, and each later one."""
        if len(request.service) > _MAX_NAME:
            raise invalid_argument(("service", f"has over {_MAX_NAME} characters, as no service here has"))
        if sum(self._watcher_count_by_service.values()) >= MAX_WATCHERS:
            raise resource_exhausted(f"{MAX_WATCHERS} calls watch, which is the limit", _WATCHED_SECONDS)
        await super().Watch(request, context)

    async def List(
        self,
        request: health_pb2.HealthListRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthListRequest, health_pb2.HealthListResponse],
    ) -> health_pb2.HealthListResponse:
        """The status of every service."""
        statuses = self._server_status.items()
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=status) for name, status in statuses}
        )


class Server:
    """A gRPC server with some services, health (of each and of "") and reflection.

    With health_listen it has a second port, for health alone.
    """

    def __init__(
        self, services: Sequence[Service], settings: ServerSettings, shared_memory: SharedMemory | None = None
    ) -> None:
        """Raises StartError for files of settings that cannot be read."""
        self.address = settings.listen
        self._settings = settings
        self._shared_memory = shared_memory
        self.health_address = settings.health_listen
        interceptors: list[grpc.aio.ServerInterceptor] = [ErrorInterceptor(Authorization.of(settings))]
        if settings.tls_allowed_names:
            interceptors.insert(0, AllowedNamesInterceptor(settings.tls_allowed_names))
        if shared_memory is not None:
            add = partial(add_SharedMemoryServiceServicer_to_server, shared_memory)
            services = [*services, Service(SHARED_MEMORY, add)]
            interceptors.append(SharedMemoryInterceptor(shared_memory))
        self._names = [service.name for service in services]
        self._end_streams = [service.end_streams for service in services]
        self._health = Health()
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=server_options(settings.max_message_bytes),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        for service in services:
            service.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self._health_server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=server_options(MAX_HEALTH_MESSAGE_BYTES),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)

    async def start(self) -> None:
        """Listens, and puts the ports that were found into the addresses. Raises StartError."""
        check_listening(self._settings)
        files = server_files(self._settings)
        self.address = _add_port(
            self._server, self.address, None if files is None else server_credentials(files)
        )
        if files is None and not is_local(self.address):
            log.warning(
                "%s takes calls without TLS, as --insecure says: whoever reaches it can call and listen in",
                self.address,
            )
        if self.health_address is not None:
            self.health_address = _add_port(self._health_server, self.health_address)
            await self._health_server.start()
            log.info("health checks without TLS on %s", self.health_address)
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, _SERVING)

    async def stop(self) -> None:
        """Says NOT_SERVING, serves on for drain_seconds, then lets running calls end within grace_seconds."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_seconds)
        for end_streams in self._end_streams:
            end_streams()
        if self._shared_memory is not None:
            self._shared_memory.close()
        await self._server.stop(self._settings.grace_seconds)
        await self._health_server.stop(0)


def check_listening(settings: ServerSettings) -> None:
    """Raises StartError unless a server can listen as the settings say."""
    files = server_files(settings)
    if files is not None:
        server_credentials(files)
    elif not (settings.insecure or is_local(settings.listen)):
        raise StartError(
            f"cannot listen on {settings.listen} without TLS, where other hosts may connect: give "
            "--tls-certificate and --tls-key, or --insecure where the network is nobody else's"
        )
    for address in filter(None, (settings.listen, settings.health_listen)):
        claim(address)


def _add_port(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> str:
    """The address, with the port that was found. A Unix socket is for this user alone. Raises StartError."""
    before = os.umask(0o177)
    try:
        if credentials is None:
            port = server.add_insecure_port(grpc_target(address))
        else:
            port = server.add_secure_port(grpc_target(address), credentials)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address}") from error
    finally:
        os.umask(before)
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Channel arguments: limits of messages, connections and streams, one server per port, clients may ping.

    A connection ends when it has no call for an hour, or does not answer a ping.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE_SECONDS)),
        ("grpc.max_connection_idle_ms", 3_600_000),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a few kilobytes would inflate to the limit
        ("grpc.keepalive_time_ms", round(1000 * SILENT_SECONDS)),
        ("grpc.keepalive_timeout_ms", round(1000 * PING_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.ping_timeout_ms", round(1000 * PING_SECONDS)),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


async def serve(name: str, settings: ServerSettings, load: Callable[[], Awaitable[Loaded]]) -> None:
    """Loads, listens, and serves until SIGTERM or SIGINT; a second signal ends the process at once.

    `load` runs before the port opens, so that whoever can connect is served. Raises StartError.
    """
    started = time.monotonic()
    check_listening(settings)
    telemetry_off = switched_on(name.lower().replace(" ", "-"), settings.metrics_listen)
    Authorization.of(settings)  # whose files are better found wanting before a model is loaded
    log.info("starting")
    loaded = await load()
    server = Server(loaded.services, settings, loaded.shared_memory)
    await server.start()
    stopped = stop_signal(name)
    seconds = time.monotonic() - started
    log.info("ready on %s in %.1f s (%s)", server.address, seconds, loaded.description)
    spare_what_is_loaded()
    log.info("stopping after %s", (await stopped).name)
    await server.stop()
    await loaded.close()
    await asyncio.to_thread(telemetry_off)
    log.info("stopped")


def run(name: str, settings: ServerSettings, load: Callable[[], Awaitable[Loaded]]) -> NoReturn:
    """Serves, then exits: with 0 after a signal, with 1 and one log line if the service cannot start.

    `name` is what log lines start with, e.g. "denoiser".
    """
    keep_freed_memory()
    log_to_stderr(settings, name)
    end_at_once_when_told(name)  # while loading, there is nothing to save
    try:
        asyncio.run(serve(name, settings, load))
    except StartError as error:
        log.error("%s", error)
        sys.exit(1)
    sys.exit(0)


def stop_signal(name: str) -> asyncio.Future[signal.Signals]:
    """The first SIGTERM or SIGINT, when it comes; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(received: signal.Signals) -> None:
        end_at_once_when_told(name)
        stopped.set_result(received)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopped
