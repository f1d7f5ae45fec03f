"""What leaving work out saves and costs: rows, seconds and PSNR of reuse, small sizes and fewer steps.

    python -m benchmarks.quality.saved_work

Draws the prompts of benchmarks.sample_sheet one by one, each with every choice before the next;
seconds are of the processor, which other work on the machine hardly changes, each in relation to the same
picture with everything computed. PSNR is of the 8-bit pixels against that picture: it says how much a
choice changes a picture, not which one is better. Rows are counted by the coordinator: a sample under one
branch at one evaluation.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import command_line
from benchmarks.quality.pictures import Pixels, pixels_of
from benchmarks.sample_sheet import PROMPTS
from training.psnr import psnr
from triptych.client import AsyncClient
from triptych.compute.kernels import configure_math_libraries
from triptych_local.request import read_parameter

STEPS = 28
REUSES = (
    *("guidance:2", "guidance:3", "guidance:4", "extrapolation:2", "extrapolation:3"),
    *("taylorseer:2:1:3", "taylorseer:3:1:3", "taylorseer:4:1:3", "taylorseer:5:1:3"),
    *("taylorseer:2:2:3", "taylorseer:3:2:3"),
    *("magcache:0.03:3:0.2", "magcache:0.06:3:0.2", "magcache:0.12:4:0.1", "magcache:0.24:5:0.1"),
    *("teacache:0.1", "teacache:0.15", "teacache:0.2", "teacache:0.25", "teacache:0.3", "teacache:0.5"),
    *("features:0.05", "features:0.1", "features:0.15", "features:0.2", "features:0.3"),
)
SIZES = ("0.95", "0.9", "0.85", "0.8", "0.7")
INTERVALS = ("interval:0.1:0.8", "interval:0.2:0.8", "interval:0:0.5")
FEWER_STEPS = (20, 14, 10)
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "everything computed": {},
    **{reuse: read_parameter("step-reuse", reuse) for reuse in REUSES},
    **{f"size {levels}": read_parameter("progressive-resolution", levels) for levels in SIZES},
    **{interval: read_parameter("guidance-schedule", interval) for interval in INTERVALS},
    **{f"{steps} steps": {"num_inference_steps": steps} for steps in FEWER_STEPS},
}


@dataclass
class Measured:
    """Of every picture: rows, seconds, seconds in relation to everything computed, PSNR in dB."""

    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    seconds_ratios: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)


async def measure(model: str, repetitions: int) -> dict[str, Measured]:
    """What each of CHOICES took."""
    from triptych_local.running.fused import fused_client
    from triptych_local.running.settings import ModelChoice

    measured = {name: Measured() for name in CHOICES}
    async with fused_client(ModelChoice(model=model, dtype="float32")) as client:
        for seed, prompt in enumerate(PROMPTS * repetitions):
            await _draw(client, prompt, seed, CHOICES["features:0.1"])  # warm-up
            whole: tuple[Pixels, float] | None = None
            for name, options in CHOICES.items():
                pixels, rows, seconds = await _draw(client, prompt, seed, options)
                whole = whole or (pixels, seconds)
                measured[name].rows.append(rows)
                measured[name].seconds.append(seconds)
                measured[name].seconds_ratios.append(seconds / whole[1])
                measured[name].psnrs.append(psnr(pixels, whole[0]))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return measured


async def _draw(
    client: AsyncClient, prompt: str, seed: int, options: Mapping[str, Any]
) -> tuple[Pixels, int, float]:
    """Pixels, rows and seconds of the processor."""
    began = time.process_time()
    generation = await client.generate(prompt, seed=seed, **{"num_inference_steps": STEPS, **options})
    seconds = time.process_time() - began
    return pixels_of(generation.images[0].png), generation.finished.rows, seconds


def report(measured: Mapping[str, Measured]) -> list[dict[str, object]]:
    """A line for each choice: means of rows, medians of the rest."""
    return [
        {
            "choice": name,
            "rows": statistics.mean(each.rows),
            "seconds": statistics.median(each.seconds),
            "seconds_ratio": statistics.median(each.seconds_ratios),
            "psnr": statistics.median(each.psnrs),
            "worst_psnr": min(each.psnrs),
        }
        for name, each in measured.items()
    ]


def print_report(lines: Sequence[Mapping[str, Any]]) -> None:
    """The results for people."""
    print(f"{'choice':22}{'rows':>7}{'seconds':>9}{'ratio':>7}{'PSNR, dB':>10}{'worst':>7}")
    for line in lines:
        print(
            "{choice:22}{rows:7.1f}{seconds:9.2f}{seconds_ratio:7.2f}{psnr:10.1f}{worst_psnr:7.1f}".format(
                **line
            )
        )


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=1, help="of the eight pictures (default 1)")
    arguments = parser.parse_args()
    configure_math_libraries()
    lines = report(asyncio.run(measure(arguments.model, arguments.repetitions)))
    print_report(lines)
    command_line.write_json(arguments.out, lines)


if __name__ == "__main__":
    main()
