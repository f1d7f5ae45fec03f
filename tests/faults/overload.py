"""Ten times as many requests as a fleet can answer, from one client and from many: who gets what.

    python -m tests.faults.overload --seconds 30

Measured are, of a real local fleet: the most pictures a second that it makes (its capacity); what it still
makes when ten times that is asked for; how long a refusal takes; whether RetryInfo is true, as the told wait
over the time until all requests of that client that waited had begun; what a polite client gets that asks for
one picture after the other; and the coordinator's memory. Ends with 1 if something is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from tests.faults.fleet import processes
from tests.faults.load import PROMPTS, Picture
from tests.local.conftest import Up, running_up
from triptych.client import AsyncClient
from triptych.errors import TriptychError, retry_after_seconds
from triptych.serving.channels import channel_options
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

TIMES = 10
MANY = 40
CONCURRENCIES = (1, 2, 4, 8, 16)
REFUSAL_SECONDS = 0.05
GOODPUT = 0.9
MAX_GROWTH_BYTES = 256 << 20
RETRY_INFO = (0.5, 2.0)
"""The told wait may be so many times the needed one, in the median."""


@dataclass
class Heard:
    """What one client heard, in seconds of the monotonic clock.

    began: when each request began, by when it was sent; None while it has not.
    refused: when, how long that took, and the told wait.
    """

    done: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    began: dict[float, float | None] = field(default_factory=dict)
    refused: list[tuple[float, float, float]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def ratios(self) -> list[float]:
        """The told wait over the needed one, of refusals at which requests of this client waited.

        Only of those after which all of these had begun before they were given up.
        """
        found = []
        for at, _, told in self.refused:
            waited = [
                began for sent, began in self.began.items() if sent < at and (began is None or began > at)
            ]
            begun = [began for began in waited if began is not None]
            if begun and len(begun) == len(waited):
                found.append(told / (max(begun) - at))
        return found


class Client:
    """A client with a connection of its own: channels of one process would share one."""

    def __init__(self, address: str, picture: Picture, seed: int) -> None:
        options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        stub: Any = ImageGenerationServiceStub(self._channel)
        self._client = AsyncClient.from_stub(stub, retry_seconds=0)
        self._picture, self._chance = picture, random.Random(seed)
        self.heard = Heard()
        self.stopping = False

    async def close(self) -> None:
        """Ends its connection."""
        await self._channel.close()

    async def ask(self) -> None:
        """One request."""
        sent, heard = time.monotonic(), self.heard
        heard.began[sent] = None
        try:
            async for event in self._client.stream(
                self._chance.choice(PROMPTS),
                seed=self._chance.getrandbits(32),
                num_inference_steps=self._picture.steps,
                height=self._picture.size,
                width=self._picture.size,
            ):
                if event.HasField("accepted"):
                    heard.began[sent] = time.monotonic()
        except TriptychError as error:
            del heard.began[sent]
            now, told = time.monotonic(), retry_after_seconds(error)
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and told is not None:
                heard.refused.append((now, now - sent, told))
            else:
                heard.failed[f"{error.code.name}: {error.message[:160]}"] += 1
        else:
            heard.done.append(time.monotonic())
            heard.seconds.append(heard.done[-1] - sent)

    async def flood(self, rate: float) -> None:
        """Requests at random times, so many a second, until it is told to stop."""
        async with asyncio.TaskGroup() as group:
            while not self.stopping:
                await asyncio.sleep(self._chance.expovariate(rate))
                group.create_task(self.ask())

    async def one_after_the_other(self) -> None:
        """Until it is told to stop. After a refusal it waits as long as it is told."""
        while not self.stopping:
            refusals = len(self.heard.refused)
            await self.ask()
            if len(self.heard.refused) > refusals:
                await asyncio.sleep(self.heard.refused[-1][2])


@dataclass(frozen=True)
class Measured:
    """What was heard in a phase, in its measured seconds.

    goodput: pictures a second of all clients; polite: of the polite one alone, which was refused so often.
    """

    name: str
    goodput: float
    polite: float
    polite_refusals: int
    offered: float
    refusals: Sequence[float]
    ratios: Sequence[float]
    failed: Counter[str]
    bytes: int

    def line(self, capacity: float) -> str:
        """One of the table."""
        refusal = f"{percentile(self.refusals, 50) * 1000:6.1f}{percentile(self.refusals, 99) * 1000:7.1f}"
        ratio = "/".join(f"{percentile(self.ratios, q):.2f}" for q in (10, 50, 90)) if self.ratios else "-"
        share = 100 * self.goodput / capacity if capacity else 100
        return (
            f"{self.name:34}{self.offered:8.2f}{self.goodput:8.2f}{share:6.0f} %{self.polite:8.2f}"
            f"{len(self.refusals):8}{refusal if self.refusals else '-':>13}{ratio:>16}"
            f"{self.bytes >> 20:6} MB{self.failed.total():7}"
        )


HEADER = (
    f"{'load':34}{'offered':>8}{'made':>8}{'of most':>8}{'polite':>8}{'refused':>8}{'p50, p99 ms':>13}"
    f"{'told/needed':>16}{'memory':>9}{'failed':>7}"
)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many of a hundred do not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


@dataclass(frozen=True)
class Overload:
    """A fleet at an address, and the coordinator's process there."""

    address: str
    coordinator: psutil.Process
    picture: Picture
    seconds: float
    drain_seconds: float = 60.0

    async def phase(
        self,
        name: str,
        clients: int,
        work: Callable[[Client], Any],
        polite: bool = False,
        offered: float = 0.0,
    ) -> Measured:
        """So many clients do the work for a while, of which the first part does not count."""
        async with AsyncExitStack() as stack:
            members = [
                await stack.enter_async_context(_client(self.address, self.picture, seed))
                for seed in range(clients + polite)
            ]
            first, last = members[:clients], members[clients:]
            tasks = [asyncio.create_task(work(one)) for one in first]
            tasks += [asyncio.create_task(one.one_after_the_other()) for one in last]
            await asyncio.sleep(self.seconds / 4)
            began = time.monotonic()
            most = 0
            while (now := time.monotonic()) - began < self.seconds:
                most = max(most, self.coordinator.memory_info().rss)
                await asyncio.sleep(0.2)
            for member in members:
                member.stopping = True
            await asyncio.wait(tasks, timeout=self.drain_seconds)  # what was admitted ends
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        heard = [one.heard for one in members]
        length = now - began

        def per_second(some: Sequence[Heard]) -> float:
            return sum(began <= at <= now for one in some for at in one.done) / length

        failed: Counter[str] = sum((one.failed for one in heard), Counter())
        return Measured(
            name,
            per_second(heard),
            per_second([one.heard for one in last]),
            sum(len(one.heard.refused) for one in last),
            offered,
            [took for one in heard for at, took, _ in one.refused if began <= at <= now],
            [ratio for one in heard for ratio in one.ratios()],
            failed,
            most,
        )


