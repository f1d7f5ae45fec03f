"""What interval guidance saves: rows and seconds of a picture, guided at every step and in an interval.

    python -m benchmarks.interval_guidance

Each turn makes one picture of every interval in one process, the first one another each turn, so that a
machine that is busy for a while slows all of them; ratios are to guidance at every step. Rows are counted by
the coordinator: a sample under one branch at one step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.random_checkpoint import write_random_checkpoint
from triptych.checkpoints import open_checkpoint
from triptych.client import AsyncClient
from triptych.kernels import fix_kernels
from triptych.v1 import image_generation_pb2 as pb

INTERVALS = ((0.0, 1.0), (0.1, 0.8), (0.2, 0.6), (0.0, 0.0))
PROMPT = "a zebra to the left of a red fire truck on a light blue background"


@dataclass
class Measured:
    """The rows of one picture, the same each time, and its seconds of denoising, a number per turn."""

    rows: int = 0
    seconds: list[float] = field(default_factory=list)


async def measure(model: str, num_inference_steps: int, repetitions: int) -> list[Measured]:
    """What each of INTERVALS took."""
    from triptych_local.fused import fused_client

    measured = [Measured() for _ in INTERVALS]
    async with fused_client(model, dtype="float32") as client:
        await _picture(client, INTERVALS[0], num_inference_steps, Measured())  # warm-up
        for turn in range(repetitions):
            order = [(turn + k) % len(INTERVALS) for k in range(len(INTERVALS))]
            for k in order:
                await _picture(client, INTERVALS[k], num_inference_steps, measured[k])
            print(f"\rturn {turn + 1} of {repetitions}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return measured


async def _picture(
    client: AsyncClient, interval: tuple[float, float], num_inference_steps: int, measured: Measured
) -> None:
    start, stop = interval
    generation = await client.generate(
        PROMPT,
        seed=0,
        num_inference_steps=num_inference_steps,
        guidance_scale=4.5,
        guidance_schedule=pb.GuidanceSchedule(interval=pb.IntervalGuidance(start=start, stop=stop)),
    )
    measured.rows = generation.finished.rows
    measured.seconds.append(generation.finished.denoise_milliseconds / 1000)


def report(measured: list[Measured]) -> list[dict[str, object]]:
    """A line for each interval; ratios of seconds are medians over the turns, of one turn each."""
    always = measured[0]
    return [
        {
            "interval": interval,
            "rows": each.rows,
            "seconds": statistics.median(each.seconds),
            "rows_ratio": each.rows / always.rows,
            "seconds_ratio": statistics.median(
                one / other for one, other in zip(each.seconds, always.seconds, strict=True)
            ),
        }
        for interval, each in zip(INTERVALS, measured, strict=True)
    ]


def print_report(lines: list[dict[str, object]]) -> None:
    """The results for people."""
    print(f"{'guided steps':20}{'rows':>8}{'seconds':>10}{'rows, ratio':>14}{'seconds, ratio':>16}")
    for line in lines:
        start, stop = line["interval"]  # type: ignore[misc]
        print(
            f"{f'{start:g} to {stop:g}':20}{line['rows']:8}{line['seconds']:10.2f}"
            f"{line['rows_ratio']:14.3f}{line['seconds_ratio']:16.3f}"
        )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--random-weights", action="store_true", help="the model's shape, untrained")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    arguments = parser.parse_args()
    fix_kernels()
    model = str(open_checkpoint(arguments.model).path)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random_weights:
            write_random_checkpoint(Path(model), Path(folder))
            model = folder
        measured = asyncio.run(measure(model, arguments.steps, arguments.repetitions))
    lines = report(measured)
    print_report(lines)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
