"""What pictures cost: Triptych fused, Triptych over sockets, and its peers, on the same weights.

python -m benchmarks.speed.peers [--peers diffusers "diffusers compiled" OpenVINO] [--sizes 128 256]
    [--dtypes float32 bfloat16] [--at-once 1 8] [--repetitions 7] [--random-weights] [--out peers.json]

28 steps, guidance. In each case all ways take turns. In a turn all have the same prompts and seeds; every
turn has new ones, so that no cache of text encodings helps. Memory is sampled in a last turn, untimed.
OpenVINO is optimum-intel's, in an environment of its own that is made the first time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from PIL import Image

from benchmarks import command_line
from benchmarks.processes import conversation, fleet
from benchmarks.speed.openvino import ROOT, exported, openvino_python
from benchmarks.speed.picture_worker import Milliseconds, generate
from benchmarks.speed.random_checkpoint import write_random_checkpoint
from triptych.checkpoints.opening import MODELS, open_checkpoint
from triptych.client import AsyncClient
from triptych_local.running.settings import ModelChoice

STAGES = ("encode", "denoise", "decode", "total")
PEERS = ("diffusers", "diffusers compiled", "OpenVINO")
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

MakePictures = Callable[[dict[str, Any]], Coroutine[Any, Any, Milliseconds]]


@dataclass(frozen=True)
class Case:
    """What is made: how many pictures at once, of which model, in which dtype, with which options."""

    model: str
    dtype: Literal["float32", "bfloat16"]
    pictures: int
    options: dict[str, Any]

    def __str__(self) -> str:
        size = self.options["height"]
        return f"{size} x {size}, {self.dtype}, {self.pictures} at once"


@dataclass
class Way:
    """One way to make pictures: how, in which processes, how long these took to start, what was measured."""

    make: MakePictures
    processes: dict[str, psutil.Process]
    start_seconds: dict[str, float]
    measured: list[Milliseconds] = field(default_factory=list)
    megabytes: dict[str, float] = field(default_factory=dict)

    def median(self, stage: str) -> float:
        """Milliseconds of a stage in the middle repetition."""
        return statistics.median(turn[stage] for turn in self.measured)


@asynccontextmanager
async def worker(way: str, case: Case) -> AsyncIterator[Way]:
    """A way that is one process: "fused" or a peer."""
    model, python = case.model, Path(sys.executable)
    places: dict[str, str] = {}
    if way == "OpenVINO":
        model, python, places = str(exported(Path(model))), openvino_python(), {"PYTHONPATH": str(ROOT)}
    arguments = (way, model, case.dtype, str(case.pictures), json.dumps(case.options))
    started = time.perf_counter()
    talk = conversation("benchmarks.speed.picture_worker", *arguments, python=python, **places)
    async with talk as process:

        async def make(request: dict[str, Any]) -> Milliseconds:
            return dict(json.loads(await process.answer(json.dumps(request))))

        while await process.line() != "ready":
            pass
        seconds = time.perf_counter() - started
        yield Way(make, {way: psutil.Process(process.pid)}, {way: seconds})


@asynccontextmanager
async def sockets(case: Case) -> AsyncIterator[Way]:
    """Four processes over Unix sockets, started side by side as `triptych up` does."""
    async with fleet(ModelChoice(model=case.model, dtype=case.dtype)) as services:
        commands = {" ".join(child.cmdline()): child for child in psutil.Process().children()}
        processes = {program.name: commands[" ".join(program.command())] for program in services.programs}
        async with AsyncClient(services.addresses.coordinator) as client:

            async def make(request: dict[str, Any]) -> Milliseconds:
                return await generate(client, request, case.options)

            yield Way(make, processes, services.start_seconds)


async def measure(case: Case, peers: Sequence[str], repetitions: int) -> tuple[dict[str, Way], int]:
    """Every way's measurements, and the largest difference of a pixel's channel between any two ways."""
    async with AsyncExitStack() as stack:
        ways = {
            "fused": await stack.enter_async_context(worker("fused", case)),
            "sockets": await stack.enter_async_context(sockets(case)),
        }
        for peer in peers:
            ways[peer] = await stack.enter_async_context(worker(peer, case))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        await _turn(ways, 0, case.pictures, folder)  # warm-up
        difference = 0
        for turn in range(1, repetitions + 1):
            for name, milliseconds in (await _turn(ways, turn, case.pictures, folder)).items():
                ways[name].measured.append(milliseconds)
            difference = max(difference, _difference([_files(folder, n, case.pictures) for n in ways]))
            print(f"\rturn {turn} of {repetitions}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for name, way in ways.items():
            last = _request(repetitions + 1, _files(folder, name, case.pictures))
            await _sample_memory(way, last)
    return ways, difference


async def _turn(ways: dict[str, Way], turn: int, pictures: int, folder: Path) -> dict[str, Milliseconds]:
    """The same pictures by each, the first one another each turn."""
    names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
    measured = {}
    for name in names:
        measured[name] = await ways[name].make(_request(turn, _files(folder, name, pictures)))
        await asyncio.sleep(PAUSE_SECONDS)
    return measured


def _files(folder: Path, way: str, pictures: int) -> list[str]:
    return [str(folder / f"{way} {index}.png") for index in range(pictures)]


def _request(turn: int, files: list[str]) -> dict[str, Any]:
    pairs = list(itertools.permutations(THINGS, 2))
    numbers = range(turn * len(files), (turn + 1) * len(files))
    # 31 has no factor in common with their number: no pair comes again before all have come.
    chosen = [pairs[31 * number % len(pairs)] for number in numbers]
    prompts = [f"a {first} to the left of a {second} on a blue background" for first, second in chosen]
    return {"prompts": prompts, "seeds": list(numbers), "files": files}


def _difference(ways: list[list[str]]) -> int:
    """Between the pictures of any two ways, of each its files."""
    pictures = [[np.asarray(Image.open(file).convert("RGB"), dtype=np.int16) for file in way] for way in ways]
    return int(np.ptp(np.array(pictures), axis=0).max())


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


def report(case: Case, ways: dict[str, Way], difference: int) -> dict[str, Any]:
    """A case's results, ready for JSON."""
    return {
        "case": str(case),
        "ratios": ratios(ways),
        "median_milliseconds": {n: {s: way.median(s) for s in STAGES} for n, way in ways.items()},
        "turns": {name: way.measured for name, way in ways.items()},
        "peak_megabytes": {name: way.megabytes for name, way in ways.items()},
        "start_seconds": {name: way.start_seconds for name, way in ways.items()},
        "largest_pixel_difference": difference,
    }


