"""A real local fleet under load, while something is done to it again and again.

    python -m tests.faults.harness --fault kill --faults 200 --requests 10000 --steps 2 --size 64

Options that it does not know are those of `triptych up`, e.g. --reference-cache-bytes 0.
Every client asks for pictures that were made before in peace, one after the other, and compares them bit by
bit. A stage is hit again only when all its replicas serve, so that none is dead for longer than a restart
takes. Ends with 1 if a request failed, a picture was different, too few faults met requests in flight, or one
took more than two attempt deadlines longer than usual.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from tests.faults.broken_stage import MISTAKES
from tests.faults.fleet import REPLICAS, STAGES, Linked, all_serve, linked, processes
from tests.faults.load import Load, Outcome, Picture
from tests.local.conftest import START_SECONDS, Up, running_up
from triptych.serving.health import serves
from triptych_local.running.processes import until_serving

ATTEMPT_SECONDS = 10.0
"""Of coordinators whose connections or stages are harmed; the others have the default."""
DEFAULT_ATTEMPT_SECONDS = 120.0
IN_FLIGHT_SHARE = 0.8
"""Of the faults, so many must meet requests in flight: else the run says nothing."""


class Fault(Protocol):
    """Something that can be done to a fleet.

    address: of the coordinator that the load goes to.
    """

    address: str

    async def hit(self) -> str | None:
        """Does it once. What was done to whom; None if it cannot be done now."""
        ...


@dataclass
class Signals:
    """A signal to a process of a stage; with SIGSTOP, SIGCONT some seconds later."""

    up: Up
    chance: random.Random
    name: str
    stopped_seconds: float = 4.0
    address: str = field(init=False)

    def __post_init__(self) -> None:
        """Clients go to the fleet's own coordinator."""
        self.address = self.up.coordinator()

    async def hit(self) -> str | None:
        """As Fault."""
        whole = [stage for stage in STAGES if await all_serve(self.up, stage)]
        if not whole:
            return None
        stage = self.chance.choice(whole)
        victim = self.chance.choice(processes(self.up)[stage])
        victim.send_signal(getattr(signal, f"SIG{self.name}"))
        if self.name == "STOP":
            await asyncio.sleep(self.stopped_seconds)
            if victim.is_running():
                victim.send_signal(signal.SIGCONT)
        return f"SIG{self.name} of a {stage}"


@dataclass
class CoordinatorSignals:
    """A signal to the coordinator, once it serves."""

    up: Up
    name: str
    address: str = field(init=False)

    def __post_init__(self) -> None:
        """Its clients meet it."""
        self.address = self.up.coordinator()

    async def hit(self) -> str | None:
        """As Fault."""
        victims = processes(self.up)["coordinator"]
        if len(victims) != 1 or not await serves(self.address):
            return None
        victims[0].send_signal(getattr(signal, f"SIG{self.name}"))
        return f"SIG{self.name} of the coordinator"


@dataclass
class RollingRestart:
    """SIGTERM to each replica of some stages, one after the other, each when the one before serves again."""

    up: Up
    stages: Sequence[str] = STAGES
    address: str = field(init=False)

    def __post_init__(self) -> None:
        """Clients go to the fleet's own coordinator."""
        self.address = self.up.coordinator()

    async def hit(self) -> str | None:
        """As Fault: all of them once."""
        for stage in self.stages:
            for victim in processes(self.up)[stage]:
                victim.terminate()
                await _until_gone(victim)
                async with asyncio.timeout(START_SECONDS):
                    while not await all_serve(self.up, stage):
                        await asyncio.sleep(0.1)
        return f"rolling restart of every {', '.join(self.stages)}"


async def _until_gone(process: psutil.Process) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.02)


@dataclass
class Connections:
    """Harm to the connections between the coordinator and its stages, or between clients and it."""

    fleet: Linked
    chance: random.Random
    kinds: Sequence[str]
    of_clients: bool = False
    delay_seconds: float = 3.0
    address: str = field(init=False)

    def __post_init__(self) -> None:
        """Clients go through the proxy."""
        self.address = self.fleet.address

    async def hit(self) -> str | None:
        """As Fault."""
        if self.of_clients:
            link, proxies = "clients", [self.fleet.client_side]
        else:
            link = self.chance.choice(STAGES)
            proxies = self.fleet.proxies[link]
        if not all(proxy.connected for proxy in proxies):
            return None
        kind, proxy = self.chance.choice(self.kinds), self.chance.choice(proxies)
        match kind:
            case "reset":
                proxy.reset()
            case "silence":
                proxy.silence()
            case "delay":
                await proxy.delay(self.delay_seconds)
            case "cut" if not await proxy.cut(5.0):
                return None
        return f"{kind} of {'clients' if self.of_clients else f'a {link}'}"


