"""The services as processes on this machine: started together, watched, restarted, stopped together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from triptych.errors import StartError
from triptych.serving.channels import Tls, open_channel
from triptych.serving.health import has_page, health, serves
from triptych.serving.log_lines import error_in

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
LIVENESS_SECONDS = 2.0
"""How often a service is asked whether it is alive."""
HUNG_SECONDS = 20.0
"""One that does not say so for so long is killed."""
STOP_SECONDS = 35.0
WAITING_SECONDS = 30.0
"""How often it is said that a start is waited for."""
SILENT_SECONDS = 1800.0
"""One that neither serves nor says anything for so long is killed: a model is loaded or fetched in less."""

HTTP = "http://"

Say = Callable[[str], None]
Written = Callable[[str], str]
"""A line of what is said here, beside the lines of the services."""


@dataclass(frozen=True)
class Program:
    """A service to run as a process: its module, the address it listens on, its other options.

    An address that begins with http:// is of a service whose health is a page, the others speak gRPC.
    environment: what its environment has besides this process's.
    health_address: where it says without TLS whether it serves; None: where it listens.
    """

    name: str
    module: str
    address: str
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    health_address: str | None = None

    @property
    def asked_at(self) -> str:
        """Where it says whether it serves."""
        return self.health_address or self.address

    def command(self) -> list[str]:
        """The command line, run so that the process ends with this one."""
        run = [sys.executable, "-m", "triptych_local.running.supervised", self.module]
        # Nobody here has to be told of a stop beforehand, as a load balancer would.
        return [*run, "--listen", self.address.removeprefix(HTTP), "--drain-seconds", "0", *self.options]


class ServiceProcess:
    """One service's process, and the next one if it crashes."""

    def __init__(self, program: Program, say: Say, written: Written = str) -> None:
        self.program = program
        self._pass_on = say
        self._written = written
        self._said: deque[str] = deque(maxlen=40)
        self._heard = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it and returns when it serves. Raises StartError with what it said if it ends before."""
        process = await self._spawn()
        await self._until_serving(process)
        self._watcher = asyncio.create_task(self._watch(process))

    async def stop(self) -> None:
        """Asks it to stop, waits for that, and ends it if it takes too long."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    def kill(self) -> None:
        """Ends its process at once; another one is started then."""
        if self._process is not None:
            self._process.kill()

    def _say(self, words: str) -> None:
        self._pass_on(self._written(words))

    async def _spawn(self) -> asyncio.subprocess.Process:
        process = self._process = await asyncio.create_subprocess_exec(
            *self.program.command(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            umask=0o077,
            env={**_own_environment(), **self.program.environment},
            start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which stops them
        )
        self._heard = time.monotonic()
        self._reader = asyncio.create_task(self._pass_on_lines(process))
        return process

    async def _pass_on_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # longer than its buffer, which is empty now
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._heard = time.monotonic()
            self._said.append(text)
            self._pass_on(text)

    async def _until_serving(self, process: asyncio.subprocess.Process) -> None:
        """Returns when it serves. Raises StartError when it ends instead."""
        patience = asyncio.create_task(self._lose_patience(process))
        try:
            if await _ends_before(process, until_serving(self.program.asked_at)):
                raise StartError(f"the {self.program.name} did not start: {await self._last_words(process)}")
        finally:
            patience.cancel()

    async def _lose_patience(self, process: asyncio.subprocess.Process) -> None:
        """Says now and then that it is waited for, and kills it when it has said nothing for too long."""
        while (silent := time.monotonic() - self._heard) < SILENT_SECONDS:
            await asyncio.sleep(WAITING_SECONDS)
            self._say(f"waiting for the {self.program.name}, which does not serve yet")
        self._said.append(f"it neither served nor said anything for {silent:.0f} s")
        process.kill()

    async def _last_words(self, process: asyncio.subprocess.Process) -> str:
        """The last error it logged, without its date, or its last line, or how it ended."""
        if self._reader is not None:
            await self._reader
        errors = [error for line in self._said if (error := error_in(line)) is not None]
        return [_ending(process), *self._said, *errors][-1]

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Starts it again whenever it ends or hangs, after a pause that grows while it does not come up."""
        pause = FIRST_PAUSE
        while True:
            await self._until_ended(process)
            self._say(f"the {self.program.name} ended ({_ending(process)}); starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            process = await self._spawn()
            try:
                await self._until_serving(process)
            except StartError:  # its own lines said why; the loop tries again
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                self._say(f"the {self.program.name} serves again")

    async def _until_ended(self, process: asyncio.subprocess.Process) -> None:
        """Returns when it has ended; if it hangs, it is killed."""
        if not await _ends_before(process, _until_hung(self.program.asked_at)):
            self._say(f"the {self.program.name} has not answered for {HUNG_SECONDS:g} s: it is killed")
            process.kill()
            await process.wait()


def _own_environment() -> dict[str, str]:
    """This process's, without what says of one service how it listens."""
    told = ("TRIPTYCH_TLS_", "TRIPTYCH_HEALTH_LISTEN")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)}


async def _ends_before(process: asyncio.subprocess.Process, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the process ends before the work does; returns as soon as either has."""
    ended, done = asyncio.create_task(process.wait()), asyncio.create_task(work)
    try:
        await asyncio.wait({ended, done}, return_when=asyncio.FIRST_COMPLETED)
        return ended.done()
    finally:
        ended.cancel()
        done.cancel()


async def _until_hung(address: str) -> None:
    """Returns when the server at an address has not answered for HUNG_SECONDS."""
    answered = time.monotonic()
    if address.startswith(HTTP):
        while time.monotonic() - answered < HUNG_SECONDS:
            await asyncio.sleep(LIVENESS_SECONDS)
            if await has_page(address):
                answered = time.monotonic()
        return
    async with open_channel(address) as channel:
        while time.monotonic() - answered < HUNG_SECONDS:
            await asyncio.sleep(LIVENESS_SECONDS)
            if await _answers(channel):
                answered = time.monotonic()


async def _answers(channel: grpc.aio.Channel) -> bool:
    """Whether a server says anything about its health."""
    try:
        await health(channel)
    except grpc.aio.AioRpcError as error:
        return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    return True


def _ending(process: asyncio.subprocess.Process) -> str:
    """How a process ended: "SIGKILL", "exit status 1"."""
    status = process.returncode
    return signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"


@asynccontextmanager
async def running(
    programs: Sequence[Program], say: Say, written: Written = str
) -> AsyncIterator[list[ServiceProcess]]:
    """The programs as processes, all of which serve. On the way out the last is stopped first.

    Raises StartError when one does not start; the others are stopped then.
    """
    processes = [ServiceProcess(program, say, written) for program in programs]
    starts = [asyncio.create_task(process.start()) for process in processes]
    try:
        await asyncio.gather(*starts)
        yield processes
    finally:
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        *stages, coordinator = processes  # which is stopped first, so that it never misses a stage
        await coordinator.stop()
        await asyncio.gather(*(stage.stop() for stage in stages))


async def until_serving(address: str) -> None:
    """Returns when the server at the address says that it serves."""
    while not await serves(address):
        await asyncio.sleep(0.1)


async def connected(address: str, tls: Tls | None = None) -> None:
    """Returns when a server at the address takes connections."""
    async with open_channel(address, tls) as channel:
        await channel.channel_ready()
