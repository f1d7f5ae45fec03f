"""The load generator: requests that arrive at a rate, or so many at once, and what became of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from triptych.client import Generation
from triptych.errors import TriptychError

STAGES = ("encode", "denoise", "decode")
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Work:
    """One request. What is None is the server's default."""

    prompt: str
    seed: int
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None

    def options(self) -> dict[str, Any]:
        """As the keywords of AsyncClient.generate."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Mix:
    """What requests ask for: each draws a prompt, a size (width and height) and a number of steps."""

    prompts: Sequence[str]
    sizes: Sequence[tuple[int, int] | None] = (None,)
    steps: Sequence[int | None] = (None,)

    def works(self, seed: int) -> Iterator[Work]:
        """Endless requests, the same ones for the same seed. Every picture has a seed of its own."""
        draw = random.Random(seed)
        while True:
            width, height = draw.choice(self.sizes) or (None, None)
            yield Work(
                draw.choice(self.prompts), draw.getrandbits(32), width, height, draw.choice(self.steps)
            )


@dataclass(frozen=True)
class Outcome:
    """What became of a request. Times are seconds since the load began.

    arrived: when it was due, even if it was sent later.
    code: the error's gRPC code; None for success.
    stages: milliseconds of each of STAGES as Finished reports them, if it succeeded.
    """

    work: Work
    arrived: float
    ended: float
    code: str | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.arrived


@dataclass(frozen=True)
class Period:
    """Seconds of load that do not count, then seconds that do."""

    warm_up: float
    measured: float

    @property
    def end(self) -> float:
        """Seconds after which nothing new is sent."""
        return self.warm_up + self.measured


Generate = Callable[[Work], Awaitable[Generation]]
Report = Callable[[float, Sequence[Outcome]], object]
"""Hears of the seconds since the load began and all outcomes so far, after each outcome."""


Send = Callable[[float], Coroutine[Any, Any, None]]
"""Sends a request that is due at a second."""


@dataclass(frozen=True)
class Closed:
    """So many requests at once: as soon as one ends, the next is sent."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} at once"

    async def run(self, send: Send, end: float, seed: int) -> None:
        """Sends until second `end`."""
        del seed
        started = time.monotonic()

        async def one_after_the_other() -> None:
            while (now := time.monotonic() - started) < end:
                await send(now)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(one_after_the_other())


@dataclass(frozen=True)
class Poisson:
    """Requests that know nothing of each other, so many a second on average, however many are running."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:.3g}/s Poisson"

    def arrivals(self, end: float, seed: int) -> Iterator[float]:
        """The seconds at which requests are due, the same ones for the same seed."""
        draw = random.Random(seed)
        due = draw.expovariate(self.rate)
        while due < end:
            yield due
            due += draw.expovariate(self.rate)

    async def run(self, send: Send, end: float, seed: int) -> None:
        """Sends until second `end`."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for due in self.arrivals(end, seed):
                await asyncio.sleep(due - (time.monotonic() - started))
                group.create_task(send(due))


Load: TypeAlias = Closed | Poisson
"""When requests are sent."""


@dataclass(frozen=True)
class Measurement:
    """A load's outcomes, in the order in which they ended."""

    load: str
    period: Period
    outcomes: Sequence[Outcome]

    @property
    def counted(self) -> list[Outcome]:
        """Those that arrived in the measured period."""
        return [outcome for outcome in self.outcomes if outcome.arrived >= self.period.warm_up]

    @property
    def succeeded(self) -> list[Outcome]:
        """Those of `counted` that gave pictures."""
        return [outcome for outcome in self.counted if outcome.code is None]

    @property
    def throughput(self) -> float:
        """Successes a second in the measured period; one that began before or ended after it counts in part.

        Whole requests would be too coarse: those that share passes tend to end together.
        """
        first, last = self.period.warm_up, self.period.end
        inside = sum(
            max(0.0, min(o.ended, last) - max(o.arrived, first)) / max(o.seconds, 1e-9)
            for o in self.outcomes
            if o.code is None
        )
        return inside / self.period.measured

    def latency(self, percentile: float) -> float:
        """Seconds within which so many per cent of the successes were done; NaN without any."""
        seconds = [outcome.seconds for outcome in self.succeeded]
        return float(np.percentile(seconds, percentile)) if seconds else float("nan")

    def stage(self, name: str) -> float:
        """Median milliseconds of a stage; NaN without successes."""
        milliseconds = [outcome.stages[name] for outcome in self.succeeded]
        return float(np.median(milliseconds)) if milliseconds else float("nan")

    @property
    def errors(self) -> dict[str, int]:
        """How often each gRPC code ended a counted request."""
        return dict(Counter(outcome.code for outcome in self.counted if outcome.code is not None))

    def summary(self) -> dict[str, Any]:
        """All of it, ready for JSON; a number that nothing was measured for is None."""
        known = len(self.succeeded) > 0
        return {
            "load": self.load,
            "requests": len(self.counted),
            "throughput_per_second": self.throughput,
            "latency_seconds": {f"p{p}": self.latency(p) if known else None for p in PERCENTILES},
            "stage_milliseconds": {name: self.stage(name) if known else None for name in STAGES},
            "errors": self.errors,
        }


async def measure(
    generate: Generate, mix: Mix, load: Load, period: Period, seed: int, report: Report
) -> Measurement:
    """Puts a load on whoever generates, and waits for all that was sent."""
    works, outcomes, started = mix.works(seed), [], time.monotonic()

    async def send(due: float) -> None:
        work, code, stages = next(works), None, {}
        try:
            finished = (await generate(work)).finished
            stages = {name: getattr(finished, f"{name}_milliseconds") for name in STAGES}
        except TriptychError as error:
            code = error.code.name
        now = time.monotonic() - started
        outcomes.append(Outcome(work, due, now, code, stages))
        report(now, outcomes)

    await load.run(send, period.end, seed)
    return Measurement(str(load), period, outcomes)
