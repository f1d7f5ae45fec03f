"""`triptych up`: the services run until they are told to stop."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

from triptych.serving.addresses import unix_path
from triptych_local.commands.settings import UpSettings
from triptych_local.output import note, say
from triptych_local.running.folders import claimed_folder, well_known_folder
from triptych_local.running.processes import running
from triptych_local.running.programs import Addresses, fused_program, split_programs


async def up(asked: UpSettings) -> None:
    """Runs the services on Unix sockets or on ports until it is cancelled. Raises StartError."""
    services = asked.services.pinned()
    with ExitStack() as stack:
        if asked.tcp:
            addresses = Addresses.on_ports(asked.base_port, asked.replicas)
        else:
            folder = stack.enter_context(claimed_folder(well_known_folder()))
            addresses = Addresses.in_folder(folder, asked.replicas)
        fused = [fused_program(addresses, services)] if asked.fused else None
        try:
            async with running(fused or split_programs(addresses, services), note):
                _tell(addresses, asked.fused)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            note("stopped")


def _tell(addresses: Addresses, fused: bool) -> None:
    """Says on standard output that all is ready, and how to use it."""
    coordinator = addresses.coordinator
    on_socket = coordinator.startswith("unix:")
    others = () if fused else ",".join(addresses.stages).split(",")
    target = "" if on_socket else f" --target {coordinator}"
    server = f"-unix {unix_path(coordinator)}" if on_socket else coordinator
    lines = [
        f"ready on {coordinator}",
        *(f"         {address}" for address in others),
        f'  triptych generate "a red fire truck" -o truck.png{target}',
        f"  grpcurl -plaintext {server} triptych.v1.ImageGenerationService/GetModel",
    ]
    with suppress(OSError):  # they serve, whoever reads it
        say("\n".join(lines))