def ratios(ways: dict[str, Way]) -> dict[str, dict[str, float]]:
    """Of medians in all, with the least and the greatest ratio of a turn."""
    pairs = [("sockets", "fused"), *(("fused", peer) for peer in ways if peer in PEERS)]
    return {f"{one} / {other}": _ratio(ways[one], ways[other]) for one, other in pairs}


def _ratio(one: Way, other: Way) -> dict[str, float]:
    each = [a["total"] / b["total"] for a, b in zip(one.measured, other.measured, strict=True)]
    return {"median": one.median("total") / other.median("total"), "least": min(each), "greatest": max(each)}


def print_report(results: dict[str, Any]) -> None:
    """A case's results for people."""
    print(f"\n{results['case']}")
    print(
        f"{'':28}" + "".join(f"{f'{stage}, ms':>12}" for stage in STAGES) + f"{'start, s':>10}{'peak MB':>10}"
    )
    for way, stages in results["median_milliseconds"].items():
        start = max(results["start_seconds"][way].values())
        peak = sum(results["peak_megabytes"][way].values())
        print(f"{way:28}" + "".join(f"{stages[s]:12.0f}" for s in STAGES) + f"{start:12.1f}{peak:12.0f}")
    for name, ratio in results["ratios"].items():
        print(
            f"{name:28}{ratio['median']:12.2f}   turns from {ratio['least']:.2f} to {ratio['greatest']:.2f}"
        )
    print(f"{'largest pixel difference':28}{results['largest_pixel_difference']:12} of 255", flush=True)


def table(cases: Sequence[dict[str, Any]]) -> str:
    """All cases in Markdown: milliseconds of a fused request, ratios to it, peak memory."""
    names = list(cases[0]["ratios"])
    columns = ["", "fused, ms", *names, *(f"{way}, MB" for way in cases[0]["peak_megabytes"])]
    lines = [columns, ["---"] * len(columns)]
    for case in cases:
        medians, ratios, peaks = (case[n] for n in ("median_milliseconds", "ratios", "peak_megabytes"))
        spans = (ratios[name] for name in names)
        lines.append(
            [
                case["case"],
                f"{medians['fused']['total']:.0f}",
                *(f"{r['median']:.2f} ({r['least']:.2f} to {r['greatest']:.2f})" for r in spans),
                *(f"{sum(peak.values()):.0f}" for peak in peaks.values()),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """What all was measured on, and with."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {n: version(n) for n in ("torch", "diffusers", "transformers", "grpcio", "numpy")},
    }


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
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["diffusers"])
    parser.add_argument("--random-weights", action="store_true", help="the default model's shape, untrained")
    parser.add_argument("--sizes", nargs="+", type=int, default=[256], help="heights and widths in pixels")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--at-once", nargs="+", type=int, default=[1], help="pictures of one request")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two repetitions of 8 steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repetitions, arguments.steps = 2, 8
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random_weights:
            write_random_checkpoint(MODELS / "triptych-small", Path(folder))
            model = folder
        else:
            model = str(open_checkpoint(arguments.model).path)
        for size, dtype, pictures in itertools.product(arguments.sizes, arguments.dtypes, arguments.at_once):
            options = {
                "height": size,
                "width": size,
                "num_inference_steps": arguments.steps,
                "guidance_scale": arguments.guidance,
            }
            case = Case(model, dtype, pictures, options)
            ways, difference = asyncio.run(measure(case, arguments.peers, arguments.repetitions))
            cases.append(report(case, ways, difference))
            print_report(cases[-1])
    print(f"\n{table(cases)}")
    on = machine()
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    print(f"\n{on['cpu']}, {on['cores']} cores; Python {on['python']}, {versions}")
    command_line.write_json(arguments.out, {"cases": cases, "repetitions": arguments.repetitions, **on})


if __name__ == "__main__":
    main()