@dataclass
class Mistakes:
    """The second replica of every stage spoils a call."""

    fleet: Linked
    chance: random.Random
    kinds: Sequence[str] = MISTAKES
    address: str = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is between clients and coordinator but a proxy that does nothing."""
        self.address = self.fleet.address

    async def hit(self) -> str | None:
        """As Fault."""
        stage, mistake = self.chance.choice(STAGES), self.chance.choice(self.kinds)
        if not await self.fleet.broken[stage].make(mistake, 5.0):
            return None
        return f"a {stage}: {mistake}"


Made = Callable[[Up, str | Path, random.Random], AbstractAsyncContextManager[Fault]]

LINKS = ("reset", "silence", "delay", "cut")


def _connections(of_clients: bool, kinds: Sequence[str] = LINKS) -> Made:
    @asynccontextmanager
    async def made(up: Up, model: str | Path, chance: random.Random) -> AsyncIterator[Fault]:
        async with linked(up, model, ATTEMPT_SECONDS, proxies=True) as fleet:
            yield Connections(fleet, chance, kinds, of_clients)

    return made


def _plain(make: Callable[[Up, random.Random], Fault]) -> Made:
    @asynccontextmanager
    async def made(up: Up, _model: str | Path, chance: random.Random) -> AsyncIterator[Fault]:
        yield make(up, chance)

    return made


@asynccontextmanager
async def _mistakes(up: Up, model: str | Path, chance: random.Random) -> AsyncIterator[Fault]:
    async with linked(up, model, ATTEMPT_SECONDS, broken=True) as fleet:
        yield Mistakes(fleet, chance)


FAULTS: dict[str, Made] = {
    "kill": _plain(lambda up, chance: Signals(up, chance, "KILL")),
    "term": _plain(lambda up, chance: Signals(up, chance, "TERM")),
    "stop": _plain(lambda up, chance: Signals(up, chance, "STOP")),
    "coordinator": _plain(lambda up, _: CoordinatorSignals(up, "KILL")),
    "coordinator-term": _plain(lambda up, _: CoordinatorSignals(up, "TERM")),
    "rolling": _plain(lambda up, _: RollingRestart(up)),
    "rolling-denoisers": _plain(lambda up, _: RollingRestart(up, ["denoiser"])),
    "connections": _connections(of_clients=False),
    "client-connections": _connections(of_clients=True),
    "quick-client-connections": _connections(of_clients=True, kinds=("reset", "delay", "cut")),
    "mistakes": _mistakes,
}
LOSES_WORK = ("coordinator", "coordinator-term")
"""Requests begin again: the next fault waits until each client had an answer after the one before."""
LINKED = ("connections", "client-connections", "quick-client-connections", "mistakes")


def attempt_seconds(kind: str) -> float:
    """How long a call may take in the fleet that a kind of fault is tried on."""
    return ATTEMPT_SECONDS if kind in LINKED else DEFAULT_ATTEMPT_SECONDS


@dataclass(frozen=True)
class Run:
    """How long, and under which load.

    every: seconds between two faults, on average.
    """

    faults: int
    requests: int = 0
    every: float = 1.7
    clients: int = 4
    picture: Picture = field(default_factory=Picture)
    seed: int = 0


async def measure(up: Up, model: str | Path, kind: str, run: Run) -> Outcome:
    """Does that to the fleet until there were so many faults and requests."""
    outcome, chance = Outcome(), random.Random(run.seed)
    await until_serving(up.coordinator())
    async with FAULTS[kind](up, model, chance) as fault:
        load = Load(fault.address, run.clients, run.picture, outcome)
        await load.learn(up.coordinator())
        task, requests = asyncio.create_task(load.run()), 0
        while not task.done() and (outcome.faults.total() < run.faults or outcome.requests < run.requests):
            await asyncio.sleep(chance.expovariate(1 / run.every))
            if kind in LOSES_WORK and outcome.requests < requests + run.clients:
                continue
            running = load.running
            done = await fault.hit()
            if done is not None:
                requests = outcome.requests
                outcome.faults[done] += 1
                outcome.faults_in_flight += running > 0
                _tell(outcome, done)
        load.stop()
        await task
    return outcome


def _tell(outcome: Outcome, done: str) -> None:
    print(
        f"{time.strftime('%H:%M:%S')} {outcome.faults.total()}: {done}; {outcome.requests} requests,"
        f" {outcome.failed.total()} failed, {outcome.different} different",
        file=sys.stderr,
        flush=True,
    )


def wrongs(outcome: Outcome, kind: str) -> list[str]:
    """What is not as it must be."""
    wrong = []
    if outcome.failed or outcome.different:
        wrong.append(f"{outcome.failed.total()} requests failed, {outcome.different} pictures are different")
    if outcome.faults_in_flight < IN_FLIGHT_SHARE * outcome.faults.total():
        wrong.append("too few faults met requests in flight: the run says nothing")
    if outcome.added_delay > 2 * attempt_seconds(kind):
        wrong.append(f"a request took {outcome.added_delay:.1f} s longer than usual")
    return wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", choices=FAULTS, default="kill", help="what is done")
    parser.add_argument("--faults", type=int, default=20, help="how often, at least")
    parser.add_argument("--requests", type=int, default=0, help="how many requests, at least")
    parser.add_argument("--every", type=float, default=1.7, help="seconds between two faults, on average")
    parser.add_argument("--clients", type=int, default=4, help="requests at once")
    parser.add_argument("--steps", type=int, default=6, help="of each picture")
    parser.add_argument("--size", type=int, default=128, help="of each picture, in pixels")
    parser.add_argument("--references", type=int, default=0, help="of each picture, if the model takes some")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of victims")
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    given, of_fleet = parser.parse_known_args(arguments)
    picture = Picture(given.steps, given.size, references=given.references)
    run = Run(given.faults, given.requests, given.every, given.clients, picture, given.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_up(Path(folder) / "run", *REPLICAS, "--model", given.model, *of_fleet) as up,
    ):
        outcome = asyncio.run(measure(up, given.model, given.fault, run))
    print(outcome.described())
    wrong = wrongs(outcome, given.fault)
    print("\n".join(wrong) or "as it must be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
