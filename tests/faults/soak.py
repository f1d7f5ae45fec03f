"""A fleet that serves for hours what clients ask for, mistakes and departures too: nothing of it may grow.

    python -m tests.faults.soak --minutes 60

After every round of load, when all is quiet, the memory, descriptors, threads and asyncio tasks of each
process are sampled. Printed is the slope of each over the second half of the run; ends with 1 if one is not
flat, or if a request ended otherwise than it should.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from tests.faults.fleet import REPLICAS, processes
from tests.local.conftest import Up, running_up
from triptych.client import AsyncClient
from triptych.errors import TriptychError
from triptych.v1.sampling_pb2 import DpmSolverMultistep, HeunSolver, Solver

CLIENTS = 4
SOLVERS = (Solver(dpmpp_2m=DpmSolverMultistep()), Solver(heun=HeunSolver()))
MOST_GROWTH = {"memory, MB": 16.0, "descriptors": 3.0, "threads": 3.0, "tasks": 3.0}
"""Over the second half of a run; of memory also a twentieth of what there is."""
PROMPTS = [f"{count} {thing}" for count in ("a", "two", "three", "four") for thing in
           ("zebra", "fire truck", "cactus", "penguin", "teapot", "lemon", "book", "house")]  # fmt: skip
WARM = 0.5
"""The part of a run that does not count: allocators and caches fill."""


@dataclass
class Served:
    """How the requests of each kind ended."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


