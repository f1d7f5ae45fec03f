"""What telemetry costs, to the microsecond: the processor time of pictures whose model takes none.

python -m benchmarks.speed.telemetry_cost [--turns 30] [--pictures 4] [--out telemetry_cost.json]

Three processes with all services each (benchmarks.speed.telemetry_worker): telemetry off, metrics, metrics
and traces, which go by OTLP to a real receiver in this process. They take turns, another one first each time,
and each turn makes the same pictures of 28 steps, guided, over real sockets, through all that a call passes
but the model. The difference is telemetry's own. Then the default model makes pictures with telemetry off, as
four processes: what a picture of it takes is what the differences are a share of. Processor time is that of
all threads; other work on the machine makes it a few percent longer, for all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from contextlib import AsyncExitStack
from typing import Any

from benchmarks import command_line
from benchmarks.processes import Conversation, conversation
from benchmarks.speed.telemetry import METRICS, OFF, PROMPT, TRACES, Receiver, difference, fleet
from benchmarks.speed.telemetry_worker import STEPS

WORKER = "benchmarks.speed.telemetry_worker"
MODEL_PICTURES = 10
EXPORT_SECONDS = 60.0
"""How often metrics are sent unless OTEL_METRIC_EXPORT_INTERVAL says otherwise."""


async def own_seconds(turns: int, pictures: int, receiver: Receiver) -> dict[str, Any]:
    """Processor seconds of each turn by way, those of an export of metrics, and spans of a picture."""
    async with AsyncExitStack() as stack:
        endpoint = stack.enter_context(receiver.listening())
        sending = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}
        environments: dict[str, dict[str, str]] = {
            OFF: {},
            METRICS: {**sending, "OTEL_TRACES_EXPORTER": "none"},
            TRACES: sending,
        }
        workers: dict[str, Conversation] = {}
        for name, environment in environments.items():
            workers[name] = await stack.enter_async_context(conversation(WORKER, **environment))
        for worker in workers.values():
            assert await worker.line() == "ready"
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        spans = receiver.spans
        for turn in range(-1, turns):
            names = [*workers][turn % len(workers) :] + [*workers][: turn % len(workers)]
            for name in names:
                took = float(await workers[name].answer(f"pictures {pictures}")) / pictures
                if turn >= 0:  # the first is a warm-up
                    seconds[name].append(took)
            print(f"\rturn {turn + 1} of {turns}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        exports = [float(await workers[METRICS].answer("export")) for _ in range(turns)]
        made = pictures * (turns + 1)
        return {
            "seconds_per_picture": seconds,
            "export_seconds": statistics.median(exports),
            "spans_per_picture": (receiver.spans - spans) / made,
        }


async def model_seconds(model: str) -> float:
    """Processor seconds of a picture of the model, telemetry off: the median."""
    async with fleet(model, {}) as off:
        seconds = []
        for seed in range(-2, MODEL_PICTURES):
            await off.client.generate(PROMPT, seed=max(seed, 0), num_inference_steps=STEPS)
            seconds.append(off.cpu_passed())
        return statistics.median(seconds[2:])


def print_report(results: dict[str, Any]) -> None:
    """The results for people."""
    seconds, picture = results["seconds_per_picture"], results["model_seconds"]
    off = statistics.fmean(seconds[OFF])
    print("processor time of a picture, and of that telemetry's, by the means of all turns")
    for name, each in seconds.items():
        own, error = (off * share for share in difference(each, seconds[OFF]))
        more = (
            f"{1e3 * own:+8.2f} ms, {1e6 * own / STEPS:+.0f} µs a step, "
            f"{own / picture:+.2%} ± {error / picture:.2%} of the model's"
        )
        print(f"{name:24}{1e3 * statistics.fmean(each):7.1f} ms{'' if name == OFF else more}")
    export = results["export_seconds"]
    print(
        f"\na picture has {results['spans_per_picture']:.0f} spans; an export of a process's metrics takes "
        f"{1e3 * export:.1f} ms, every {EXPORT_SECONDS:.0f} s: {export / EXPORT_SECONDS:.3%} of a core"
    )
    print(
        f"a picture of the model takes {picture:.2f} s of processor time. "
        f"The machine's load was {os.getloadavg()[0]:.1f}"
    )


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All results, ready for JSON."""
    results = await own_seconds(arguments.turns, arguments.pictures, Receiver())
    return {**results, "model_seconds": await model_seconds(arguments.model)}


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--turns", type=int, default=30, help="of each way (default 30)")
    parser.add_argument("--pictures", type=int, default=4, help="of a turn (default 4)")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    results = asyncio.run(measure(arguments))
    print_report(results)
    command_line.write_json(arguments.out, results)


if __name__ == "__main__":
    main()
