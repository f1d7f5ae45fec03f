"""The gateway's server: uvicorn, with bounds on connections and heads, and a stop that loses no request."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from triptych.client import AsyncClient
from triptych.errors import StartError
from triptych.serving.addresses import claim, is_local, unix_path
from triptych.serving.credentials import TlsFiles, server_context
from triptych.serving.logs import log_to_stderr
from triptych.serving.server import stop_signal
from triptych.serving.stopping import end_at_once_when_told
from triptych.telemetry.exporting import switched_on
from triptych_gateway.app import Health, create_app
from triptych_gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 << 10
"""Of a request's line and headers."""
HEAD_SECONDS = 20.0
"""How long a head may take to arrive, from the connection or its first byte on."""
IDLE_SECONDS = 30
"""How long a connection stays without a request."""
BACKLOG = 1024


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which ends connections whose next head does not come."""

    _ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first head."""
        super().connection_made(transport)
        self._ending = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Waits on where a head has only begun."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._ending is None:
            self._ending = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None


class _Server(uvicorn.Server):
    """uvicorn's, which leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class Gateway:
    """The server with its application, at `address` once it has started."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises StartError."""
        self._settings = settings
        self._socket, self.address = listening_socket(settings)
        self._client = AsyncClient(
            settings.coordinator,
            roots=settings.tls_roots,
            certificate=settings.tls_client_certificate,
            key=settings.tls_client_key,
            server_name=settings.coordinator_tls_name,
            api_key="",  # whoever asks shows their own
            retry_seconds=settings.retry_seconds,
        )
        if not settings.hands_on_credentials():
            log.warning(
                "clients' keys are not handed on to %s, where others may listen in: give --tls-roots, or "
                "--insecure where the network is nobody else's",
                settings.coordinator,
            )
        self._health = Health(self._client)
        config = uvicorn.Config(
            create_app(self._client, settings, self._health),
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=round(settings.grace_seconds),
            backlog=BACKLOG,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Returns when it takes connections. Raises StartError for a certificate that cannot be used."""
        config, files = self._server.config, (self._settings.tls_certificate, self._settings.tls_key)
        config.load()
        config.ssl = None if None in files else server_context(TlsFiles(None, *files))
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Says that it is not ready, serves on for drain_seconds, then lets running requests end."""
        self._health.stopping = True
        await asyncio.sleep(self._settings.drain_seconds)
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        await self._client.close()


def listening_socket(settings: GatewaySettings) -> tuple[socket.socket, str]:
    """A socket at settings.listen, and the address with the port that was found. Raises StartError."""
    address = settings.listen
    if settings.tls_certificate is None and not (settings.insecure or is_local(address)):
        raise StartError(
            f"cannot listen on {address} without TLS, where other hosts may connect: give "
            "--tls-certificate and --tls-key, or --insecure where the network is nobody else's"
        )
    claim(address)
    before = os.umask(0o177)  # a Unix socket is for this user alone
    try:
        if address.startswith("unix:"):
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(unix_path(address))
            return listening, address
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        listening = socket.create_server((host.strip("[]"), int(port)), family=family)
        return listening, f"{host}:{listening.getsockname()[1]}"
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from error
    finally:
        os.umask(before)


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once. Raises StartError."""
    started = time.monotonic()
    telemetry_off = switched_on("gateway", settings.metrics_listen)
    gateway = Gateway(settings)
    await gateway.start()
    stopped = stop_signal("gateway")
    scheme = "http" if settings.tls_certificate is None else "https"
    where = gateway.address if gateway.address.startswith("unix:") else f"{scheme}://{gateway.address}"
    log.info("ready on %s in %.1f s (%s)", where, time.monotonic() - started, settings.coordinator)
    log.info("stopping after %s", (await stopped).name)
    await gateway.stop()
    await asyncio.to_thread(telemetry_off)
    log.info("stopped")


def run(settings: GatewaySettings) -> NoReturn:
    """Serves, then exits: with 0 after a signal, with 1 and one log line if the gateway cannot start."""
    log_to_stderr(settings, "gateway")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are whatever strangers send
    end_at_once_when_told("gateway")
    try:
        asyncio.run(serve(settings))
    except (StartError, ValueError) as error:
        log.error("%s", error)
        sys.exit(1)
    sys.exit(0)
