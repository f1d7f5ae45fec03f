"""The dashboard and the alert rules of deploy/monitoring, and a real Prometheus that reads a real fleet.

    python -m tests.deploy.monitoring --picture dashboard.webp

Draws the dashboard's panels from Prometheus' answers, of a fleet under a load that rises and falls and of
which a denoiser is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.fleet import all_serve, processes
from tests.gateway.conftest import ask_for, free_port
from tests.local.conftest import Up, running_up
from triptych.client import AsyncClient
from triptych.errors import TriptychError

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
SCRAPE_SECONDS = 0.5
RATE_INTERVAL = "10s"
START_SECONDS = 60.0
GPU_ALONE = {"triptych_device_memory_usage_bytes", "triptych_device_memory_limit_bytes"}

Series = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """A panel as the dashboard's JSON has it."""

    said: dict[str, Any]

    @property
    def title(self) -> str:
        """What is above it."""
        return str(self.said["title"])

    def queries(self) -> list[tuple[str, str]]:
        """Each with its legend; Grafana puts the interval in, which follows from the one of scrapes."""
        return [
            (target["expr"].replace("$__rate_interval", RATE_INTERVAL), target.get("legendFormat", ""))
            for target in self.said["targets"]
        ]


def panels() -> list[Panel]:
    """Of the dashboard, rows left out."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [Panel(one) for one in dashboard["panels"] if one["type"] != "row"]


def rules() -> str:
    """The alert rules as Prometheus itself takes them, by the command that their head says."""
    file = MONITORING / "alerts.yaml"
    (command,) = re.findall(r"^#   (sed .*) > ", file.read_text(), re.MULTILINE)
    made = subprocess.run(
        command, shell=True, cwd=MONITORING.parents[1], capture_output=True, text=True, check=True
    )
    return made.stdout


def names(expression: str) -> set[str]:
    """The metrics that a query asks for."""
    bare = re.sub(r"\{[^}]*\}|\bby \([^)]*\)|\[[^]]*\]", "", expression)
    return set(re.findall(r"\b[a-z]+_\w+\b(?! ?\()", bare))


class Prometheus:
    """A running Prometheus."""

    def __init__(self, address: str, targets: Path) -> None:
        self._address, self._targets = address, targets

    def reads(self, up: Up) -> None:
        """Has the services of a fleet as targets, where they last said that their metrics are."""
        found = {
            match[1] for line in list(up.lines) if (match := re.search(r"metrics on http://([^/]+)/", line))
        }
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": sorted(found)}]))
        new.replace(self._targets)

    def ask(self, path: str, **asked: str) -> Any:
        """What its API answers."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)["data"]

    def has(self, query: str) -> bool:
        """Whether a query has an answer that is a number."""
        return any(not math.isnan(float(one["value"][1])) for one in self.ask("query", query=query)["result"])

    def over_time(self, query: str, seconds: float) -> list[Series]:
        """What it answered over the last seconds, a value a second."""
        now = time.time()
        asked = {"start": f"{now - seconds}", "end": f"{now}", "step": "1"}
        return list(self.ask("query_range", query=query, **asked)["result"])

    def is_ready(self) -> bool:
        """Whether it answers."""
        with suppress(OSError), urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
            return True
        return False


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the alert rules. Nothing is read yet."""
    targets, address = folder / "targets.json", f"127.0.0.1:{free_port()}"
    (folder / "triptych.yaml").write_text(rules())
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS * 1000:.0f}ms", "evaluation_interval": "1s"},
        "rule_files": ["triptych.yaml"],
        "scrape_configs": [
            {
                "job_name": "triptych",
                "scrape_timeout": f"{SCRAPE_SECONDS * 1000:.0f}ms",
                "file_sd_configs": [{"files": [targets.name], "refresh_interval": "1s"}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        *(shutil.which("prometheus") or "prometheus", f"--config.file={folder}/prometheus.yaml"),
        *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}", "--log.level=warn"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        running = Prometheus(address, targets)
        until = time.monotonic() + START_SECONDS
        while not running.is_ready():
            said = (folder / "prometheus.log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Watched:
    """A fleet with a gateway and two denoisers, and the Prometheus that reads it."""

    up: Up
    http: str
    prometheus: Prometheus

    async def lose_a_denoiser(self) -> None:
        """Kills one if both serve; it comes back."""
        if await all_serve(self.up, "denoiser"):
            processes(self.up)["denoiser"][0].send_signal(signal.SIGKILL)

    @asynccontextmanager
    async def under_load(self, clients: int, steps: int = 20) -> AsyncIterator[None]:
        """So many clients ask for pictures, one of them by HTTP, and one makes mistakes."""
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._ask(number, steps, stopped))
            group.create_task(self._ask_by_http(stopped))
            group.create_task(self._err(stopped))
            yield
            stopped.set()

    async def _ask(self, number: int, steps: int, stopped: asyncio.Event) -> None:
        async with AsyncClient(self.up.coordinator()) as client:
            while not stopped.is_set():
                await client.generate(f"zebra {number % 3}", num_inference_steps=steps, timeout=300)

    async def _ask_by_http(self, stopped: asyncio.Event) -> None:
        while not stopped.is_set():
            answer = await asyncio.to_thread(ask_for, self.http, prompt="a zebra", size="64x64")
            assert answer.status == 200, answer.data

    async def _err(self, stopped: asyncio.Event) -> None:
        async with AsyncClient(self.up.coordinator()) as client:
            while not stopped.is_set():
                with suppress(TriptychError):
                    await client.generate("a zebra", height=7)
                await asyncio.sleep(0.5)


@contextmanager
def watched_fleet(folder: Path, model: str | Path) -> Iterator[Watched]:
    """Each service has its metrics at a port of its own, and says where."""
    http = f"127.0.0.1:{free_port()}"
    folder.joinpath("prometheus").mkdir()
    own = "TRIPTYCH_METRICS_LISTEN"
    before = os.environ.get(own)
    os.environ[own] = "127.0.0.1:0"
    try:
        with (
            prometheus(folder / "prometheus") as running,
            running_up(folder / "run", "--denoisers", "2", "--http", http, "--model", model) as up,
        ):
            running.reads(up)
            yield Watched(up, f"http://{http}", running)
    finally:
        if before is None:
            del os.environ[own]
        else:
            os.environ[own] = before


def draw(path: Path, prometheus: Prometheus, seconds: float) -> None:
    """The panels where Grafana has them, from what Prometheus answered over the last seconds."""
    from matplotlib import pyplot

    drawn = [one for one in panels() if one.said["type"] == "timeseries"]
    tops = sorted({one.said["gridPos"]["y"] for one in drawn})
    figure = pyplot.figure(figsize=(15, 2.6 * len(tops)), layout="constrained")
    grid = figure.add_gridspec(len(tops), 24)
    for panel in drawn:
        place = panel.said["gridPos"]
        axis = figure.add_subplot(grid[tops.index(place["y"]), place["x"] : place["x"] + place["w"]])
        _draw_panel(axis, panel, prometheus, seconds)
    figure.savefig(path, dpi=80)


def _draw_panel(axis: Any, panel: Panel, prometheus: Prometheus, seconds: float) -> None:
    unit = panel.said["fieldConfig"]["defaults"]["unit"]
    scale, label = {"bytes": (1e-6, "MB"), "percentunit": (100, "%"), "s": (1, "s")}.get(unit, (1, ""))
    end = time.time()
    lines = 0
    for query, legend in panel.queries():
        for series in prometheus.over_time(query, seconds):
            name = re.sub(r"\{\{(\w+)\}\}", lambda found, of=series: of["metric"].get(found[1], ""), legend)
            times = [at - end + seconds for at, _ in series["values"]]
            axis.plot(times, [float(value) * scale for _, value in series["values"]], linewidth=1, label=name)
            lines += 1
    axis.set_title(f"{panel.title}{f', {label}' if label else ''}", fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.set_xlim(0, seconds)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.4)
    axis.grid(alpha=0.2)
    if lines:
        axis.legend(fontsize=6, loc="upper left", framealpha=0.6, ncols=2 if lines > 4 else 1)
    else:
        axis.text(0.5, 0.5, "no GPU here", transform=axis.transAxes, ha="center", color="grey")


async def _rise_and_fall(watched: Watched, seconds: float) -> None:
    for clients in (1, 6, 2):
        async with watched.under_load(clients):
            await asyncio.sleep(seconds / 8)
            if clients == 6:
                await watched.lose_a_denoiser()
            for _ in range(10):
                await asyncio.sleep(seconds * 7 / 80)
                watched.prometheus.reads(watched.up)
    await asyncio.sleep(10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--picture", type=Path, required=True, help="a file for the picture")
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    parser.add_argument("--seconds", type=float, default=40, help="of each of three numbers of clients")
    given = parser.parse_args(arguments)
    if shutil.which("prometheus") is None:
        sys.exit("Prometheus is not installed (Debian: prometheus)")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, watched_fleet(Path(folder), given.model) as watched:
        began = time.monotonic()
        asyncio.run(_rise_and_fall(watched, given.seconds))
        draw(given.picture, watched.prometheus, time.monotonic() - began)


if __name__ == "__main__":
    main()
