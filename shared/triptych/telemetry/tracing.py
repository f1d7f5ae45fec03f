"""Spans: one trace from a client through the coordinator to every stage, by W3C's traceparent.

Until `exporting.switched_on` they record nothing; a traceparent that came is sent on even then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from triptych.errors import TriptychError

MAX_STEP_SPANS = 100
"""Of a request; with more steps, a span stands for several, and has the calls of the first alone."""

_tracer = trace.get_tracer("triptych")
_w3c = TraceContextTextMapPropagator()
T = TypeVar("T")


@contextmanager
def span(name: str, attributes: Mapping[str, str | int] | None = None) -> Iterator[Span]:
    """The block in a span, as a client of someone. Errors' words may quote a request: they are not told."""
    with _tracer.start_as_current_span(
        name,
        kind=SpanKind.CLIENT,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except TriptychError as error:
            current.set_status(StatusCode.ERROR, error.code.name)
            raise


def received(name: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> Span:
    """The span of a call that came with this metadata; from now on the current one of this task."""
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    found = _w3c.extract(carrier)
    current = _tracer.start_span(name, found, SpanKind.SERVER)
    context.attach(trace.set_span_in_context(current, found))  # each call has a task of its own
    return current


def sent() -> tuple[tuple[str, str], ...] | None:
    """Metadata that says which span a call belongs to; None without one."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return tuple(carrier.items()) or None


def ids() -> dict[str, str]:
    """trace_id and span_id of the current span, as W3C writes them; nothing without one."""
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    trace_id, span_id = trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)
    return {"trace_id": trace_id, "span_id": span_id}


@contextmanager
def batch(spans: Iterable[Span], attributes: Mapping[str, int]) -> Iterator[None]:
    """The block in a span of a trace of its own, linked to those of the calls that share it."""
    recording = [one for one in spans if one.is_recording()]
    if not recording:
        yield
        return
    links = [Link(one.get_span_context()) for one in recording]
    for one in recording:
        one.set_attributes(dict(attributes))
    with _tracer.start_as_current_span(
        "batch",
        context.Context(),
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        except Exception as error:  # whose words may quote a request
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


async def in_steps(items: AsyncIterator[T], count: int) -> AsyncGenerator[T, None]:
    """The items, `count` of them, each made within a span "step", or several within one."""
    every, number = -(-count // MAX_STEP_SPANS), 0
    current: Span = trace.INVALID_SPAN
    try:
        while True:
            within = _folded(current)
            if number < count and number % every == 0:
                current.end()
                current = within = _tracer.start_span("step", attributes={"triptych.step": number + 1})
            with trace.use_span(within, record_exception=False, set_status_on_exception=False):
                item = await anext(items, None)
            if item is None:
                return
            number += 1
            yield item
    finally:
        current.end()


def _folded(current: Span) -> Span:
    """Stands for a span whose calls are not recorded."""
    found = current.get_span_context()
    return NonRecordingSpan(SpanContext(found.trace_id, found.span_id, False, TraceFlags(0)))


def note(attributes: Mapping[str, Any]) -> None:
    """Adds to the current span."""
    current = trace.get_current_span()
    if current.is_recording():
        current.set_attributes(dict(attributes))
