"""One trace from an HTTP client through the gateway and every service, as an OTLP receiver has it."""

import json
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import otlp, telemetry
from tests.gateway.conftest import Answer, ask, ask_for, free_port
from tests.gateway.test_service import asked, gateway_to
from tests.local.conftest import running_up
from tests.shared.scripted_coordinator import ScriptedCoordinator
from triptych.telemetry.instruments import HTTP_ROUTE, HTTP_STATUS

SECONDS = 60.0
GENERATE = "triptych.v1.ImageGenerationService/Generate"
ROUTE = "/v1/images/generations"
CLIENT = f"{7:016x}"  # the span of who asks


@dataclass(frozen=True)
class Traced:
    """A fleet whose spans are received, and where its gateway shows its metrics."""

    received: otlp.Received
    url: str
    metrics: str

    def ask(self, number: int, **fields: object) -> tuple[Answer, list[otlp.Span]]:
        """The answer to a request of a trace, and the spans of that once all are there."""
        trace_id = f"{number:032x}"
        headers = {"traceparent": f"00-{trace_id}-{CLIENT}-01", "x_request_id": f"order-{number}"}
        answer = ask_for(self.url, headers, **fields)
        until = time.monotonic() + SECONDS
        while not is_whole(spans := self.received.trace(trace_id)):
            assert time.monotonic() < until, f"these spans came alone: {[span.name for span in spans]}"
            time.sleep(0.05)
        return answer, spans


def is_whole(spans: Sequence[otlp.Span]) -> bool:
    """Whether the gateway's span, all parents and what the stages did for every call of one are there.

    A service sends its spans in the order in which they end, each service when it likes.
    """
    parents = {span.parent_id for span in spans}
    calls = {span.span_id for span in spans if span.name in {"text encoder", "denoiser", "VAE codec"}}
    known = {span.span_id for span in spans} | {CLIENT}
    return f"POST {ROUTE}" in {span.name for span in spans} and parents <= known and calls <= parents


def five_free_ports() -> int:
    """The first of them."""
    while True:
        first = min(free_port(), 65530)
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + 5):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Traced]:
    port, first = free_port(), five_free_ports()
    metrics = f"http://127.0.0.1:{first + 4}/metrics"
    options = ("--model", tiny_checkpoint, "--http", f"127.0.0.1:{port}", "--metrics-port", str(first))
    with pytest.MonkeyPatch.context() as monkeypatch, otlp.over_grpc() as (received, environment):
        for name, value in (environment | {"OTEL_BSP_SCHEDULE_DELAY": "100"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TRIPTYCH_TRACE_PROMPTS", "true")
        with running_up(tmp_path_factory.mktemp("run"), *options):
            yield Traced(received, f"http://127.0.0.1:{port}", metrics)


def path_of(span: otlp.Span, by_id: Mapping[str, otlp.Span]) -> list[str]:
    """The names from a span up to the one that the client's own is above."""
    path = [span.name]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        path.append(span.name)
    assert span.parent_id == CLIENT
    return path


def test_one_trace_covers_client_gateway_coordinator_and_every_stage(traced: Traced) -> None:
    answer, spans = traced.ask(0x1, prompt="a secret cat", num_inference_steps=2)
    assert answer.headers["X-Request-Id"] == "order-1"
    by_id = {span.span_id: span for span in spans}
    names = Counter(span.name for span in spans)
    assert names["denoiser"] == names["triptych.v1.DenoiserService/Predict"] == 2
    steps = sorted(span.attributes["triptych.step"] for span in spans if span.name == "denoiser")
    assert steps == [1, 2]
    above = {span.name: path_of(span, by_id)[1:] for span in spans}
    top = [GENERATE, f"POST {ROUTE}"]
    assert above["triptych.v1.TextEncoderService/Encode"] == ["text encoder", *top]
    assert above["triptych.v1.DenoiserService/Predict"] == ["denoiser", *top]
    for span in spans:
        if span.service in {"text-encoder", "denoiser", "vae-codec"} and "Put" not in span.name:
            assert span.attributes["triptych.compute.seconds"] > 0
            assert span.attributes["triptych.queue.seconds"] >= 0
    assert above["triptych.v1.VaeCodecService/Decode"] == ["VAE codec", *top]
    (request,) = [span for span in spans if span.name == GENERATE]
    assert request.attributes["triptych.prompt"] == ["a secret cat"]
    assert not any("secret" in span.text for span in spans if span is not request)


def test_every_call_of_a_denoiser_says_who_answered_and_where_its_time_went(traced: Traced) -> None:
    _, spans = traced.ask(0x2, prompt="a cat", num_inference_steps=3)
    asked = [span.attributes for span in spans if span.name == "denoiser"]
    answered = [span.attributes for span in spans if span.name == "triptych.v1.DenoiserService/Predict"]
    assert len(asked) == len(answered) == 3
    for one in asked:
        assert one["server.address"].endswith("/denoiser.sock")
        assert one["triptych.rows"] == 2
        assert one["triptych.compute.seconds"] > 0
    for one in answered:
        assert {"triptych.batch.rows", "triptych.batch.tokens", "triptych.queue.seconds"} <= one.keys()


def test_the_gateway_shows_requests_by_route_and_status(traced: Traced) -> None:
    ask_for(traced.url, prompt="a cat", num_inference_steps=1)
    ask(f"{traced.url}/no/such/path")
    text = urllib.request.urlopen(traced.metrics, timeout=10).read().decode()
    counted = [
        line for line in text.splitlines() if line.startswith("http_server_request_duration_seconds_c")
    ]
    assert any(f'http_route="{ROUTE}"' in line and 'code="200"' in line for line in counted)
    assert not any("/no/such" in line for line in counted)
    assert "http_server_active_requests" in text


async def test_a_stranger_decides_no_label_and_no_span_is_left_open(tmp_path: Path) -> None:
    telemetry.metric_reader()
    exporter = telemetry.span_exporter()
    seen = {HTTP_ROUTE: ROUTE, HTTP_STATUS: 200}
    before = telemetry.count("http.server.request.duration", seen)
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        assert (await asked(url)).status == 200
        assert (await asked(f"{url}/elsewhere")).status == 404
    assert telemetry.count("http.server.request.duration", seen) == before + 1
    assert telemetry.value("http.server.active_requests") == 0
    routes = {
        point.attributes.get(HTTP_ROUTE, "") for point in telemetry.points("http.server.request.duration")
    }
    assert not any("elsewhere" in route for route in routes)
    names = {span.name for span in exporter.get_finished_spans()}
    assert {f"POST {ROUTE}", "POST"} <= names
    assert json.dumps(sorted(names)).find("elsewhere") == -1
