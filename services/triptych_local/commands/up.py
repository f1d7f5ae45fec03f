"""`triptych up`: the services run until they are told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from triptych.errors import StartError
from triptych.serving.addresses import claim, unix_path
from triptych.serving.log_lines import as_line, chosen_format, lines_of
from triptych.serving.settings import LogOptions, with_environment
from triptych_local.commands.settings import NO_GATEWAY, UpSettings
from triptych_local.output import note, say
from triptych_local.running.folders import CERTIFICATES, claimed_folder, temporary_folder, well_known_folder
from triptych_local.running.mtls import LIFE, keep_renewed, with_mtls
from triptych_local.running.processes import running
from triptych_local.running.programs import (
    Addresses,
    StageKey,
    asks_who_calls,
    fused_program,
    gateway_program,
    split_programs,
    with_metrics,
)

if TYPE_CHECKING:
    from triptych_local.certificate_set import CertificateSet

GATEWAY = "127.0.0.1:8000"


async def up(asked: UpSettings) -> None:
    """Runs the services on Unix sockets or on ports until it is cancelled. Raises StartError."""
    _gateway_address(asked.http)  # whose error should come before a model is loaded
    services = asked.services.pinned()
    services.log_format = form = chosen_format(with_environment(LogOptions, services).log_format)
    written = partial(as_line, lines_of("up", form), logging.INFO) if form == "json" else str
    with ExitStack() as stack:
        if asked.tcp:
            addresses = Addresses.on_ports(asked.base_port, asked.replicas)
        else:
            folder = stack.enter_context(claimed_folder(well_known_folder()))
            addresses = Addresses.in_folder(folder, asked.replicas)
        stage_key = None
        if asks_who_calls(services):
            services.open_health = True  # by which this process watches over them
            stage_key = StageKey.made_in(stack.enter_context(temporary_folder()))
        programs = (
            [fused_program(addresses, services)]
            if asked.fused
            else split_programs(addresses, services, stage_key)
        )
        certificates = _certificates(asked) if asked.mtls else None
        if certificates is not None:
            programs = with_mtls(programs, certificates, stack.enter_context(temporary_folder()))
        if asked.metrics_port is not None:
            programs = with_metrics(programs, asked.metrics_port)
        try:
            async with AsyncExitStack() as runs:
                await runs.enter_async_context(running(programs, note, written))
                _tell(addresses, asked, certificates)
                if http := _gateway_address(asked.http):  # another may have taken it meanwhile
                    fronts = [gateway_program(http, addresses.coordinator, services, certificates)]
                    if asked.metrics_port is not None:
                        fronts = with_metrics(fronts, asked.metrics_port + len(programs))
                    await runs.enter_async_context(running(fronts, note, written))
                    _say([f"page on http://{http} (/v1 there for OpenAI's clients)"])
                await (asyncio.Event().wait() if certificates is None else keep_renewed(certificates))
        except asyncio.CancelledError:
            note(written("stopped"))


def _gateway_address(asked: str | None) -> str | None:
    """None for no gateway. Raises StartError for a port that was asked for and is taken."""
    if asked == NO_GATEWAY:
        return None
    try:
        claim(asked or GATEWAY)
    except StartError:
        if asked is not None:
            raise
        with socket.create_server(("127.0.0.1", 0)) as free:
            return f"127.0.0.1:{free.getsockname()[1]}"
    return asked or GATEWAY


def _certificates(asked: UpSettings) -> CertificateSet:
    """Made or renewed. Raises StartError."""
    from triptych_local.certificate_set import CertificateSet  # imports cryptography

    certificates = CertificateSet(asked.certs or well_known_folder() / CERTIFICATES)
    certificates.renew_if_old(LIFE)
    return certificates


def _tell(addresses: Addresses, asked: UpSettings, certificates: CertificateSet | None) -> None:
    """Says on standard output that all is ready, and how to use it."""
    coordinator = addresses.coordinator
    on_socket = coordinator.startswith("unix:")
    others = () if asked.fused else ",".join(addresses.stages).split(",")
    found = on_socket and asked.certs is None  # by the command itself
    target = "" if found else f" --target {coordinator}"
    server, plaintext = f"-unix {unix_path(coordinator)}" if on_socket else coordinator, "-plaintext"
    if certificates is not None:
        mine = certificates.of("client")
        plaintext = f"-cacert {mine.roots} -cert {mine.certificate} -key {mine.key} -authority localhost"
        if not found:
            target += f" --tls-roots {mine.roots} --tls-certificate {mine.certificate} --tls-key {mine.key}"
    lines = [
        f"ready on {coordinator}",
        *(f"         {address}" for address in others),
        f'  triptych generate "a red fire truck" -o truck.png{target}',
        f"  grpcurl {plaintext} {server} triptych.v1.ImageGenerationService/GetModel",
    ]
    _say(lines)


def _say(lines: Sequence[str]) -> None:
    with suppress(OSError):  # they serve, whoever reads it
        say("\n".join(lines))
