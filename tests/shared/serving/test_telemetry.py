"""Metrics and traces leave a server's process: for Prometheus, and by OTLP over gRPC and HTTP."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import grpc
import pytest

from tests import otlp
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


@pytest.mark.parametrize("receiver", [otlp.over_grpc, otlp.over_http])
def test_otlp_brings_spans_and_metrics_at_the_latest_when_a_server_stops(
    started: list[Scripted],
    monkeypatch: pytest.MonkeyPatch,
    receiver: Callable[[], AbstractContextManager[tuple[otlp.Received, dict[str, str]]]],
) -> None:
    with receiver() as (received, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        program, _ = called(started)
        program.process.terminate()
        assert program.end() == 0
    assert {"rpc.server.call.duration", "process.memory.usage"} <= received.metrics
    (span,) = received.spans
    assert (span.service, span.name) == ("coordinator", "triptych.v1.ImageGenerationService/GenerateImages")
    assert span.attributes["rpc.response.status_code"] == "OK"


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
