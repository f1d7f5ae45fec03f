"""Coordinators behind Envoy are restarted one after the other while clients without retries go on.

    python -m tests.deploy.rolling_restart --restarts 20 --how stop
    python -m tests.deploy.rolling_restart --restarts 20 --how kill

Each client asks for one picture after the other. A request that fails before its Accepted had not begun:
with `stop` (SIGTERM) there must be none, with `kill` (SIGKILL) those alone that a coordinator had and had not
accepted yet. One that fails is asked again with its seed, as clients do, and must give the picture that it
gives in peace. Ends with 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.door import Coordinator, Door, opened
from tests.tiny_checkpoint import write_tiny_checkpoint
from triptych.client import AsyncClient
from triptych.errors import TriptychError

PROMPT, SEEDS = "a zebra", 16


@dataclass
class Outcome:
    """What became of the requests."""

    pictures: int = 0
    different: int = 0
    not_begun: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    asked_again: int = 0


@dataclass
class Load:
    """Clients at the door."""

    door: Door
    steps: int
    outcome: Outcome = field(default_factory=Outcome)
    stopping: bool = False
    _expected: dict[int, bytes] = field(default_factory=dict)

    async def learn(self) -> None:
        """Makes every picture in peace."""
        async with self.door.async_client() as client:
            for seed in range(SEEDS):
                made = await client.generate(PROMPT, seed=seed, num_inference_steps=self.steps)
                self._expected[seed] = made.images[0].png

    async def go_on(self, number: int) -> None:
        """One client."""
        async with self.door.async_client(retry_seconds=0) as once, self.door.async_client() as retrying:
            for seed in itertools.cycle(range(number % SEEDS, SEEDS)):
                if self.stopping:
                    return
                await self._ask(once, retrying, seed)

    async def _ask(self, once: AsyncClient, retrying: AsyncClient, seed: int) -> None:
        made, begun = None, False
        try:
            async for event in once.stream(PROMPT, seed=seed, num_inference_steps=self.steps):
                begun = True
                made = event.image.png if event.HasField("image") else made
        except TriptychError as error:
            said = f"{error.code.name}: {error.message[:200]}"
            (self.outcome.cut if begun else self.outcome.not_begun)[said] += 1
            again = await retrying.generate(PROMPT, seed=seed, num_inference_steps=self.steps)
            made = again.images[0].png
            self.outcome.asked_again += 1
        self.outcome.pictures += 1
        self.outcome.different += made != self._expected[seed]


async def restart(door: Door, coordinator: Coordinator, kill: bool) -> None:
    """Ends it and starts it again; returns when the door sends requests to it."""
    await asyncio.to_thread(coordinator.kill if kill else coordinator.stop)
    coordinator.start()
    await asyncio.to_thread(coordinator.until_serving)
    await asyncio.to_thread(door.until_all_healthy)


async def measure(door: Door, restarts: int, kill: bool, clients: int, steps: int) -> Outcome:
    """Restarts under load, each after some pictures more."""
    load = Load(door, steps)
    await load.learn()
    running = [asyncio.create_task(load.go_on(number)) for number in range(clients)]
    began = time.monotonic()
    for number in range(restarts):
        seen = load.outcome.pictures
        while load.outcome.pictures < seen + clients:
            await asyncio.sleep(0.01)
        await restart(door, door.coordinators[number % 2], kill)
    load.stopping = True
    await asyncio.gather(*running)
    print(f"{restarts} restarts in {time.monotonic() - began:.0f} s, {clients} clients, {steps} steps")
    return load.outcome


def main() -> None:
    """Prints what became of the requests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--how", choices=["stop", "kill"], default="stop")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    kill = given.how == "kill"
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        model = write_tiny_checkpoint(Path(folder) / "tiny")
        with opened(Path(folder), model) as door:
            outcome = asyncio.run(measure(door, given.restarts, kill, given.clients, given.steps))
    print(f"{outcome.pictures} pictures, {outcome.different} different, {outcome.asked_again} asked again")
    for title, counted in (("failed before they began", outcome.not_begun), ("cut", outcome.cut)):
        print(f"{counted.total()} {title}")
        for said, count in counted.most_common(5):
            print(f"  {count} x {said}")
    wrong = outcome.different or (not kill and outcome.not_begun.total())
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
