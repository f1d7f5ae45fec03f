"""Spans: one trace from a client through the coordinator to every stage, by W3C's traceparent.

Until `exporting.switched_on` they record nothing; a traceparent that came is sent on even then.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from triptych.errors import TriptychError

MAX_STEPS = 100
"""Of a request, whose calls have spans; of more, those of every second step have, or of every third, etc."""
STEP = "triptych.step"

_tracer = trace.get_tracer("triptych")
_w3c = TraceContextTextMapPropagator()
T = TypeVar("T")


@contextmanager
def span(name: str, attributes: Mapping[str, str | int]) -> Iterator[Span]:
    """The block in a span, as a client of someone. Errors' words may quote a request: they are not told."""
    step = context.get_value(STEP)
    if isinstance(step, int):
        attributes = {STEP: step, **attributes}
    current = _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
    token = context.attach(trace.set_span_in_context(current))
    try:
        yield current
    except TriptychError as error:
        current.set_status(StatusCode.ERROR, error.code.name)
        raise
    finally:
        context.detach(token)
        current.end()


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
    """The block in a span of a trace of its own, linked to those of the calls that share it.

    What a call has to itself its own span tells.
    """
    recording = [one for one in spans if one.is_recording()]
    if len(recording) < 2:
        yield
        return
    links = [Link(one.get_span_context()) for one in recording]
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
    """The items, `count` of them: calls that are made for one have a span with its number, if it is shown."""
    every = -(-count // MAX_STEPS)
    for number in itertools.count():
        token = context.attach(_step(number + 1, shown=number % every == 0))
        try:
            item = await anext(items, None)
        finally:
            context.detach(token)
        if item is None:
            return
        yield item


def _step(number: int, shown: bool) -> context.Context:
    """The current context in a step. In one that is not shown, a span stands for it that is not recorded."""
    within = context.set_value(STEP, number)
    if shown:
        return within
    found = trace.get_current_span().get_span_context()
    folded = SpanContext(found.trace_id, found.span_id, False, TraceFlags(0))
    return trace.set_span_in_context(NonRecordingSpan(folded), within)


def note(attributes: Mapping[str, Any]) -> None:
    """Adds to the current span."""
    current = trace.get_current_span()
    if current.is_recording():
        current.set_attributes(dict(attributes))


def add(amounts: Mapping[str, float]) -> None:
    """Adds to numbers of the current span, which are 0 at first."""
    current: Any = trace.get_current_span()
    if current.is_recording():
        so_far = current.attributes
        current.set_attributes({name: so_far.get(name, 0.0) + amount for name, amount in amounts.items()})
