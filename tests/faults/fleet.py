"""A real local fleet: `triptych up` with two replicas of every stage, and what is put between its parts."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.broken_stage import BrokenStage
from tests.faults.proxy import Proxy
from tests.local.conftest import Up
from triptych.serving.health import serves
from triptych_local.running.processes import until_serving

STAGES = ("text_encoder", "denoiser", "vae_codec")
REPLICAS = ("--text-encoders", "2", "--denoisers", "2", "--vae-codecs", "2")
HEALTH_CHECK_SECONDS = 2.0
_number = itertools.count()


def addresses(up: Up, stage: str) -> list[str]:
    """Where the replicas of a stage are."""
    return [f"unix:{path}" for path in sorted(up.folder().glob(f"{stage.replace('_', '-')}*.sock"))]


def processes(up: Up) -> dict[str, list[psutil.Process]]:
    """The processes of every stage and of the coordinator."""
    found: dict[str, list[psutil.Process]] = {name: [] for name in (*STAGES, "coordinator")}
    for child in psutil.Process(up.process.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        for name, members in found.items():
            if f"triptych_{name}" in words:
                members.append(child)
    return found


async def all_serve(up: Up, stage: str) -> bool:
    """Whether every replica of a stage serves."""
    return len(processes(up)[stage]) == 2 == sum([await serves(one) for one in addresses(up, stage)])


@dataclass(frozen=True)
class Linked:
    """A coordinator of its own, with something between it and the fleet's stages and its clients.

    address: where clients reach it.
    log: what it logs.
    """

    address: str
    log: Path
    proxies: dict[str, list[Proxy]]
    broken: dict[str, BrokenStage]
    client_side: Proxy


@asynccontextmanager
async def linked(
    up: Up, model: str | Path, attempt_seconds: float, proxies: bool = False, broken: bool = False
) -> AsyncIterator[Linked]:
    """Stages are reached through proxies, or the second replica of each is a broken one."""
    async with AsyncExitStack() as stack:
        between: dict[str, list[Proxy]] = {}
        breaking: dict[str, BrokenStage] = {}
        targets: list[str] = []
        for stage in STAGES:
            reached = addresses(up, stage)
            if proxies:
                between[stage] = [await stack.enter_async_context(Proxy(one)) for one in reached]
                reached = [one.address for one in between[stage]]
            if broken:
                breaking[stage] = await stack.enter_async_context(BrokenStage(reached[1]))
                reached[1] = breaking[stage].address
            targets += [f"--{stage.replace('_', '-')}", ",".join(reached)]
        number = next(_number)
        log, listen = up.folder() / f"coordinator-{number}.log", f"unix:{up.folder()}/linked-{number}.sock"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "triptych_coordinator", "--listen", listen, "--model", str(model)),
                *("--attempt-seconds", str(attempt_seconds), "--drain-seconds", "0"),
                *("--health-check-seconds", str(HEALTH_CHECK_SECONDS), *targets),
                *("--conditioning-cache-bytes", "0"),  # else a text encoder would have nothing to do
                stderr=errors,
            )
        stack.push_async_callback(_ended, process)
        await asyncio.wait_for(until_serving(listen), 60)
        client_side = await stack.enter_async_context(Proxy(listen))
        yield Linked(client_side.address, log, between, breaking, client_side)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
