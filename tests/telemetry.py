"""What this process's services export, read in memory. Providers are set once, so counts go on."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Attributes = Mapping[str, str | bool]


@functools.cache
def metric_reader() -> InMemoryMetricReader:
    """Reads every metric, from the first call on."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


@functools.cache
def span_exporter() -> InMemorySpanExporter:
    """Has every span that ended, from the first call on."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def spans(trace_id: str) -> list[ReadableSpan]:
    """Those of a trace, written as W3C does, in the order of their ends."""
    found = span_exporter().get_finished_spans()
    return [one for one in found if one.context and trace.format_trace_id(one.context.trace_id) == trace_id]


def points(name: str, attributes: Attributes | None = None) -> Iterator[Any]:
    """The data points of a metric that have these attributes."""
    wanted = attributes or {}
    data = metric_reader().get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == name:
                    found = metric.data.data_points
                    yield from (one for one in found if wanted.items() <= one.attributes.items())


def value(name: str, attributes: Attributes | None = None) -> float:
    """A counter or level summed over the points with these attributes, 0 without any."""
    return float(sum(point.value for point in points(name, attributes)))


def count(name: str, attributes: Attributes | None = None) -> int:
    """How many values a histogram has that have these attributes."""
    return sum(point.count for point in points(name, attributes))


def total(name: str, attributes: Attributes | None = None) -> float:
    """The sum of those values."""
    return float(sum(point.sum for point in points(name, attributes)))
