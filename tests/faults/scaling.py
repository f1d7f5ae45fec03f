"""A real local fleet that is scaled from zero and back by what its coordinator tells KEDA.

    python -m tests.faults.scaling --plot scaling.png

Stands in for KEDA and the HorizontalPodAutoscaler: StreamIsActive starts the first replica of a stage;
IsActive and GetMetrics are asked every few seconds, and the autoscaler's formula, with its tolerance and
stabilization, says how many processes of each stage there are. Meanwhile the number of clients rises and
falls. Ends with 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from tests.faults.fleet import STAGES
from triptych.client import AsyncClient
from triptych.errors import TriptychError
from triptych.keda import externalscaler_pb2 as keda
from triptych.keda.externalscaler_pb2_grpc import ExternalScalerStub
from triptych.serving.health import serves
from triptych_local.running.processes import until_serving

TOLERANCE = 0.1
"""The autoscaler's: so far the metric may be from its target without anything being done."""
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Scaling:
    """The ScaledObject of a stage and its autoscaler, times in seconds."""

    most: int
    target_rows: float
    linger: float = 10
    polling: float = 2
    cooldown: float = 20
    stabilization: float = 20

    def needed(self, rows: float) -> int:
        """How many replicas would be right for so many rows of late, of which few are as good as none."""
        return min(self.most, math.ceil(rows / self.target_rows - TOLERANCE))


SCALED = {
    "text_encoder": Scaling(most=2, target_rows=4),
    "denoiser": Scaling(most=3, target_rows=4),
    "vae_codec": Scaling(most=2, target_rows=4),
}


@dataclass
class Autoscaler:
    """desired = ceil(metric / target) of the largest within a while, so that it is slow to go down.

    As https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details has it.
    """

    scaling: Scaling
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def desired(self, now: float, metric: float, replicas: int) -> int:
        """How many replicas there should be, of at least one."""
        target = self.scaling.target_rows
        near = abs(metric / (target * replicas) - 1) <= TOLERANCE
        wanted = replicas if near else math.ceil(metric / target)
        wanted = min(max(wanted, 1), self.scaling.most)
        self._recent.append((now, wanted))
        while self._recent[0][0] < now - self.scaling.stabilization:
            self._recent.popleft()
        return max(wanted, min(replicas, max(one for _, one in self._recent)))


class Deployment:
    """The processes of one stage."""

    def __init__(self, stage: str, folder: Path, model: str | Path, most: int) -> None:
        self.stage = stage
        self.addresses = [f"unix:{folder}/{stage}-{number}.sock" for number in range(most)]
        self.processes: list[asyncio.subprocess.Process] = []
        self._model, self._log = str(model), folder / f"{stage}.log"

    async def scale(self, replicas: int) -> None:
        """Starts processes, or has the newest end as Kubernetes does."""
        while len(self.processes) < replicas:
            with self._log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", f"triptych_{self.stage}", "--model", self._model),
                    *("--listen", self.addresses[len(self.processes)], "--drain-seconds", "0.3"),
                    stderr=log,
                )
            self.processes.append(process)
        while len(self.processes) > replicas:
            await _ended(self.processes[-1])
            self.processes.pop()

    async def ready(self) -> int:
        """How many serve."""
        addresses = self.addresses[: len(self.processes)]
        return sum(await asyncio.gather(*(serves(one) for one in addresses)))


