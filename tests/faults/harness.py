"""A real local fleet under load, while its processes are killed, ended or stopped for a while.

    python -m tests.faults.harness --faults 200 --signal KILL

Every client asks for pictures that were made before in peace, one after the other, and compares them bit by
bit. A stage is hit again only when all its replicas serve, so that none is dead for longer than a restart
takes.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.local.conftest import Up, running_up
from triptych.client import AsyncClient
from triptych.errors import TriptychError
from triptych_local.running.processes import serves

STAGES = ("text_encoder", "denoiser", "vae_codec")
PROMPTS = ("a zebra", "a fire truck", "a cactus above a rocket", "a penguin")
STEPS = 6
REPLICAS = ("--text-encoders", "2", "--denoisers", "2", "--vae-codecs", "2")


@dataclass
class Outcome:
    """What became of the requests, and how many faults met some that ran."""

    answered: int = 0
    different: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    faults_in_flight: int = 0

    def described(self) -> str:
        """In a few lines."""
        times = sorted(self.seconds)
        at = {q: times[min(len(times) - 1, len(times) * q // 100)] for q in (50, 99)}
        hits = ", ".join(f"{count} {what}" for what, count in sorted(self.faults.items()))
        lines = [
            f"{self.answered} pictures the same, {self.different} different, {self.failed.total()} failed;"
            f" p50 {at[50]:.2f} s, p99 {at[99]:.2f} s",
            f"{self.faults.total()} faults, {self.faults_in_flight} of them with requests in flight: {hits}",
            *(f"  {count} x {message}" for message, count in self.failed.most_common(10)),
        ]
        return "\n".join(lines)


class Load:
    """Clients that ask for pictures one after the other."""

    def __init__(self, address: str, clients: int, outcome: Outcome) -> None:
        self._address, self._clients, self._outcome = address, clients, outcome
        self._expected: dict[tuple[str, int], bytes] = {}
        self._running = 0
        self._stopping = False

    @property
    def running(self) -> int:
        """Requests that have no answer yet."""
        return self._running

    async def learn(self) -> None:
        """Makes every picture in peace."""
        async with AsyncClient(self._address) as client:
            for key in self._keys():
                self._expected[key] = await self._made(client, key)

    async def run(self) -> None:
        """Until it is stopped."""
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    def stop(self) -> None:
        """Ends the clients with their requests."""
        self._stopping = True

    async def _client(self, number: int) -> None:
        keys = self._keys()
        random.Random(number).shuffle(keys)
        async with AsyncClient(self._address) as client:
            while not self._stopping:
                key = keys[number % len(keys)]
                number += 1
                await self._ask(client, key)

    async def _ask(self, client: AsyncClient, key: tuple[str, int]) -> None:
        began = time.monotonic()
        self._running += 1
        try:
            same = await self._made(client, key) == self._expected[key]
        except TriptychError as error:
            self._outcome.failed[f"{error.code.name}: {error.message[:160]}"] += 1
            await asyncio.sleep(0.05)
        else:
            self._outcome.answered += same
            self._outcome.different += not same
        finally:
            self._running -= 1
            self._outcome.seconds.append(time.monotonic() - began)

    async def _made(self, client: AsyncClient, key: tuple[str, int]) -> bytes:
        prompt, seed = key
        generation = await client.generate(prompt, seed=seed, num_inference_steps=STEPS, timeout=120)
        return generation.images[0].png

    def _keys(self) -> list[tuple[str, int]]:
        return [(prompt, seed) for prompt in PROMPTS for seed in range(3)]


def replicas(up: Up) -> dict[str, list[psutil.Process]]:
    """The processes of every stage."""
    found: dict[str, list[psutil.Process]] = {stage: [] for stage in STAGES}
    for child in psutil.Process(up.process.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        for stage in STAGES:
            if f"triptych_{stage}" in words:
                found[stage].append(child)
    return found


async def all_serve(up: Up, stage: str) -> bool:
    """Whether every replica of a stage serves."""
    sockets = sorted(up.folder().glob(f"{stage.replace('_', '-')}*.sock"))
    return len(replicas(up)[stage]) == 2 == sum([await serves(f"unix:{path}") for path in sockets])


async def hit(up: Up, chance: random.Random, kind: str, stopped_seconds: float) -> str | None:
    """Hits a process of a stage whose replicas all serve; which stage it was, None if there is none."""
    whole = [stage for stage in STAGES if await all_serve(up, stage)]
    if not whole:
        return None
    stage = chance.choice(whole)
    victim = chance.choice(replicas(up)[stage])
    victim.send_signal(getattr(signal, f"SIG{kind}"))
    if kind == "STOP":
        await asyncio.sleep(stopped_seconds)
        if victim.is_running():
            victim.send_signal(signal.SIGCONT)
    return stage


async def measure(
    up: Up,
    faults: int,
    kind: str,
    every: float = 1.7,
    clients: int = 4,
    stopped_seconds: float = 4.0,
    seed: int = 0,
) -> Outcome:
    """Hits so many processes, one every so many seconds on average, under the load of some clients."""
    outcome, chance = Outcome(), random.Random(seed)
    load = Load(up.coordinator(), clients, outcome)
    await load.learn()
    task = asyncio.create_task(load.run())
    while outcome.faults.total() < faults and not task.done():
        await asyncio.sleep(chance.expovariate(1 / every))
        running = load.running
        stage = await hit(up, chance, kind, stopped_seconds)
        if stage is not None:
            outcome.faults[f"SIG{kind} of a {stage}"] += 1
            outcome.faults_in_flight += running > 0
            print(
                f"{outcome.faults.total()} of {faults}: {stage}, {outcome.failed.total()} failed",
                file=sys.stderr,
            )
    load.stop()
    await task
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=20, help="how many processes are hit")
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "STOP"), default="KILL", help="with which signal"
    )
    parser.add_argument("--every", type=float, default=1.7, help="seconds between them, on average")
    parser.add_argument("--clients", type=int, default=4, help="requests at once")
    parser.add_argument("--stopped", type=float, default=4.0, help="seconds until SIGCONT, with STOP")
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_up(Path(folder) / "run", *REPLICAS, "--model", given.model) as up,
    ):
        outcome = asyncio.run(
            measure(up, given.faults, given.signal, given.every, given.clients, given.stopped)
        )
    print(outcome.described())
    sys.exit(bool(outcome.different or outcome.failed))


if __name__ == "__main__":
    main()
