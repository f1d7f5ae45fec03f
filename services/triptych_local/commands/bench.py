"""Loads on a fleet, one after the other, and a table of what became of their requests."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triptych.client import AsyncClient, Generation
from triptych_local.commands.load import (
    PERCENTILES,
    STAGES,
    Closed,
    Load,
    Measurement,
    Mix,
    Outcome,
    Period,
    Poisson,
    Report,
    Work,
    measure,
)
from triptych_local.commands.settings import BenchSettings
from triptych_local.output import note, say, write_file

PROMPTS = (
    "a zebra to the left of a fire truck",
    "a penguin above a rocket on a light blue background",
    "two teapots",
    "a lemon",
)
PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Loads:
    """Which loads to try: closed ones, open ones, and open ones at shares of what the last closed one did."""

    concurrencies: Sequence[int]
    rates: Sequence[float]
    shares: Sequence[float]


@dataclass(frozen=True)
class Bench:
    """What all loads have in common. tls: keywords of AsyncClient."""

    mix: Mix
    period: Period
    seed: int
    timeout: float
    tls: Mapping[str, Any] = field(default_factory=dict)

    async def run(self, target: str, loads: Loads) -> list[Measurement]:
        """Tries the loads on the coordinator at an address. Raises TriptychError if nobody answers there."""
        async with AsyncClient(target, **self.tls, retry_seconds=0) as client:
            model = await client.model()
            note(f"{model.name} at {target}")
            closed = [await self._measure(client, Closed(many)) for many in loads.concurrencies]
            rates = [*loads.rates]
            if loads.shares:
                rates += [share * closed[-1].throughput for share in loads.shares]
            return closed + [await self._measure(client, Poisson(rate)) for rate in rates if rate > 0]

    async def _measure(self, client: AsyncClient, load: Load) -> Measurement:
        async def generate(work: Work) -> Generation:
            return await client.generate(timeout=self.timeout, **work.options())

        with progress_line(load, self.period) as show:
            return await measure(generate, self.mix, load, self.period, self.seed, show)


@contextmanager
def progress_line(load: Load, period: Period) -> Iterator[Report]:
    """How many requests have ended: one line that changes on a terminal, a line now and then elsewhere."""
    note(f"{load}: {period.end:g} s")
    terminal, said = sys.stderr.isatty(), float("-inf")

    def show(seconds: float, outcomes: Sequence[Outcome]) -> None:
        nonlocal said
        if not terminal and time.monotonic() - said < PLAIN_SECONDS:
            return
        said = time.monotonic()
        failed = sum(outcome.code is not None for outcome in outcomes)
        text = f"{seconds:6.1f} s  {len(outcomes) - failed} done, {failed} failed"
        note(f"\r{text}" if terminal else text, end="" if terminal else "\n")

    try:
        yield show
    finally:
        if terminal:
            note("")


def table(measurements: Sequence[Measurement]) -> str:
    """The measurements for people, one a line; errors below."""
    latencies = "".join(f"{f'p{p}, s':>9}" for p in PERCENTILES)
    stages = "".join(f"{f'{name}, ms':>13}" for name in STAGES)
    lines = [f"{'load':18}{'requests':>9}{'failed':>8}{'per s':>9}{latencies}{stages}"]
    for one in measurements:
        failed = len(one.counted) - len(one.succeeded)
        seconds = "".join(f"{one.latency(p):9.2f}" for p in PERCENTILES)
        milliseconds = "".join(f"{one.stage(name):13.0f}" for name in STAGES)
        lines.append(
            f"{one.load:18}{len(one.counted):9}{failed:8}{one.throughput:9.3f}{seconds}{milliseconds}"
        )
    for one in measurements:
        lines += [f"{one.load}: {count} x {code}" for code, count in sorted(one.errors.items())]
    return "\n".join(lines)


async def bench(asked: BenchSettings) -> None:
    """Measures, prints the table on standard output and writes JSON. Raises TriptychError or OSError."""
    loads = Loads(asked.concurrency or ([] if asked.rate else [1]), asked.rate, asked.share)
    mix = Mix(asked.prompt or PROMPTS, asked.size or [None], asked.num_inference_steps or [None])
    load = Bench(mix, Period(asked.warm_up, asked.duration), asked.seed, asked.timeout, asked.tls.of_client())
    measurements = await load.run(asked.target, loads)
    say(table(measurements))
    if asked.json_file is not None:
        written = json.dumps([one.summary() for one in measurements], indent=1) + "\n"
        write_file(asked.json_file, written.encode())
