"""Lines of the log: for people and for programs, one at the end of each request."""

import json
import logging
import re
import sys

import grpc
import pytest
from opentelemetry import trace

from tests import telemetry
from tests.shared.serving.test_server import Program, programs, request
from triptych.serving.log_lines import JsonLines, TextLines, chosen_format, error_in
from triptych.serving.logs import request_id
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

__all__ = ["programs"]


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": level, "levelname": "INFO", **extra})


def test_a_line_is_a_json_object_with_its_figures_and_the_span_that_is_current() -> None:
    telemetry.span_exporter()
    done = record('a "quoted"\nline', call={"status": "OK"}, figures={"rows": 56})
    with trace.get_tracer("test").start_as_current_span("here") as span:
        (line,) = JsonLines("text encoder").format(done).splitlines()
    told = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "level": "INFO",
        "service": "text-encoder",
        "message": 'a "quoted"\nline',
        "trace_id": trace.format_trace_id(span.get_span_context().trace_id),
        "span_id": trace.format_span_id(span.get_span_context().span_id),
        "status": "OK",
        "rows": 56,
    }


def test_people_read_figures_behind_the_words() -> None:
    line = TextLines("denoiser").format(record("done", call={"status": "OK"}, figures={"rows": 56}))
    assert line.endswith(" INFO denoiser: done rows=56")


@pytest.mark.parametrize("kind", [TextLines, JsonLines])
def test_the_words_of_exceptions_are_told_only_where_requests_may_be(kind: type[logging.Formatter]) -> None:
    words = "a secret prompt"
    try:
        raise ValueError(words)
    except ValueError:
        failed = record("it failed", exc_info=sys.exc_info())
    assert "ValueError" in kind("denoiser").format(failed)
    failed.exc_text = None
    assert "ValueError: a sec" not in kind("denoiser").format(failed)
    failed.exc_text = None
    assert "ValueError: a sec" in kind("denoiser", True).format(failed)  # type: ignore[call-arg]


def test_an_error_is_found_in_lines_of_either_form() -> None:
    said = logging.LogRecord("", logging.ERROR, "", 0, "no such model: 'x'", None, None)
    for kind in (TextLines, JsonLines):
        assert error_in(kind("denoiser").format(said)) == "no such model: 'x'"
    for line in ("", "{}", "[1]", '{"level": "INFO", "message": "x"}', "2026-01-01T00:00:00Z INFO a: b"):
        assert error_in(line) is None


def test_auto_is_json_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert chosen_format("auto") == "json"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert chosen_format("auto") == "text"
    assert chosen_format("json") == "json"


@pytest.mark.parametrize("sent", [None, b"1", "", "a b", "a\nb", "é", "x" * 129])
def test_a_request_has_a_name_that_can_stand_in_a_line(sent: str | bytes | None) -> None:
    assert re.fullmatch("[0-9a-f]{32}", request_id(sent))
    assert request_id("order-66") == "order-66"


def test_every_line_of_a_process_is_json_and_a_request_has_one(
    programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIPTYCH_LOG_FORMAT")  # so that auto finds no terminal
    program = Program("--listen", "127.0.0.1:0", "--drain-seconds", "0")
    programs.append(program)
    ready = json.loads(program.line("ready on"))
    with grpc.insecure_channel(ready["message"].split()[2]) as channel:
        call = ImageGenerationServiceStub(channel).GenerateImages.with_call  # type: ignore[attr-defined]
        _, ended = call(request("a cat"), metadata=[("x-request-id", "order-66")])
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff", metadata=[])
    assert dict(ended.trailing_metadata())["x-request-id"] == "order-66"
    assert refused.value.code() is not grpc.StatusCode.OK
    program.process.terminate()
    assert program.process.stderr is not None
    lines = [json.loads(line) for line in program.process.stderr.read().splitlines()]
    requests = [line for line in lines if line.get("method", "").endswith("/GenerateImages")]
    assert [line["status"] for line in requests] == ["OK"]
    assert requests[0]["request_id"] == "order-66"
    assert lines[-1]["message"] == "stopped"
