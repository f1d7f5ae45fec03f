"""What one picture costs: Triptych fused, Triptych over sockets, and diffusers, on the same weights.

python -m benchmarks.speed.one_picture [--repetitions 7] [--random-weights] [--out one_picture.json]

256 x 256 pixels, 28 steps, guidance, float32. The three take turns. In a turn all have the same prompt and
seed; every turn has a new prompt, so that no cache of text encodings helps. Memory is sampled in a last turn,
untimed.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks import command_line
from benchmarks.processes import conversation, fleet
from benchmarks.speed.picture_worker import Milliseconds, generate
from benchmarks.speed.random_checkpoint import write_random_checkpoint
from triptych.checkpoints.opening import MODELS, open_checkpoint
from triptych.client import AsyncClient
from triptych_local.running.settings import ModelChoice

STAGES = ("encode", "denoise", "decode", "total")
THINGS = (
    "zebra",
    "rocket",
    "panda",
    "teapot",
    "tractor",
    "lemon",
    "whale",
    "crown",
    "guitar",
    "tent",
    "owl",
    "fox",
)
PAUSE_SECONDS = 0.5  # between pictures: threads of the one before stop spinning
SAMPLE_SECONDS = 0.02
AIMS = {"sockets / fused": 1.05, "fused / diffusers": 0.8}

MakePicture = Callable[[dict[str, Any]], Coroutine[Any, Any, Milliseconds]]


@dataclass
class Way:
    """One way to make pictures: how, in which processes, how long these took to start, what was measured."""

    make: MakePicture
    processes: dict[str, psutil.Process]
    start_seconds: dict[str, float]
    pictures: list[Milliseconds] = field(default_factory=list)
    megabytes: dict[str, float] = field(default_factory=dict)

    def median(self, stage: str) -> float:
        """Milliseconds of a stage in the middle repetition."""
        return statistics.median(picture[stage] for picture in self.pictures)


@asynccontextmanager
async def worker(way: str, model: str, options: dict[str, Any]) -> AsyncIterator[Way]:
    """A way that is one process: "fused" or "diffusers"."""
    started = time.perf_counter()
    async with conversation("benchmarks.speed.picture_worker", way, model, json.dumps(options)) as process:

        async def make(request: dict[str, Any]) -> Milliseconds:
            return dict(json.loads(await process.answer(json.dumps(request))))

        while await process.line() != "ready":
            pass
        seconds = time.perf_counter() - started
        yield Way(make, {way: psutil.Process(process.pid)}, {way: seconds})


@asynccontextmanager
async def sockets(model: str, options: dict[str, Any]) -> AsyncIterator[Way]:
    """Four processes over Unix sockets, started side by side as `triptych up` does."""
    async with fleet(ModelChoice(model=model, dtype="float32")) as services:
        commands = {" ".join(child.cmdline()): child for child in psutil.Process().children()}
        processes = {program.name: commands[" ".join(program.command())] for program in services.programs}
        async with AsyncClient(services.addresses.coordinator) as client:

            async def make(request: dict[str, Any]) -> Milliseconds:
                return await generate(client, request, options)

            yield Way(make, processes, services.start_seconds)


async def measure(model: str, options: dict[str, Any], repetitions: int) -> tuple[dict[str, Way], int]:
    """Every way's measurements, and the largest difference of a pixel's channel between any two ways."""
    async with AsyncExitStack() as stack:
        ways = {
            "fused": await stack.enter_async_context(worker("fused", model, options)),
            "sockets": await stack.enter_async_context(sockets(model, options)),
            "diffusers": await stack.enter_async_context(worker("diffusers", model, options)),
        }
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        await _turn(ways, 0, folder)  # warm-up
        difference = 0
        for turn in range(1, repetitions + 1):
            for name, milliseconds in (await _turn(ways, turn, folder)).items():
                ways[name].pictures.append(milliseconds)
            difference = max(difference, _difference([folder / f"{name}.png" for name in ways]))
            print(f"\rturn {turn} of {repetitions}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for way in ways.values():
            await _sample_memory(way, _request(repetitions + 1, folder / "memory.png"))
    return ways, difference


async def _turn(ways: dict[str, Way], turn: int, folder: Path) -> dict[str, Milliseconds]:
    """One picture each, the first one another each turn."""
    names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
    measured = {}
    for name in names:
        measured[name] = await ways[name].make(_request(turn, folder / f"{name}.png"))
        await asyncio.sleep(PAUSE_SECONDS)
    return measured


def _request(turn: int, file: Path) -> dict[str, Any]:
    first, second = THINGS[turn % len(THINGS)], THINGS[(turn // len(THINGS) + turn + 1) % len(THINGS)]
    return {
        "prompt": f"a {first} to the left of a {second} on a blue background",
        "seed": turn,
        "file": str(file),
    }


def _difference(files: list[Path]) -> int:
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.int16) for file in files])
    return int(np.ptp(pictures, axis=0).max())


async def _sample_memory(way: Way, request: dict[str, Any]) -> None:
    """The most resident memory of each process while it makes a picture."""
    making = asyncio.create_task(way.make(request))
    while not making.done():
        for name, process in way.processes.items():
            with suppress(psutil.NoSuchProcess):
                resident = process.memory_info().rss / 1e6
                way.megabytes[name] = max(way.megabytes.get(name, 0.0), resident)
        await asyncio.sleep(SAMPLE_SECONDS)
    await making


def report(ways: dict[str, Way], difference: int, repetitions: int) -> dict[str, Any]:
    """All results, ready for JSON."""
    totals = {name: way.median("total") for name, way in ways.items()}
    return {
        "ratios": {
            "sockets / fused": totals["sockets"] / totals["fused"],
            "fused / diffusers": totals["fused"] / totals["diffusers"],
        },
        "median_milliseconds": {n: {s: way.median(s) for s in STAGES} for n, way in ways.items()},
        "pictures": {name: way.pictures for name, way in ways.items()},
        "peak_megabytes": {name: way.megabytes for name, way in ways.items()},
        "start_seconds": {name: way.start_seconds for name, way in ways.items()},
        "largest_pixel_difference": difference,
        "repetitions": repetitions,
        "versions": {n: version(n) for n in ("torch", "diffusers", "transformers", "grpcio", "numpy")},
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def print_report(results: dict[str, Any]) -> None:
    """The results for people."""
    print(
        f"{'milliseconds, median of ' + str(results['repetitions']):28}" + "".join(f"{s:>10}" for s in STAGES)
    )
    for name, stages in results["median_milliseconds"].items():
        print(f"{name:28}" + "".join(f"{stages[stage]:10.0f}" for stage in STAGES))
    print()
    for name, ratio in results["ratios"].items():
        print(f"{name:28}{ratio:10.3f}   aim: at most {AIMS[name]}")
    print(f"{'largest pixel difference':28}{results['largest_pixel_difference']:10} of 255")
    print(f"\n{'process':28}{'start, s':>10}{'peak MB':>10}")
    for way, seconds in results["start_seconds"].items():
        for process, value in seconds.items():
            label = process if process == way else f"{way}: {process}"
            print(f"{label:28}{value:10.1f}{results['peak_megabytes'][way][process]:10.0f}")
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    print(f"\n{results['cpu']}, {results['cores']} cores; Python {results['python']}, {versions}")


def _cpu() -> str:
    """The processor's name as Linux gives it, else as Python knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--random-weights", action="store_true", help="the default model's shape, untrained")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two repetitions of 8 steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repetitions, arguments.steps = 2, 8
    options = {
        "height": arguments.size,
        "width": arguments.size,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
    }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random_weights:
            write_random_checkpoint(MODELS / "triptych-small", Path(folder))
            model = folder
        else:
            model = str(open_checkpoint(arguments.model).path)
        ways, difference = asyncio.run(measure(model, options, arguments.repetitions))
    results = report(ways, difference, arguments.repetitions)
    print_report(results)
    command_line.write_json(arguments.out, results)


if __name__ == "__main__":
    main()
