"""`triptych top`: what a fleet does, live."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from triptych.errors import StartError, TriptychError
from triptych.serving.callers.sent_keys import key_for, keyed
from triptych.serving.channels import open_channel
from triptych.serving.diagnosis import rpc_errors
from triptych.v1 import fleet_pb2 as pb
from triptych.v1.fleet_pb2_grpc import FleetServiceStub
from triptych_local.commands.generate import check_answers, standing_address
from triptych_local.commands.settings import TopSettings
from triptych_local.output import say

if TYPE_CHECKING:
    from triptych.v1.fleet_pb2_grpc import FleetServiceAsyncStub

ANSWER_SECONDS = 5.0
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, without a cursor; back
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"

_STATES = {
    pb.FleetReplica.STATE_READY: "ready",
    pb.FleetReplica.STATE_AWAY: "away",
    pb.FleetReplica.STATE_EJECTED: "ejected",
}
_HEAD = (
    *("replica", "state", "running", "calls/min", "p50 ms", "max ms"),
    *("queue ms", "compute ms", "wire ms", "batch", "waiting", "oldest s"),
)


async def top(asked: TopSettings) -> None:
    """Shows a fleet until it is cancelled, or once. Raises StartError or TriptychError."""
    if asked.target is not None:
        await check_answers(asked.target, asked.tls)
        address, tls = asked.target, asked.tls
    else:
        found, tls = await standing_address(asked.tls)
        if found is None:
            raise StartError("no `triptych up` runs here: name a coordinator with --target")
        address = found
    with_tls = tls.at(address)
    key = key_for(address, with_tls is not None or tls.insecure, tls.api_key())
    async with open_channel(address, with_tls) as channel:
        stub: FleetServiceAsyncStub = FleetServiceStub(keyed(channel, key))  # type: ignore[assignment]
        if asked.once:
            for line in fleet_lines(await _fleet(stub)):
                say(line)
            return
        with _screen():
            while True:
                _show([f"triptych top   {address}   {time.strftime('%H:%M:%S')}", *await _lines(stub)])
                await asyncio.sleep(asked.interval)


async def _fleet(stub: FleetServiceAsyncStub) -> pb.GetFleetResponse:
    with rpc_errors():
        return await stub.GetFleet(pb.GetFleetRequest(), timeout=ANSWER_SECONDS)


async def _lines(stub: FleetServiceAsyncStub) -> list[str]:
    """Or why there are none: a coordinator may come back."""
    try:
        return list(fleet_lines(await _fleet(stub)))
    except TriptychError as error:
        return ["", f"the coordinator does not say: {error}"]


def fleet_lines(fleet: pb.GetFleetResponse) -> Iterator[str]:
    """The table."""
    oldest = fleet.oldest_waiting_milliseconds / 1000
    waiting = f" (the oldest for {oldest:.1f} s)" if fleet.waiting_requests else ""
    steps = fleet.steps
    yield (
        f"{fleet.model}: {fleet.running_requests} requests running, {fleet.waiting_requests} waiting{waiting}"
    )
    yield (
        f"last minute: {fleet.pictures} pictures, {steps.count} steps, p50 {steps.p50_milliseconds:.1f} ms, "
        f"max {steps.max_milliseconds:.1f} ms"
    )
    rows = [_HEAD, *(_cells(one) for stage in fleet.stages for one in stage.replicas)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for stage in fleet.stages:
        yield ""
        yield (
            f"{stage.name}: {stage.outstanding_rows} rows outstanding; last minute: {stage.retries} retries, "
            f"{stage.ejections} ejections"
        )
        for cells in (_HEAD, *(_cells(one) for one in stage.replicas)):
            name, state, *numbers = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            yield "  ".join(["", name, state, *(one.strip().rjust(len(one)) for one in numbers)])


def _cells(replica: pb.FleetReplica) -> tuple[str, ...]:
    calls = replica.calls
    times = (
        *(calls.p50_milliseconds, calls.max_milliseconds),
        *(replica.queue_milliseconds, replica.compute_milliseconds, replica.wire_milliseconds),
    )
    in_batches = replica.batch_rows > 0
    return (
        *(replica.address, _STATES.get(replica.state, "")),
        *(str(replica.running_calls), str(calls.count)),
        *(f"{time:.1f}" if time else "-" for time in times),  # a text encoder says no parts of them
        f"{replica.batch_rows:.1f}" if in_batches else "-",
        str(replica.waiting_rows) if in_batches else "-",
        f"{replica.oldest_row_milliseconds / 1000:.1f}" if in_batches else "-",
    )


@contextmanager
def _screen() -> Iterator[None]:
    """Another screen of the terminal for the duration of the block; elsewhere, nothing of the kind."""
    if not sys.stdout.isatty():
        yield
        return
    print(_ENTER, end="", flush=True)
    try:
        yield
    finally:
        with suppress(OSError):
            print(_LEAVE, end="", flush=True)


def _show(lines: list[str]) -> None:
    """In place of what was there before."""
    if not sys.stdout.isatty():
        say("\n".join([*lines, ""]))
        return
    columns, rows = shutil.get_terminal_size()
    cut = [f"{line[:columns]}{_TO_END_OF_LINE}" for line in lines[:rows]]
    print(_HOME + "\n".join(cut) + _TO_END, end="", flush=True)
