"""What each process imports until it serves, and how long that takes, by package.

    python -m benchmarks.speed.imports

Each service is started by itself and stopped when it says that it is ready; the commands and the client are
only imported. Seconds are the processor's, up to then; milliseconds are each import's own, without what it
imports in turn, summed by package. Python's -X importtime, which tells them, makes imports a little slower.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.command_line import parser, write_json

STAGES = ("text_encoder", "denoiser", "vae_codec")
READY = "ready on "
IMPORT = "import sys, {}; print('ready on nothing', file=sys.stderr); sys.stdin.read()"
_IMPORT = "import time:"
PACKAGES = 6
"""How many packages a row of the table names."""


@dataclass(frozen=True)
class Imports:
    """What a process imported.

    microseconds: of each module's own code, by its name. Python does not tell it of modules that
        importlib.import_module was asked for, only of what these import.
    processor_seconds: what the process took until it was ready.
    """

    process: str
    microseconds: Mapping[str, int]
    processor_seconds: float

    def by_package(self) -> Counter[str]:
        """Milliseconds of each top-level package."""
        packages: Counter[str] = Counter()
        for module, own in self.microseconds.items():
            packages[module.partition(".")[0]] += own
        return Counter({package: round(own / 1000) for package, own in packages.items()})

    def row(self) -> str:
        """A row of the table."""
        most = ", ".join(f"{package} {own}" for package, own in self.by_package().most_common(PACKAGES))
        total, modules = sum(self.microseconds.values()) / 1e6, len(self.microseconds)
        return f"| {self.process} | {self.processor_seconds:.2f} | {total:.2f} | {modules} | {most} |"


def commands(folder: Path, model: str) -> dict[str, Sequence[str]]:
    """The words after `python` of each process; sockets are in the folder."""
    sockets = {name: f"unix:{folder / name}.sock" for name in (*STAGES, "coordinator")}
    targets = [word for name in STAGES for word in (f"--{name.replace('_', '-')}", sockets[name])]
    services = {
        name.replace("_", " "): [f"triptych_{name}", "--model", model, "--listen", sockets[name]]
        for name in STAGES
    } | {
        "coordinator": [
            "triptych_coordinator",
            "--model",
            model,
            "--listen",
            sockets["coordinator"],
            *targets,
        ],
        "gateway": ["triptych_gateway", "--listen", "127.0.0.1:0", "--coordinator", sockets["coordinator"]],
    }
    others = {
        "triptych up": "triptych_local.cli, triptych_local.commands.up",
        "triptych generate": "triptych_local.cli, triptych_local.commands.generate",
        "triptych --help": "triptych_local.cli",
        "client": "triptych.client",
    }
    return {
        **{name: ["-m", *words, "--drain-seconds", "0"] for name, words in services.items()},
        **{name: ["-c", IMPORT.format(modules)] for name, modules in others.items()},
    }


def imports(process: str, words: Sequence[str]) -> Imports:
    """Runs Python with these words until it says that it is ready. Raises RuntimeError if it does not."""
    own: dict[str, int] = {}
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *words],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRIPTYCH_LOG_FORMAT": "text"},
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if READY in line:
                times = psutil.Process(running.pid).cpu_times()
                running.terminate()
                running.communicate()
                return Imports(process, own, times.user + times.system)
            columns = line.removeprefix(_IMPORT).split("|")
            if len(columns) == 3 and columns[0].strip().isdigit():
                own[columns[2].strip()] = int(columns[0])
            else:
                said.append(line)
    raise RuntimeError(f"{process} did not get ready: {''.join(said)}")


def main() -> None:
    """Prints the table."""
    arguments: argparse.Namespace = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        table = [imports(*command) for command in commands(Path(folder), arguments.model).items()]
    print("| process | processor, s | imports, s | modules | of these, ms |\n|---|---|---|---|---|")
    print("\n".join(map(Imports.row, table)))
    write_json(arguments.out, [vars(one) for one in table])


if __name__ == "__main__":
    main()
