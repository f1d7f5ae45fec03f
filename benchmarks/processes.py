"""Processes that benchmarks start, talk to and stop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych_local.running.folders import temporary_folder
from triptych_local.running.processes import Program, ServiceProcess
from triptych_local.running.programs import Addresses, split_programs
from triptych_local.running.settings import ModelChoice, Replicas

MAX_RUNNING = 16
"""Requests of a fleet that run at once."""


def answer_of(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """The object in JSON that a fresh process of a module prints."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment
    )
    return dict(json.loads(result.stdout))


class Conversation:
    """A process that answers lines on its standard input by lines on its standard output."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self._name, self._process = name, process
        self._requests, self._answers = process.stdin, process.stdout

    async def line(self) -> str:
        """The next line that it prints. Raises SystemExit if it ended."""
        if line := await self._answers.readline():
            return line.decode().rstrip("\n")
        raise SystemExit(f"{self._name} ended with status {await self._process.wait()}")

    async def answer(self, request: str) -> str:
        """The next line that it prints, having read the request."""
        self._requests.write(request.encode() + b"\n")
        return await self.line()


@asynccontextmanager
async def conversation(
    module: str, *arguments: str, python: str | Path = sys.executable, **environment: str
) -> AsyncIterator[Conversation]:
    """A process of a module, which is asked to stop on the way out."""
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    try:
        yield Conversation(module, process)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


@asynccontextmanager
async def serving(programs: Sequence[Program]) -> AsyncIterator[dict[str, float]]:
    """The programs as processes, all of which serve, with the seconds that each took until then, by name."""
    services = [ServiceProcess(program, lambda _line: None) for program in programs]
    seconds: dict[str, float] = {}

    async def start(service: ServiceProcess) -> None:
        started = time.perf_counter()
        await service.start()
        seconds[service.program.name] = time.perf_counter() - started

    try:
        await asyncio.gather(*map(start, services))
        yield seconds
    finally:
        for service in reversed(services):
            await service.stop()


@dataclass(frozen=True)
class Fleet:
    """Services of a model over Unix sockets: where, by which programs, how long these took to start."""

    addresses: Addresses
    programs: Sequence[Program]
    start_seconds: dict[str, float]


@asynccontextmanager
async def fleet(choice: ModelChoice, denoisers: int = 1) -> AsyncIterator[Fleet]:
    """The services as `triptych up` starts them, with so many denoisers."""
    with temporary_folder() as folder:
        addresses = Addresses.in_folder(folder, Replicas(denoisers=denoisers))
        *stages, coordinator = split_programs(addresses, choice)
        limited = replace(coordinator, options=[*coordinator.options, "--max-running", str(MAX_RUNNING)])
        async with serving([*stages, limited]) as seconds:
            yield Fleet(addresses, [*stages, limited], seconds)