class Clients:
    """Ask for one thing after the other, of every kind."""

    def __init__(self, address: str, size: int, served: Served) -> None:
        self._address, self._size, self._served = address, size, served
        self._picture = b""

    async def round(self, seconds: float, seed: int) -> None:
        """All clients for so many seconds, each with a connection of its own, until their requests ended."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(until, random.Random(seed * CLIENTS + number)))

    async def _client(self, until: float, chance: random.Random) -> None:
        async with AsyncClient(self._address) as client:
            while time.monotonic() < until:
                kind = chance.choice(
                    [self._plain, self._many, self._edit, self._mistake, self._leave, self._late]
                )
                name = kind.__name__.strip("_")
                try:
                    await kind(client, chance)
                except TriptychError as error:
                    self._served.wrong[f"{name}: {error.code.name}: {error.message[:120]}"] += 1
                else:
                    self._served.ended[name] += 1

    def _asked(self, chance: random.Random, **more: Any) -> dict[str, Any]:
        height, width = chance.choice([(1, 1), (1, 2), (2, 1)])
        return {
            "prompt": chance.choice(PROMPTS),
            "seed": chance.getrandbits(32),
            "num_inference_steps": chance.choice([2, 4, 8]),
            "height": self._size * height,
            "width": self._size * width,
            **more,
        }

    async def _plain(self, client: AsyncClient, chance: random.Random) -> None:
        made = await client.generate(**self._asked(chance, preview_every=1, return_latents=True))
        self._picture = made.images[0].png

    async def _many(self, client: AsyncClient, chance: random.Random) -> None:
        solver = chance.choice(SOLVERS)
        await client.generate(**self._asked(chance, num_images_per_prompt=3, solver=solver, guidance_scale=1))

    async def _edit(self, client: AsyncClient, chance: random.Random) -> None:
        if self._picture:
            asked = self._asked(chance, image=self._picture, strength=0.5)
            await client.generate(**{name: asked[name] for name in asked if name not in ("height", "width")})

    async def _mistake(self, client: AsyncClient, chance: random.Random) -> None:
        mistakes: list[dict[str, Any]] = [{"height": 7}, {"image": b"no picture"}, {"loras": {"none": 1.0}}]
        await _ends_with(
            client.generate(**self._asked(chance) | chance.choice(mistakes)),
            *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND),
        )

    async def _late(self, client: AsyncClient, chance: random.Random) -> None:
        asked = self._asked(chance, num_inference_steps=200, timeout=chance.uniform(0.01, 0.3))
        await _ends_with(client.generate(**asked), grpc.StatusCode.DEADLINE_EXCEEDED)

    async def _leave(self, client: AsyncClient, chance: random.Random) -> None:
        async with aclosing(client.stream(**self._asked(chance))) as events:
            async for event in events:
                if event.step_completed.step == 2:
                    return


async def _ends_with(call: Any, *codes: grpc.StatusCode) -> None:
    """Raises what a call ends with that should end with one of these codes."""
    try:
        await call
    except TriptychError as error:
        if error.code not in codes:
            raise
    else:
        raise TriptychError(grpc.StatusCode.OK, f"it should have ended with {codes}")


@contextmanager
def telling_tasks(folder: Path) -> Iterator[None]:
    """Processes that are started in this block tell how many tasks they have, see probe/sitecustomize.py."""
    path = f"{Path(__file__).parent / 'probe'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    added = {"PYTHONPATH": path, "TASKS_FOLDER": str(folder)}
    before = {name: os.environ.get(name) for name in added}
    os.environ |= added
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


async def tasks(process: psutil.Process, folder: Path) -> int:
    """How many asyncio tasks a process has."""
    file = folder / str(process.pid)
    file.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    async with asyncio.timeout(60):
        while not file.exists():
            await asyncio.sleep(0.02)
    return int(file.read_text())


Samples = Mapping[str, Mapping[str, list[tuple[float, float]]]]
"""By process and what was measured: when, in seconds, and how much."""


def slopes(samples: Samples) -> list[tuple[str, str, float, float, float]]:
    """Of each process and measure: the middle value, the slope an hour, the growth, after the warm-up."""
    found = []
    for name, measures in samples.items():
        for measure, points in measures.items():
            end = points[-1][0]
            later = [point for point in points if point[0] >= WARM * end]
            times, values = zip(*later, strict=True)
            slope = statistics.linear_regression(times, values).slope if len(later) > 1 else 0.0
            found.append((name, measure, statistics.median(values), slope * 3600, slope * (end - times[0])))
    return found


def not_flat(samples: Samples) -> list[str]:
    """What grew over the run by more than it may."""
    return [
        f"{name}: {measure} grew by {growth:.1f}"
        for name, measure, middle, _, growth in slopes(samples)
        if growth > max(MOST_GROWTH[measure], middle / 20 if measure.startswith("memory") else 0)
    ]


async def soak(
    up: Up, tasks_folder: Path, seconds: float, round_seconds: float, size: int
) -> tuple[Samples, Served]:
    """Rounds of load for so long, and a sample after each."""
    samples: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    served = Served()
    clients = Clients(up.coordinator(), size, served)
    members = {
        f"{name} {number}": process
        for name, found in processes(up).items()
        for number, process in enumerate(found, 1)
    }
    began, number = time.monotonic(), 0
    while (at := time.monotonic() - began) < seconds:
        await clients.round(min(round_seconds, seconds - at), number)
        number += 1
        await asyncio.sleep(2)  # what clients left is stopped
        for name, process in members.items():
            for measure, value in {
                "memory, MB": process.memory_info().rss / 2**20,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
                "tasks": await tasks(process, tasks_folder),
            }.items():
                samples[name][measure].append((time.monotonic() - began, value))
        memory = sum(measures["memory, MB"][-1][1] for measures in samples.values())
        print(
            f"{at / 60:.1f} min: {served.ended.total()} requests, {served.wrong.total()} wrong,"
            f" {memory:.0f} MB in all",
            file=sys.stderr,
            flush=True,
        )
    return samples, served


def table(samples: Samples) -> str:
    """What was measured after the warm-up, a line for each process and measure."""
    lines = [f"{'process':18}{'measure':14}{'middle':>10}{'an hour':>10}{'growth':>10}"]
    lines += [
        f"{name:18}{measure:14}{middle:10.1f}{slope:+10.1f}{growth:+10.1f}"
        for name, measure, middle, slope, growth in slopes(samples)
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="of the whole run")
    parser.add_argument("--round", type=float, default=30, help="seconds of load between two samples")
    parser.add_argument("--size", type=int, default=64, help="of pictures, in pixels; some are twice as long")
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tasks").mkdir()
        with (
            telling_tasks(folder / "tasks"),
            running_up(folder / "run", *REPLICAS, "--model", given.model) as up,
        ):
            samples, served = asyncio.run(
                soak(up, folder / "tasks", given.minutes * 60, given.round, given.size)
            )
    print(table(samples))
    print(", ".join(f"{count} {kind}" for kind, count in sorted(served.ended.items())))
    wrong = not_flat(samples) + [f"{count} x {what}" for what, count in served.wrong.most_common(10)]
    print("\n".join(wrong) or "flat")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
