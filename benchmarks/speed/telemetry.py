"""What telemetry costs: pictures with it off, with metrics, and with metrics and traces, in one run.

python -m benchmarks.speed.telemetry [--repetitions 40] [--out telemetry.json]

Three fleets of the default model, four processes each; metrics and spans go by OTLP to a real receiver in
this process. They take turns, another one first each time, and each makes the same picture. Wall time is of
pictures. CPU time is all that a fleet's processes used from turn to turn, also between pictures, when spans
are sent. What is off costs calls of OpenTelemetry's API that do nothing: as many as the receiver gets records
and spans for a picture, each as long as it takes here.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent import futures
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import psutil
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from benchmarks import command_line
from benchmarks.processes import serving
from triptych.client import AsyncClient
from triptych.telemetry import instruments, tracing
from triptych_local.running.folders import temporary_folder
from triptych_local.running.programs import Addresses, split_programs
from triptych_local.running.settings import ModelChoice

EXPORT_MILLISECONDS = 5000
PAUSE_SECONDS = 0.1  # between pictures: threads of the one before stop spinning
PROMPT = "a zebra to the left of a fire truck"
TIMED_CALLS = 50_000
AIM = 0.01
OFF, METRICS, TRACES = "off", "metrics", "metrics and traces"


class Receiver:
    """An OTLP receiver that counts the spans of a fleet, and the values in its histograms."""

    def __init__(self) -> None:
        self.spans = 0
        self.latest: dict[tuple[bytes, str], int] = {}

    @property
    def records(self) -> int:
        """Values of all histograms."""
        return sum(self.latest.values())

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its endpoint."""
        server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self), server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:
        self._receiver.spans += sum(
            len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
        )
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_metrics:
            process = resource.resource.SerializeToString()
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                values = sum(point.count for point in metric.histogram.data_points)
                self._receiver.latest[process, metric.name] = values
        return metrics_service_pb2.ExportMetricsServiceResponse()


@dataclass
class Way:
    """A fleet with telemetry in some way, and what was measured of it: seconds a turn."""

    client: AsyncClient
    processes: list[psutil.Process]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _cpu_before: float = 0.0

    def cpu_passed(self) -> float:
        """CPU seconds of its processes since this was last asked."""
        now = sum(sum(process.cpu_times()[:2]) for process in self.processes)
        passed, self._cpu_before = now - self._cpu_before, now
        return passed


@asynccontextmanager
async def fleet(model: str, environment: Mapping[str, str]) -> AsyncIterator[Way]:
    """The services as `triptych up` starts them."""
    with temporary_folder() as folder:
        addresses = Addresses.in_folder(folder)
        programs = [
            replace(program, environment={**program.environment, **environment})
            for program in split_programs(addresses, ModelChoice(model=model))
        ]
        async with serving(programs), AsyncClient(addresses.coordinator) as client:
            running = {" ".join(child.cmdline()): child for child in psutil.Process().children()}
            yield Way(client, [running[" ".join(program.command())] for program in programs])


async def measure(model: str, repetitions: int, receiver: Receiver) -> dict[str, Way]:
    """The ways' pictures, turn by turn."""
    async with AsyncExitStack() as stack:
        endpoint = stack.enter_context(receiver.listening())
        common = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": str(EXPORT_MILLISECONDS),
        }
        elsewhere = stack.enter_context(Receiver().listening())
        ways = {
            OFF: await stack.enter_async_context(fleet(model, {})),
            METRICS: await stack.enter_async_context(
                fleet(
                    model,
                    {**common, "OTEL_EXPORTER_OTLP_ENDPOINT": elsewhere, "OTEL_TRACES_EXPORTER": "none"},
                )
            ),
            TRACES: await stack.enter_async_context(fleet(model, common)),
        }
        for turn in range(-2, repetitions):
            names = [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]
            for name in names:
                began = time.perf_counter()
                await ways[name].client.generate(PROMPT, seed=max(turn, 0))
                ways[name].wall.append(time.perf_counter() - began)
                await asyncio.sleep(PAUSE_SECONDS)
            for way in ways.values():
                way.cpu.append(way.cpu_passed())
            if turn < 0:  # warm-up
                for way in ways.values():
                    way.wall.clear()
                    way.cpu.clear()
            print(f"\rturn {turn + 1} of {repetitions}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        await asyncio.sleep(EXPORT_MILLISECONDS / 1000 + 1)  # until the receiver has it all
    return ways


def seconds_of(call: Callable[[], object]) -> float:
    """CPU time of a call that does nothing."""
    began = time.thread_time()
    for _ in range(TIMED_CALLS):
        call()
    return (time.thread_time() - began) / TIMED_CALLS


def off_seconds(records: float, spans: float) -> float:
    """What so many records and spans take while telemetry is off."""

    def empty_span() -> None:
        with tracing.span("denoiser", {"triptych.rows": 2}):
            tracing.note({"triptych.queue.seconds": 0.0})

    record = seconds_of(lambda: instruments.batch_duration.record(0.1, {"triptych.stage": "denoiser"}))
    return records * record + spans * seconds_of(empty_span)


def difference(way: list[float], base: list[float]) -> tuple[float, float]:
    """How much more a way took than the base in the same turns, as a share of that; its standard error."""
    differences = [one - other for one, other in zip(way, base, strict=True)]
    whole = statistics.fmean(base)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return statistics.fmean(differences) / whole, error / whole


def report(ways: dict[str, Way], receiver: Receiver) -> dict[str, Any]:
    """All results, ready for JSON."""
    pictures = len(ways[OFF].wall) + 2
    records, spans = receiver.records / pictures, receiver.spans / pictures
    off = off_seconds(records, spans)
    return {
        "pictures": len(ways[OFF].wall),
        "wall_seconds": {name: way.wall for name, way in ways.items()},
        "cpu_seconds": {name: way.cpu for name, way in ways.items()},
        "records_per_picture": records,
        "spans_per_picture": spans,
        "off_seconds_per_picture": off,
        "off_share_of_cpu": off / statistics.fmean(ways[OFF].cpu),
        "load_average": os.getloadavg()[0],
    }


def print_report(results: dict[str, Any]) -> None:
    """The results for people."""
    wall, cpu = results["wall_seconds"], results["cpu_seconds"]
    head = f"of {results['pictures']} pictures"
    print(f"{head:22}{'wall, p50':>12}{'CPU, mean':>12}  more than off")
    for name in wall:
        more = ""
        if name != OFF:
            (by_cpu, cpu_error), (by_wall, wall_error) = (
                difference(kind[name], kind[OFF]) for kind in (cpu, wall)
            )
            more = f"CPU {by_cpu:+.2%} ± {cpu_error:.2%}, wall {by_wall:+.2%} ± {wall_error:.2%}"
        print(
            f"{name:22}{statistics.median(wall[name]):10.3f} s{statistics.fmean(cpu[name]):10.3f} s  {more}"
        )
    print(
        f"\na picture has {results['records_per_picture']:.0f} records and "
        f"{results['spans_per_picture']:.0f} spans; off they cost "
        f"{1e6 * results['off_seconds_per_picture']:.0f} µs, "
        f"{results['off_share_of_cpu']:.3%} of its CPU time"
    )
    print(f"aim: on at most {AIM:.0%} more. The machine's load was {results['load_average']:.1f}.")


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=40, help="pictures of each way (default 40)")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    receiver = Receiver()
    ways = asyncio.run(measure(arguments.model, arguments.repetitions, receiver))
    results = report(ways, receiver)
    print_report(results)
    command_line.write_json(arguments.out, results)


if __name__ == "__main__":
    main()
