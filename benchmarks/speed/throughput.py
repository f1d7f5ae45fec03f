"""What sharing forward passes is worth: requests at once against one after the other, and Poisson arrivals.

python -m benchmarks.speed.throughput [--quick] [--dtype float32] [--out throughput.json]

Four processes over Unix sockets, then five with a second denoiser, the default model. "equal" requests have
one size and number of steps, "mixed" ones draw theirs. The ideal that latencies are divided by: the same
arrivals, all requests that are there share evenly in the throughput measured for as many at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks import command_line
from benchmarks.processes import fleet
from benchmarks.speed.fair_sharing import fair_sharing
from benchmarks.speed.step_cost import step_cost
from triptych_local.commands.bench import PROMPTS, Bench, Loads
from triptych_local.commands.load import Measurement, Mix, Period
from triptych_local.running.programs import Addresses
from triptych_local.running.settings import ModelChoice

SHARES = (0.5, 0.8, 0.95)
TIMEOUT = 600.0


@dataclass(frozen=True)
class Plan:
    """How much is measured. `steps` is that of equal requests; mixed ones have half of it, too."""

    concurrencies: Sequence[int]
    steps: int
    closed: Period
    open: Period
    predictions: int

    def mix(self, kind: str) -> Mix:
        """What "equal" or "mixed" requests ask for."""
        if kind == "equal":
            return Mix(PROMPTS, [(128, 128)], [self.steps])
        return Mix(PROMPTS, [(128, 128), (128, 64), (64, 64)], [self.steps // 2, self.steps])


FULL = Plan((1, 2, 4, 8, 16), 28, Period(5, 30), Period(5, 60), 50)
QUICK = Plan((1, 4), 8, Period(1, 6), Period(1, 10), 10)


async def measure(choice: ModelChoice, plan: Plan, seed: int) -> dict[str, Any]:
    """All results, ready for JSON."""
    results: dict[str, Any] = {"throughput": {}, "steps": plan.steps, "dtype": choice.dtype}
    async with fleet(choice) as services:
        addresses = services.addresses
        text_encoder, denoiser, _ = addresses.stages
        results["step_milliseconds"] = await step_cost(text_encoder, denoiser, plan.predictions)
        for kind in ("equal", "mixed"):
            closed = await _closed(addresses, plan, kind, seed)
            results["throughput"][f"{kind}, 1 denoiser"] = closed
            if kind == "equal":
                results["poisson"] = await _poisson(addresses, plan, closed, seed)
    async with fleet(choice, denoisers=2) as services:
        closed = await _closed(services.addresses, plan, "equal", seed)
        results["throughput"]["equal, 2 denoisers"] = closed
    return results


async def _closed(addresses: Addresses, plan: Plan, kind: str, seed: int) -> dict[int, dict[str, Any]]:
    """The summary of each number of requests at once."""
    print(f"{kind} requests", file=sys.stderr, flush=True)
    bench = Bench(plan.mix(kind), plan.closed, seed, TIMEOUT)
    measured = await bench.run(addresses.coordinator, Loads(plan.concurrencies, [], []))
    return {many: one.summary() for many, one in zip(plan.concurrencies, measured, strict=True)}


async def _poisson(
    addresses: Addresses, plan: Plan, closed: dict[int, dict[str, Any]], seed: int
) -> dict[str, dict[str, Any]]:
    """By share of the largest throughput: the summary, and its latencies divided by those of fair sharing."""
    per_second = [closed[many]["throughput_per_second"] for many in plan.concurrencies]
    bench = Bench(plan.mix("equal"), plan.open, seed, TIMEOUT)
    rates = [share * max(per_second) for share in SHARES]
    measured = await bench.run(addresses.coordinator, Loads([], rates, []))
    speed = partial(np.interp, xp=plan.concurrencies, fp=per_second)
    return {
        f"{share:.0%}": {**one.summary(), **_against_ideal(one, lambda n: float(speed(n)))}
        for share, one in zip(SHARES, measured, strict=True)
    }


def _against_ideal(measured: Measurement, throughput: Any) -> dict[str, dict[str, float]]:
    """The ideal's latencies in seconds, and how many times as long it took."""
    arrivals = sorted(outcome.arrived for outcome in measured.outcomes)
    ideal = fair_sharing(arrivals, throughput)
    counted = [
        seconds
        for arrival, seconds in zip(arrivals, ideal, strict=True)
        if arrival >= measured.period.warm_up
    ]
    ideals = {f"p{p}": float(np.percentile(counted, p)) for p in (50, 99)} if counted else {}
    ratios = {name: measured.latency(int(name[1:])) / seconds for name, seconds in ideals.items()}
    return {"ideal_seconds": ideals, "latency_to_ideal": ratios}


def print_report(results: dict[str, Any]) -> None:
    """The results for people."""
    for name, closed in results["throughput"].items():
        print(f"{name + ', ' + str(results['steps']) + ' steps':34}" + "".join(f"{n:>9}" for n in closed))
        first, *_ = rates = [one["throughput_per_second"] for one in closed.values()]
        print(f"{'  requests a second':34}" + "".join(f"{rate:9.3f}" for rate in rates))
        if first:
            print(f"{'  / one after the other':34}" + "".join(f"{rate / first:9.2f}" for rate in rates))
        failed = sum(sum(one["errors"].values()) for one in closed.values())
        print(f"{'  failed':34}{failed:9}")
    print(f"\n{'Poisson, of the throughput':34}" + "".join(f"{share:>9}" for share in results["poisson"]))
    for percentile in ("p50", "p99"):
        seconds = [one["latency_seconds"][percentile] for one in results["poisson"].values()]
        ratios = [one["latency_to_ideal"].get(percentile) for one in results["poisson"].values()]
        print(f"{'  ' + percentile + ', seconds':34}" + "".join(_cell(value) for value in seconds))
        print(f"{'  ' + percentile + ' / fair sharing':34}" + "".join(_cell(value) for value in ratios))
    step = results["step_milliseconds"]
    parts = ("total", "bytes", "wire", "queue", "compute")
    print(f"\n{'a step of two rows':34}" + "".join(f"{part:>9}" for part in parts))
    print(f"{'  milliseconds':34}" + "".join(f"{step[part]:9.2f}" for part in parts))
    print(f"{'  share':34}" + "".join(f"{step[part] / step['total']:9.1%}" for part in parts))


def _cell(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.2f}"


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--dtype", default="float32", help="of all stages (default float32)")
    parser.add_argument("--quick", action="store_true", help="few steps and short loads: about two minutes")
    parser.add_argument("--seed", type=int, default=0, help="decides requests and arrivals")
    arguments = parser.parse_args()
    choice = ModelChoice(model=arguments.model, dtype=arguments.dtype)
    results = asyncio.run(measure(choice, QUICK if arguments.quick else FULL, arguments.seed))
    print_report(results)
    command_line.write_json(arguments.out, results)


if __name__ == "__main__":
    main()
