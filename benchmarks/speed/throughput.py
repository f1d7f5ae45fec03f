"""What sharing forward passes is worth: requests at once against one after the other, and Poisson arrivals.

python -m benchmarks.speed.throughput [--quick] [--dtype float32] [--out throughput.json]

Four processes over Unix sockets, then five with a second denoiser, the default model. "equal" requests have
one size and number of steps, "mixed" ones draw theirs, and of "long and short" ones every tenth is 16 times
as large as the others. The ideal that latencies are divided by: the same arrivals, all requests that are
there share evenly in the throughput measured for as many at once, each with the work that it is alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks import command_line
from benchmarks.processes import fleet
from benchmarks.speed.fair_sharing import fair_sharing
from benchmarks.speed.step_cost import step_cost
from triptych_local.commands.bench import PROMPTS, Bench, Loads
from triptych_local.commands.load import Measurement, Mix, Period, Work
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
        """What requests of a kind ask for."""
        if kind == "equal":
            return Mix(PROMPTS, [(128, 128)], [self.steps])
        if kind == "long and short":
            return Mix(PROMPTS, [*9 * [(64, 64)], (256, 256)], [self.steps])
        return Mix(PROMPTS, [(128, 128), (128, 64), (64, 64)], [self.steps // 2, self.steps])


FULL = Plan((1, 2, 4, 8, 16), 28, Period(5, 30), Period(5, 150), 50)
QUICK = Plan((1, 4), 8, Period(1, 6), Period(1, 10), 10)


async def measure(choice: ModelChoice, plan: Plan, seed: int) -> dict[str, Any]:
    """All results, ready for JSON."""
    results: dict[str, Any] = {"throughput": {}, "poisson": {}, "steps": plan.steps, "dtype": choice.dtype}
    async with fleet(choice) as services:
        addresses = services.addresses
        text_encoder, denoiser, _ = addresses.stages
        results["step_milliseconds"] = await step_cost(text_encoder, denoiser, plan.predictions)
        for kind in ("equal", "mixed", "long and short"):
            closed = await _closed(addresses, plan, kind, seed)
            results["throughput"][f"{kind}, 1 denoiser"] = _summaries(closed)
            if kind != "mixed":
                results["poisson"] |= await _poisson(addresses, plan, kind, closed, seed)
    async with fleet(choice, denoisers=2) as services:
        closed = await _closed(services.addresses, plan, "equal", seed)
        results["throughput"]["equal, 2 denoisers"] = _summaries(closed)
    return results


async def _closed(addresses: Addresses, plan: Plan, kind: str, seed: int) -> dict[int, Measurement]:
    """By number of requests at once."""
    print(f"{kind} requests", file=sys.stderr, flush=True)
    bench = Bench(plan.mix(kind), plan.closed, seed, TIMEOUT)
    measured = await bench.run(addresses.coordinator, Loads(plan.concurrencies, [], []))
    return dict(zip(plan.concurrencies, measured, strict=True))


def _summaries(closed: dict[int, Measurement]) -> dict[int, dict[str, Any]]:
    return {many: one.summary() for many, one in closed.items()}


async def _poisson(
    addresses: Addresses, plan: Plan, kind: str, closed: dict[int, Measurement], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """By size of requests and share of the largest throughput: see _against_ideal."""
    per_second = [one.throughput for one in closed.values()]
    bench = Bench(plan.mix(kind), plan.open, seed, TIMEOUT)
    rates = [share * max(per_second) for share in SHARES]
    measured = await bench.run(addresses.coordinator, Loads([], rates, []))
    speed = partial(np.interp, xp=plan.concurrencies, fp=per_second)
    alone = await _seconds_alone(addresses, plan, kind, seed)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for share, one in zip(SHARES, measured, strict=True):
        for size, latencies in _against_ideal(one, lambda n: float(speed(n)), alone).items():
            results.setdefault(f"{kind}, {size}", {})[f"{share:.0%}"] = latencies
    return results


def _size(work: Work) -> str:
    return f"{work.width}x{work.height}"


async def _seconds_alone(addresses: Addresses, plan: Plan, kind: str, seed: int) -> dict[str, float]:
    """Of requests of each size that run one after the other."""
    mix, seconds = plan.mix(kind), {}
    for width, height in sorted({size for size in mix.sizes if size}):
        bench = Bench(replace(mix, sizes=[(width, height)]), plan.closed, seed, TIMEOUT)
        (alone,) = await bench.run(addresses.coordinator, Loads([1], [], []))
        seconds[f"{width}x{height}"] = 1 / alone.throughput
    return seconds


def _against_ideal(
    measured: Measurement, throughput: Callable[[int], float], alone: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """By size: how many requests, percentiles of their seconds, and how many times the ideal's those are."""
    outcomes = sorted(measured.outcomes, key=lambda outcome: outcome.arrived)
    mean = float(np.mean([alone[_size(outcome.work)] for outcome in outcomes]))
    work = [alone[_size(outcome.work)] / mean for outcome in outcomes]
    ideal = fair_sharing([outcome.arrived for outcome in outcomes], throughput, work)
    results = {}
    for size in sorted(alone):
        counted = [
            (outcome.seconds, seconds)
            for outcome, seconds in zip(outcomes, ideal, strict=True)
            if _size(outcome.work) == size and outcome.arrived >= measured.period.warm_up
        ]
        if counted:
            taken = {f"p{p}": np.percentile(counted, p, axis=0).tolist() for p in (50, 99)}
            results[size] = {
                "requests": len(counted),
                "latency_seconds": {name: seconds for name, (seconds, _) in taken.items()},
                "latency_to_ideal": {name: seconds / fair for name, (seconds, fair) in taken.items()},
            }
    return results


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
    for name, shares in results["poisson"].items():
        print(f"\n{'Poisson, ' + name:34}" + "".join(f"{share:>9}" for share in shares))
        print(f"{'  requests':34}" + "".join(f"{one['requests']:9}" for one in shares.values()))
        for percentile in ("p50", "p99"):
            for label, key in ((", seconds", "latency_seconds"), (" / fair sharing", "latency_to_ideal")):
                values = "".join(f"{one[key][percentile]:9.2f}" for one in shares.values())
                print(f"{'  ' + percentile + label:34}{values}")
    step = results["step_milliseconds"]
    parts = ("total", "bytes", "wire", "queue", "compute")
    print(f"\n{'a step of two rows':34}" + "".join(f"{part:>9}" for part in parts))
    print(f"{'  milliseconds':34}" + "".join(f"{step[part]:9.2f}" for part in parts))
    print(f"{'  share':34}" + "".join(f"{step[part] / step['total']:9.1%}" for part in parts))


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