async def _ended(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


class Keda:
    """Scales one stage by what a coordinator says of it."""

    def __init__(self, channel: grpc.aio.Channel, deployment: Deployment, scaling: Scaling) -> None:
        self.activated_at: float | None = None
        self._stub: Any = ExternalScalerStub(channel)
        self._deployment, self._scaling = deployment, scaling
        self._autoscaler = Autoscaler(scaling)
        self._active_at = -math.inf
        self._one_at_a_time = asyncio.Lock()
        metadata = {
            "stage": deployment.stage,
            "targetRows": f"{scaling.target_rows:g}",
            "lingerSeconds": f"{scaling.linger:g}",
        }
        self._asked = keda.ScaledObjectRef(name=deployment.stage, scalerMetadata=metadata)

    async def follow(self) -> None:
        """The first replica, as soon as the coordinator says so; until it is cancelled."""
        async for said in self._stub.StreamIsActive(self._asked):
            if said.result:
                await self._activate()
        raise ConnectionError(f"the coordinator says no more whether the {self._deployment.stage} is needed")

    async def poll(self) -> None:
        """All others, and the way back; until it is cancelled."""
        while True:
            rows = await self.rows()
            if (await self._stub.IsActive(self._asked)).result:
                await self._activate()
            await self._adapt(time.monotonic(), rows)
            await asyncio.sleep(self._scaling.polling)

    async def rows(self) -> float:
        """Rows of late, by the one metric that the coordinator has for the stage."""
        (spec,) = (await self._stub.GetMetricSpec(self._asked)).metricSpecs
        request = keda.GetMetricsRequest(scaledObjectRef=self._asked, metricName=spec.metricName)
        (value,) = (await self._stub.GetMetrics(request)).metricValues
        return float(value.metricValueFloat)

    async def _activate(self) -> None:
        self._active_at = time.monotonic()
        async with self._one_at_a_time:
            if not self._deployment.processes:
                self.activated_at = self.activated_at or time.monotonic()
                await self._deployment.scale(1)

    async def _adapt(self, now: float, rows: float) -> None:
        async with self._one_at_a_time:
            replicas = len(self._deployment.processes)
            if replicas and now - self._active_at > self._scaling.cooldown:
                await self._deployment.scale(0)
            elif replicas:
                await self._deployment.scale(self._autoscaler.desired(now, rows, replicas))


@dataclass(frozen=True)
class Sample:
    """A stage at a moment: rows of late, replicas that were started, and those that serve."""

    at: float
    rows: float
    started: int
    ready: int


@dataclass
class Fleet:
    """A coordinator, the stages that it has, and what was seen of them."""

    address: str
    scaled: Mapping[str, Scaling]
    deployments: dict[str, Deployment]
    keda: dict[str, Keda]
    samples: dict[str, list[Sample]]

    async def until_replicas(self, stage: str, replicas: int) -> None:
        """Waits until there are so many processes of a stage, and all of them serve."""
        deployment = self.deployments[stage]
        while not (len(deployment.processes) == replicas == await deployment.ready()):
            await asyncio.sleep(SAMPLE_SECONDS)

    async def watch(self) -> None:
        """Takes samples until it is cancelled."""
        while True:
            for stage, one in self.deployments.items():
                rows, ready = await asyncio.gather(self.keda[stage].rows(), one.ready())
                self.samples[stage].append(Sample(time.monotonic(), rows, len(one.processes), ready))
            await asyncio.sleep(SAMPLE_SECONDS)


@asynccontextmanager
async def scaled_fleet(
    folder: Path, model: str | Path, scaled: Mapping[str, Scaling] = SCALED
) -> AsyncIterator[Fleet]:
    """With no replica of any stage. If what stands in for KEDA fails, so does the block."""
    listen = f"unix:{folder}/coordinator.sock"
    deployments = {stage: Deployment(stage, folder, model, scaled[stage].most) for stage in STAGES}
    async with AsyncExitStack() as stack:
        for one in deployments.values():
            stack.push_async_callback(one.scale, 0)
        process = await _coordinator(listen, folder / "coordinator.log", model, deployments)
        stack.push_async_callback(_ended, process)
        await asyncio.wait_for(until_serving(listen), 300)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(listen))
        scalers = {stage: Keda(channel, deployments[stage], scaled[stage]) for stage in STAGES}
        fleet = Fleet(listen, scaled, deployments, scalers, {stage: [] for stage in STAGES})
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fleet.watch())]
            for scaler in scalers.values():
                tasks += [group.create_task(scaler.follow()), group.create_task(scaler.poll())]
            yield fleet
            for task in tasks:
                task.cancel()


async def _coordinator(
    listen: str, log: Path, model: str | Path, deployments: Mapping[str, Deployment]
) -> asyncio.subprocess.Process:
    targets = [
        word
        for stage, one in deployments.items()
        for word in (f"--{stage.replace('_', '-')}", ",".join(one.addresses))
    ]
    with log.open("wb") as errors:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "triptych_coordinator", "--listen", listen, "--model", str(model)),
            *("--drain-seconds", "0", "--max-running", "8", "--max-wait-seconds", "300", *targets),
            stderr=errors,
        )


@dataclass
class Load:
    """Clients that ask for one picture after the other."""

    address: str
    steps: int = 20
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    first_answer: float = math.nan

    async def run(self, clients: int, stopped: asyncio.Event) -> None:
        """So many of them, until they are stopped."""
        await asyncio.gather(*(self._client(number, stopped) for number in range(clients)))

    async def _client(self, number: int, stopped: asyncio.Event) -> None:
        async with AsyncClient(self.address) as client:
            while not stopped.is_set():
                prompt = f"a zebra, {number}.{self.answered}"
                try:
                    await client.generate(prompt, num_inference_steps=self.steps, timeout=600)
                except TriptychError as error:
                    self.failed.append(f"{error.code.name}: {error.message}")
                else:
                    self.answered += 1
                    if self.answered == 1:
                        self.first_answer = time.monotonic()


Phases = Sequence[tuple[float, int]]
"""From when on how many clients there were."""


