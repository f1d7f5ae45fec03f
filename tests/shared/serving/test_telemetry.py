"""Metrics and traces leave a server's process: for Prometheus, and by OTLP over gRPC and HTTP."""

import gzip
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from tests.shared.serving.test_server import Program as Scripted
from tests.shared.serving.test_server import request
from triptych.errors import StartError
from triptych.serving.settings import ServerSettings
from triptych.telemetry.exporting import switched_on
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub


@pytest.fixture
def started() -> Iterator[list[Scripted]]:
    programs: list[Scripted] = []
    yield programs
    for program in programs:
        program.process.kill()
        program.process.communicate()


def called(programs: list[Scripted], *arguments: str) -> tuple[Scripted, str]:
    """A program that answered one call, and where its metrics are, if it says so."""
    program = Scripted("--listen", "127.0.0.1:0", "--drain-seconds", "0", *arguments)
    programs.append(program)
    metrics = program.line("metrics on").split()[-1] if "--metrics-listen" in arguments else ""
    with grpc.insecure_channel(program.line("ready on").split()[5]) as channel:
        ImageGenerationServiceStub(channel).GenerateImages(request("a cat"))
    return program, metrics


def test_prometheus_reads_a_calls_time_by_method_and_status(started: list[Scripted]) -> None:
    _, address = called(started, "--metrics-listen", "127.0.0.1:0")
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    counted = [
        line for line in text.splitlines() if line.startswith("rpc_server_call_duration_seconds_count")
    ]
    assert any("GenerateImages" in line and 'status_code="OK"' in line for line in counted)
    assert "process_memory_usage_bytes" in text
    assert 'service_namespace="triptych"' in text


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP receiver that keeps the names of metrics."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def take(self, message: Any) -> None:
        for resource in message.resource_metrics:
            for scope in resource.scope_metrics:
                self.names |= {metric.name for metric in scope.metrics}

    def Export(self, request: Any, context: Any) -> Any:
        self.take(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def test_otlp_over_grpc_brings_metrics_at_the_latest_when_a_server_stops(
    started: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    program, _ = called(started)
    program.process.terminate()
    assert program.end() == 0
    server.stop(None)
    assert {"rpc.server.call.duration", "process.memory.usage"} <= collector.names


def test_otlp_over_http_brings_metrics_too(started: list[Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            collector.take(metrics_service_pb2.ExportMetricsServiceRequest.FromString(data))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
        program, _ = called(started)
        program.process.terminate()
        assert program.end() == 0
        server.shutdown()
    assert "rpc.server.call.duration" in collector.names


def test_an_unknown_protocol_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(StartError, match="grpc, http/protobuf"):
        switched_on("test", None)


def test_switched_off_nothing_of_the_sdk_is_imported() -> None:
    program = (
        "import sys; from triptych.telemetry.exporting import switched_on; switched_on('test', None);"
        "import triptych.serving.server; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []


def test_prometheus_needs_a_port() -> None:
    with pytest.raises(ValueError, match="host:port"):
        ServerSettings(metrics_listen="unix:/tmp/metrics")
