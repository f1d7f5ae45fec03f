"""Metrics and traces on: OpenTelemetry's SDK with OTLP, as its environment variables say, and Prometheus."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from triptych.errors import StartError
from triptych.telemetry import instruments

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import ExemplarFilter
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

PROTOCOLS = ("grpc", "http/protobuf")


def otlp_is_wanted(signal: str) -> bool:
    """Whether the environment has an OTLP endpoint for "TRACES" or "METRICS", and does not switch it off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    names = "OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
    return any(os.environ.get(name) for name in names)


def switched_on(service: str, metrics_listen: str | None) -> Callable[[], None]:
    """Exports what is asked for; returns what sends the rest and stops. Without a wish it costs nothing.

    Args:
        service: what the service is called unless OTEL_SERVICE_NAME says otherwise, e.g. "denoiser".
        metrics_listen: host:port of an endpoint for Prometheus; None for none.

    Raises:
        StartError: the extra telemetry is missing, or the address is taken, or the protocol unknown.
    """
    metrics, traces = otlp_is_wanted("METRICS"), otlp_is_wanted("TRACES")
    if not (metrics or traces or metrics_listen):
        return lambda: None
    try:
        resource = _resource(service)
        stops = [_metrics_on(resource, metrics_listen, metrics)] if metrics or metrics_listen else []
        return _one_after_the_other(stops + ([_traces_on(resource)] if traces else []))
    except ImportError as error:
        raise StartError(
            f"telemetry needs the package {error.name}: pip install 'triptych[telemetry]'"
        ) from error


def _one_after_the_other(stops: list[Callable[[], None]]) -> Callable[[], None]:
    def stop() -> None:
        for each in stops:
            each()

    return stop


def _resource(service: str) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE, Resource

    own = Resource({SERVICE_NAMESPACE: "triptych", SERVICE_INSTANCE_ID: str(uuid.uuid4())})
    given = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    unnamed = str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return own.merge(given).merge(Resource({SERVICE_NAME: service} if unnamed else {}))


def _metrics_on(resource: Resource, listen: str | None, otlp: bool) -> Callable[[], None]:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers: list[MetricReader] = [PeriodicExportingMetricReader(_metric_exporter())] if otlp else []
    stops: list[Callable[[], None]] = []
    if listen is not None:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        readers.append(PrometheusMetricReader())
        stops.append(_prometheus_endpoint(listen))
    provider = MeterProvider(readers, resource, _exemplar_filter())
    metrics.set_meter_provider(provider)
    _watch_process()
    return _one_after_the_other([*stops, provider.shutdown])


def _exemplar_filter() -> ExemplarFilter | None:
    """None, unless it is said otherwise: exemplars cost half as much again as what they are of."""
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter

    return None if os.environ.get("OTEL_METRICS_EXEMPLAR_FILTER") else AlwaysOffExemplarFilter()


def _traces_on(resource: Resource) -> Callable[[], None]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(_span_exporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _prometheus_endpoint(listen: str) -> Callable[[], None]:
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"))
    except OSError as error:
        raise StartError(f"--metrics-listen: cannot listen on {listen}: {error.strerror}") from error
    log.info("metrics on http://%s:%d/metrics", host, server.server_port)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


def _protocol(signal: str) -> str:
    names = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    given = next((os.environ[name] for name in names if os.environ.get(name)), PROTOCOLS[0])
    if given not in PROTOCOLS:
        raise StartError(f"OTEL_EXPORTER_OTLP_PROTOCOL: '{given}' is not one of {', '.join(PROTOCOLS)}")
    return given


def _metric_exporter() -> MetricExporter:
    if _protocol("METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OverHttp

    return OverHttp()


def _span_exporter() -> SpanExporter:
    if _protocol("TRACES") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp()


class _Process:
    """Stands for this process among the owners of levels."""


_process = _Process()


def _watch_process() -> None:
    if sys.platform == "linux":
        instruments.process_memory.watch(_process, _resident_bytes, {})


def _resident_bytes(_: _Process) -> float:
    with open("/proc/self/statm") as file:
        return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