async def rise_and_fall(fleet: Fleet, load: Load, phases: Sequence[int], seconds: float) -> Phases:
    """So many clients for so long, one number after the other; then until the fleet is at zero."""
    marks = list[tuple[float, int]]()
    for clients in phases:
        marks.append((time.monotonic(), clients))
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(clients, stopped))
            await asyncio.sleep(seconds)
            stopped.set()
    marks.append((time.monotonic(), 0))
    for stage in STAGES:
        await fleet.until_replicas(stage, 0)
    return marks


def report(load: Load, fleet: Fleet, began: float) -> None:
    """In some lines."""
    print(f"{load.answered} pictures, {len(load.failed)} requests failed")
    for message in sorted(set(load.failed)):
        print(f"  {message}")
    print(f"first picture {load.first_answer - began:.1f} s after the first request, from nothing")
    for stage in STAGES:
        seen, scaling = fleet.samples[stage], fleet.scaled[stage]
        first = next((one.at - began for one in seen if one.ready), math.nan)
        gaps = [(later.at - one.at, one) for one, later in itertools.pairwise(seen)]
        needed = sum(gap * scaling.needed(one.rows) for gap, one in gaps)
        paid = sum(gap * one.started for gap, one in gaps)
        over = sum(gap * max(0, one.ready - scaling.needed(one.rows)) for gap, one in gaps)
        under = sum(gap * max(0, scaling.needed(one.rows) - one.ready) for gap, one in gaps)
        print(
            f"{stage}: told to start {(fleet.keda[stage].activated_at or math.nan) - began:.2f} s after the"
            f" first request, ready at {first:.1f} s, at most {max(one.ready for one in seen)} of"
            f" {scaling.most} replicas; replica-seconds: {needed:.0f} needed, {under:.0f} of them lacking,"
            f" {over:.0f} ready and not needed, {paid:.0f} run,"
            f" {scaling.most * (seen[-1].at - began):.0f} if all always ran"
        )


def plot(path: Path, fleet: Fleet, marks: Phases) -> None:
    """What was needed and what was there, over time."""
    from matplotlib import pyplot

    began = marks[0][0]
    figure, axes = pyplot.subplots(len(STAGES), 1, figsize=(9, 6.5), sharex=True, layout="constrained")
    for axis, stage in zip(axes, STAGES, strict=True):
        scaling = fleet.scaled[stage]
        seen = [one for one in fleet.samples[stage] if one.at >= began - 2]
        times = [one.at - began for one in seen]
        needed = [scaling.needed(one.rows) for one in seen]
        ready = [one.ready for one in seen]
        axis.step(times, needed, where="post", label="needed by the rows", color="tab:orange")
        axis.step(times, ready, where="post", label="ready", color="tab:blue")
        lacking = [one < other for one, other in zip(ready, needed, strict=True)]
        spare = [one > other for one, other in zip(ready, needed, strict=True)]
        axis.fill_between(times, ready, needed, where=lacking, step="post", color="tab:red", alpha=0.3,
                          label="lacking")  # fmt: skip
        axis.fill_between(times, ready, needed, where=spare, step="post", color="tab:blue", alpha=0.12,
                          label="spare")  # fmt: skip
        axis.set_ylabel(f"{stage.replace('_', ' ')}s".replace("vae", "VAE"))
        axis.set_yticks(range(scaling.most + 1))
        axis.set_ylim(-0.1, scaling.most + 0.4)
        for at, clients in marks:
            axis.axvline(at - began, color="grey", linewidth=0.5)
            words = f" {clients} clients" if clients != 1 else " 1 client"
            axis.text(at - began, scaling.most + 0.15, words, fontsize=8, color="grey")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    axes[-1].set_xlabel("seconds since the first request")
    figure.savefig(path, dpi=100)


async def _measure(
    folder: Path, model: str | Path, steps: int, phases: Sequence[int], seconds: float
) -> tuple[Fleet, Load, Phases]:
    async with scaled_fleet(folder, model) as fleet:
        load = Load(fleet.address, steps)
        marks = await rise_and_fall(fleet, load, phases, seconds)
    return fleet, load, marks


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and scales."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 6, 2], help="one number after the other"
    )
    parser.add_argument("--seconds", type=float, default=40, help="of each number of clients")
    parser.add_argument("--steps", type=int, default=20, help="of each picture")
    parser.add_argument("--plot", type=Path, help="a file for the picture")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        fleet, load, marks = asyncio.run(
            _measure(Path(folder), given.model, given.steps, given.clients, given.seconds)
        )
    report(load, fleet, marks[0][0])
    if given.plot:
        plot(given.plot, fleet, marks)
    sys.exit(bool(load.failed))


if __name__ == "__main__":
    main()
