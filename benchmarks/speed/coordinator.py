"""How many steps a second a coordinator drives, and so how many GPUs it feeds.

python -m benchmarks.speed.coordinator [--quick] [--branches 1] [--out coordinator.json]

Denoisers, text encoder and VAE codec are processes that answer at once, over Unix sockets: what is left is
the coordinator, the wire, and what both ends do with its bytes. Clients ask for pictures of few steps, then
of many: the difference tells the coordinator's own processor time for a step, the rest that for a picture.

A coordinator is a process with one event loop, which takes a core. Here its stages and its clients share the
machine's cores with it, so that the steps a second of the clock are too few where there are fewer cores than
processes; its processor time says what a core of its own would do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import command_line
from benchmarks.processes import serving
from benchmarks.speed.instant_stages import MODEL
from triptych.client import AsyncClient
from triptych_local.running.folders import temporary_folder
from triptych_local.running.processes import Program

LATENTS = {64: (32, 32), 512: (64, 128), 1024: (128, 128)}
"""Kilobytes of latents, float32 with 16 channels: their height and width, an eighth of the picture's."""
COORDINATORS = (1, 2)
DENOISERS = 2
FEW_STEPS = 4
MANY_STEPS = 40
STEP_MILLISECONDS = (10, 50, 200)


@dataclass(frozen=True)
class Run:
    """Pictures of so many steps: the seconds that they took, and of that the coordinators' processor time."""

    pictures: int
    steps: int
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Cost:
    """What coordinators did.

    steps_per_second: by the clock, of all of them.
    step_milliseconds: a coordinator's processor time for a step.
    picture_milliseconds: the same for a picture beside its steps: its PNG, the request, its events.
    """

    steps_per_second: float
    step_milliseconds: float
    picture_milliseconds: float

    def gpus(self, step_milliseconds: float, steps: int) -> float:
        """How many GPUs one core of coordinators keeps busy, if a step of one picture takes them so long."""
        of_picture = self.step_milliseconds + self.picture_milliseconds / steps
        return step_milliseconds / of_picture


def cost(few: Run, many: Run) -> Cost:
    """What a step and a picture cost, of two runs with different steps.

    processor time of a picture = a + b * steps, for both.
    """
    first, second = (1000 * run.processor_seconds / run.pictures for run in (few, many))
    step = (second - first) / (many.steps - few.steps)
    return Cost(many.pictures * many.steps / many.seconds, step, first - few.steps * step)


@asynccontextmanager
async def coordinators(kilobytes: int, count: int, at_once: int) -> AsyncIterator[list[str]]:
    """Addresses of so many coordinators, all before the same instant stages."""
    height, width = LATENTS[kilobytes]
    with temporary_folder() as folder:
        size = ["--height", str(height), "--width", str(width)]
        stages = {
            "text-encoder": [_socket(folder, "text-encoder")],
            "denoiser": [_socket(folder, f"denoiser-{index}") for index in range(DENOISERS)],
            "vae-codec": [_socket(folder, "vae-codec")],
        }
        programs = [
            Program(address, "benchmarks.speed.instant_stages", address, ["--stage", stage, *size])
            for stage, addresses in stages.items()
            for address in addresses
        ]
        targets = [word for stage, where in stages.items() for word in (f"--{stage}", ",".join(where))]
        options = [*targets, "--model", MODEL, "--max-running", str(at_once), "--max-waiting", "1000"]
        found = [_socket(folder, f"coordinator-{index}") for index in range(count)]
        programs += [Program(address, "triptych_coordinator", address, options) for address in found]
        async with serving(programs):
            yield found


def _socket(folder: Path, name: str) -> str:
    return f"unix:{folder}/{name}.sock"


def processor_seconds() -> float:
    """What this process's coordinators have used."""
    own = [child for child in psutil.Process().children() if "triptych_coordinator" in child.cmdline()]
    return sum(sum(child.cpu_times()[:2]) for child in own)


async def measure(
    addresses: Sequence[str], kilobytes: int, steps: int, pictures: int, at_once: int, branches: int
) -> Run:
    """Pictures of so many steps, so many at once from each coordinator."""
    height, width = (8 * side for side in LATENTS[kilobytes])
    guidance = {"guidance_scale": 1.0 if branches == 1 else 5.0, "height": height, "width": width}
    left = dict.fromkeys(addresses, pictures)

    async def one_after_the_other(client: AsyncClient, address: str) -> None:
        while left[address]:
            left[address] -= 1
            await client.generate("a zebra", num_inference_steps=steps, seed=left[address], **guidance)  # type: ignore[arg-type]

    async with AsyncExitStack() as stack:
        clients = {one: await stack.enter_async_context(AsyncClient(one)) for one in addresses}
        for client in clients.values():  # the prompt's conditioning is there then
            await client.generate("a zebra", num_inference_steps=1, seed=0, **guidance)  # type: ignore[arg-type]
        before, started = processor_seconds(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for address, client in clients.items():
                for _ in range(at_once):
                    group.create_task(one_after_the_other(client, address))
        seconds = time.perf_counter() - started
        return Run(pictures * len(addresses), steps, seconds, processor_seconds() - before)


async def measure_all(pictures: int, at_once: int, branches: int) -> dict[int, dict[int, Cost]]:
    """By kilobytes and number of coordinators. Each is printed as it comes."""
    costs: dict[int, dict[int, Cost]] = {}
    for kilobytes in LATENTS:
        costs[kilobytes] = {}
        for count in COORDINATORS:
            async with coordinators(kilobytes, count, at_once) as addresses:
                few, many = [
                    await measure(addresses, kilobytes, steps, pictures, at_once, branches)
                    for steps in (FEW_STEPS, MANY_STEPS)
                ]
            costs[kilobytes][count] = cost(few, many)
            print(line(kilobytes, count, costs[kilobytes][count]), flush=True)
    return costs


def head() -> str:
    """The table's head."""
    gpus = "".join(f"{f'GPUs, {step} ms':>14}" for step in STEP_MILLISECONDS)
    return f"{'latents':>8}{'coordinators':>14}{'steps/s':>9}{'ms a step':>11}{'ms a picture':>14}{gpus}"


def line(kilobytes: int, count: int, one: Cost) -> str:
    """A row of it, with how many GPUs a core of coordinators feeds with pictures of 28 steps."""
    fed = "".join(f"{one.gpus(step, 28):14.1f}" for step in STEP_MILLISECONDS)
    return (
        f"{kilobytes:5} KB{count:14}{one.steps_per_second:9.0f}{one.step_milliseconds:11.2f}"
        f"{one.picture_milliseconds:14.1f}{fed}"
    )


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__, model=False)
    parser.add_argument("--quick", action="store_true", help="few pictures: about a minute")
    parser.add_argument("--branches", type=int, choices=(1, 2), default=1, help="of guidance (default 1)")
    parser.add_argument(
        "--at-once", type=int, default=8, help="pictures at once of a coordinator (default 8)"
    )
    given = parser.parse_args()
    print(head())
    costs = asyncio.run(measure_all(8 if given.quick else 100, given.at_once, given.branches))
    written: dict[str, Any] = {
        f"{kilobytes} KB": {count: asdict(one) for count, one in by_count.items()}
        for kilobytes, by_count in costs.items()
    }
    command_line.write_json(given.out, written)


if __name__ == "__main__":
    main()
