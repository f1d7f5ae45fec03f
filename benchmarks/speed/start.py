"""How long a start takes: imports, `triptych up` to ready, a picture from cold, a killed service to serving.

    python -m benchmarks.speed.start --repetitions 5

Seconds are the median and the least of the repetitions; CPU seconds count the processes that were started.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.command_line import parser, write_json
from triptych_local.running.folders import temporary_folder
from triptych_local.running.processes import ServiceProcess, running
from triptych_local.running.programs import Addresses, split_programs
from triptych_local.running.settings import ModelChoice

IMPORTS = {
    "text encoder": "triptych_text_encoder.clip, transformers.models.clip.tokenization_clip",
    "denoiser": "triptych_denoiser.assembly",
    "VAE codec": "triptych_vae_codec.models",
    "coordinator": "triptych_coordinator.__main__",
    "triptych up": "triptych_local.commands.up",
    "triptych generate": "triptych_local.commands.generate",
}
"""What each process imports until it works with the model inside."""

TRIPTYCH = (sys.executable, "-m", "triptych_local")
TIMEOUT = 600.0


@dataclass
class Times:
    """Seconds of one thing, as often as it was measured; CPU seconds where a process did it."""

    what: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def line(self) -> str:
        """A row of the table."""
        cpu = f"{statistics.median(self.cpu_seconds):10.2f}" if self.cpu_seconds else " " * 10
        return f"{self.what:48}{statistics.median(self.seconds):10.2f}{min(self.seconds):10.2f}{cpu}"


def measured(what: str, repetitions: int, *words: str, **environment: str) -> Times:
    """Times of a command. Raises CalledProcessError if it fails."""
    times = Times(what)
    for _ in range(repetitions):
        before, began = os.times(), time.perf_counter()
        subprocess.run(
            words, check=True, timeout=TIMEOUT, env=os.environ | environment, stdout=subprocess.DEVNULL
        )
        times.seconds.append(time.perf_counter() - began)
        after = os.times()
        used = (after.children_user + after.children_system) - (before.children_user + before.children_system)
        times.cpu_seconds.append(used)
    return times


def up_and_down(model: str, folder: Path) -> float:
    """Seconds from `triptych up` to its line that says that it is ready; then it is stopped."""
    began = time.perf_counter()
    process = subprocess.Popen(
        (*TRIPTYCH, "up", "--model", model),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    seconds = time.perf_counter() - began
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    if not said.startswith("ready on "):
        raise SystemExit(f"'triptych up' did not start: {said}")
    return seconds


async def restarts(model: str, repetitions: int) -> list[Times]:
    """Seconds from SIGKILL to serving, of each service while the others serve."""
    with temporary_folder() as folder:
        said: list[str] = []
        programs = split_programs(Addresses.in_folder(folder), ModelChoice(model=model))
        async with running(programs, said.append) as services:
            return [await restarted(service, said, repetitions) for service in services]


async def restarted(service: ServiceProcess, said: Sequence[str], repetitions: int) -> Times:
    """Of one service."""
    again = f"the {service.program.name} serves again"
    times = Times(f"{service.program.name}: killed to serving")
    for _ in range(repetitions):
        count, began = said.count(again), time.perf_counter()
        service.kill()
        while said.count(again) == count:
            await asyncio.sleep(0.01)
        times.seconds.append(time.perf_counter() - began)
    return times


def measure(model: str, repetitions: int) -> list[Times]:
    """All of it."""
    times = [
        measured(f"{name}: imports", repetitions, sys.executable, "-c", f"import {modules}")
        for name, modules in IMPORTS.items()
    ]
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        out = str(Path(folder) / "out.png")
        words = (*TRIPTYCH, "generate", "a zebra", "--seed", "1", "--model", model, "-o", out)
        ready = Times("triptych up: to ready")
        ready.seconds = [up_and_down(model, Path(folder)) for _ in range(repetitions)]
        times += [
            ready,
            measured("triptych generate --fused: to the picture", repetitions, *words, "--fused"),
            measured("triptych generate: to the picture", repetitions, *words, XDG_RUNTIME_DIR=folder),
        ]
    return times + asyncio.run(restarts(model, repetitions))


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--repetitions", type=int, default=3)
    arguments: argparse.Namespace = options.parse_args()
    print(f"load of the last minute before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    times = measure(arguments.model, arguments.repetitions)
    print(f"{'':48}{'median, s':>10}{'least, s':>10}{'CPU, s':>10}")
    print("\n".join(map(Times.line, times)))
    results: list[Mapping[str, object]] = [vars(one) for one in times]
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()