@asynccontextmanager
async def _client(address: str, picture: Picture, seed: int) -> Any:
    client = Client(address, picture, seed)
    try:
        yield client
    finally:
        await client.close()


async def measure(
    up: Up,
    address: str,
    picture: Picture,
    seconds: float,
    many: int = MANY,
    concurrencies: Sequence[int] = CONCURRENCIES,
) -> list[Measured]:
    """The capacity first, then ten times that: by one client, beside a polite one, by many."""
    load = Overload(address, processes(up)["coordinator"][0], picture, seconds)
    phases: list[Measured] = []

    async def add(*arguments: Any, **options: Any) -> None:
        phases.append(await load.phase(*arguments, **options))
        print(phases[-1].line(_capacity(phases)), file=sys.stderr, flush=True)

    print(HEADER, file=sys.stderr)
    for at_once in concurrencies:

        async def together(client: Client, at_once: int = at_once) -> None:
            await asyncio.gather(*(client.one_after_the_other() for _ in range(at_once)))

        await add(f"{at_once} at once", 1, together)
    rate = TIMES * _capacity(phases)
    await add("one client", 1, lambda one: one.flood(rate), offered=rate)
    await add("one client, and a polite one", 1, lambda one: one.flood(rate), polite=True, offered=rate)
    if not many:
        return phases
    each = rate / many
    await add(f"{many} clients", many, lambda one: one.flood(each), offered=rate)
    name = f"{many} clients, and a polite one"
    await add(name, many, lambda one: one.flood(each), polite=True, offered=rate)
    return phases


def _capacity(phases: Sequence[Measured]) -> float:
    return max((one.goodput for one in phases if not one.offered), default=0.0)


def wrongs(phases: Sequence[Measured]) -> list[str]:
    """What is not as it must be."""
    capacity, found = _capacity(phases), []
    for one in phases:
        if one.failed:
            found.append(f"{one.name}: {one.failed.most_common(3)}")
        if not one.offered:
            continue
        if one.goodput < GOODPUT * capacity:
            found.append(f"{one.name}: {one.goodput:.2f} pictures a second of {capacity:.2f}")
        if percentile(one.refusals, 99) > REFUSAL_SECONDS:
            found.append(f"{one.name}: refusals take {percentile(one.refusals, 99) * 1000:.0f} ms")
        if one.ratios and not RETRY_INFO[0] <= statistics.median(one.ratios) <= RETRY_INFO[1]:
            found.append(f"{one.name}: RetryInfo is {statistics.median(one.ratios):.2f} of what was needed")
        if one.bytes > phases[0].bytes + MAX_GROWTH_BYTES:
            found.append(f"{one.name}: the coordinator has {one.bytes >> 20} MB")
    alone = next((one for one in phases if one.name == "one client, and a polite one"), None)
    if alone is not None and alone.polite < 0.5 * min(phases[0].goodput, capacity / 2):
        found.append(f"the polite client gets {alone.polite:.2f} pictures a second")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="of each load that are measured")
    parser.add_argument("--steps", type=int, default=12, help="of each picture")
    parser.add_argument("--size", type=int, default=128, help="of each picture, in pixels")
    parser.add_argument("--base-port", type=int, default=50150, help="of the fleet")
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_up(
            Path(folder) / "run", "--tcp", "--base-port", str(given.base_port), "--model", given.model
        ) as up,
    ):
        address = f"127.0.0.1:{given.base_port}"
        phases = asyncio.run(measure(up, address, Picture(given.steps, given.size), given.seconds))
    print(HEADER)
    print("\n".join(one.line(_capacity(phases)) for one in phases))
    wrong = wrongs(phases)
    print("\n".join(wrong) or "as it must be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
