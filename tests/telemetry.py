"""What this process's services export, read in memory. Providers are set once, so counts go on."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

Attributes = Mapping[str, str | bool]


@functools.cache
def metric_reader() -> InMemoryMetricReader:
    """Reads every metric, from the first call on."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


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
