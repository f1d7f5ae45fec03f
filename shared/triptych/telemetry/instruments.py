"""Every metric of the services: its name, unit and attributes. docs/telemetry.md lists them.

Until `exporting.switched_on` they are the no-op instruments of OpenTelemetry's API. No attribute has values
that clients choose.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Observation

METER = "triptych"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
RPC_SYSTEM = "rpc.system.name"
SERVER_ADDRESS = "server.address"
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
STAGE = "triptych.stage"
"""text_encoder, denoiser or vae_codec."""
PART = "triptych.part"
"""Of a call of a stage: queue, compute, or wire, which is the rest. Of a request: its phase."""
REASON = "triptych.reason"
DEVICE = "triptych.device"
STATE = "triptych.state"
QUEUE = "triptych.queue.name"
"""requests (a coordinator's), rows (a denoiser's) or compute (every stage's thread that computes)."""
CACHE = "triptych.cache.name"
HIT = "triptych.cache.hit"
QUEUE_SECONDS = "triptych.queue.seconds"
"""Of a span, as the next one."""
COMPUTE_SECONDS = "triptych.compute.seconds"

_meter = metrics.get_meter(METER)
Owner = TypeVar("Owner")


def _histogram(name: str, unit: str, description: str, bounds: Iterable[float]) -> Histogram:
    advisory = [float(bound) for bound in bounds]
    return _meter.create_histogram(
        name, unit=unit, description=description, explicit_bucket_boundaries_advisory=advisory
    )


class Level:
    """A number that is read, when it is exported, from the objects that have it, while they live."""

    def __init__(self, combine: Callable[[Iterable[float]], float]) -> None:
        """`combine` makes one number of those that have the same attributes."""
        self._combine = combine
        self._readers: WeakKeyDictionary[Any, list[tuple[Callable[[Any], float], dict[str, str]]]]
        self._readers = WeakKeyDictionary()

    def watch(self, owner: Owner, read: Callable[[Owner], float], attributes: dict[str, str]) -> None:
        """Reads it from `owner` from now on, in another thread; `read` must not refer to the owner itself."""
        self._readers.setdefault(owner, []).append((read, attributes))

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """As OpenTelemetry asks for it."""
        values: dict[tuple[tuple[str, str], ...], list[float]] = defaultdict(list)
        for owner, readers in list(self._readers.items()):
            for read, attributes in readers:
                values[tuple(attributes.items())].append(read(owner))
        return [Observation(self._combine(each), dict(attributes)) for attributes, each in values.items()]


class Count:
    """A number that only grows: added to often, which costs next to nothing, and read when it is exported."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        """Its first value is the first that is added."""
        self._values: dict[tuple[tuple[str, str | bool], ...], float] = {}
        self._lock = threading.Lock()
        _meter.create_observable_counter(name, [self.observe], unit=unit, description=description)

    def add(self, amount: float, attributes: Mapping[str, str | bool] = MappingProxyType({})) -> None:
        """Adds to those of the same attributes, in the same order."""
        key = tuple(attributes.items())
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """As OpenTelemetry asks for it."""
        with self._lock:
            return [Observation(value, dict(key)) for key, value in self._values.items()]


def _sum(name: str, unit: str, description: str) -> Level:
    level = Level(sum)
    _meter.create_observable_up_down_counter(name, [level.observe], unit=unit, description=description)
    return level


def _gauge(name: str, unit: str, description: str) -> Level:
    level = Level(max)
    _meter.create_observable_gauge(name, [level.observe], unit=unit, description=description)
    return level


# Every service.
server_call_duration = _histogram(
    "rpc.server.call.duration", "s", "Time that a call took, by method and status.", _SECONDS
)
refusals = Count("triptych.refusals", "{call}", "Calls that were refused, by method and reason.")
queue_length = _sum("triptych.queue.length", "{item}", "What waits: requests, rows or computations.")
queue_age = _gauge("triptych.queue.age", "s", "How long the one that came first has been waiting.")
queue_duration = _histogram("triptych.queue.duration", "s", "How long something waited.", _SECONDS)
cache_lookups = Count("triptych.cache.lookups", "{lookup}", "Questions to a cache, and whether it knew.")
cache_size = _sum("triptych.cache.size", "By", "What a cache holds.")
process_memory = _sum("process.memory.usage", "By", "Memory of the process.")

# The gateway.
http_duration = _histogram(
    "http.server.request.duration", "s", "Time that a request took, by route and status.", _SECONDS
)
http_requests_running = _sum(
    "http.server.active_requests", "{request}", "Requests that are not answered yet."
)

# The coordinator.
requests_running = _sum("triptych.requests.running", "{request}", "Requests that are worked on.")
request_duration = _histogram(
    "triptych.request.duration", "s", "Time of finished requests by phase: queue, encode, denoise, decode.",
    _SECONDS,
)  # fmt: skip
pictures = Count("triptych.pictures", "{picture}", "Pictures made.")
steps = Count("triptych.steps", "{step}", "Steps of requests.")
client_call_duration = _histogram(
    "rpc.client.call.duration", "s", "Time of an attempt to have a stage do work, by status.", _SECONDS
)
stage_call_time = Count(
    "triptych.stage.call.time", "s", "What the time of calls that succeeded was: queue, compute, wire."
)
retries = Count("triptych.stage.retries", "{attempt}", "Attempts that failed and were repeated, by reason.")
ejections = Count("triptych.stage.ejections", "{ejection}", "Replicas that got no work for a while.")
replicas = _sum("triptych.stage.replicas", "{replica}", "Replicas that are known, by whether they are ready.")
stage_calls_running = _sum(
    "triptych.stage.calls.running", "{call}", "Calls of a stage's work that are not answered yet."
)
stage_rows_outstanding = _sum(
    "triptych.stage.rows.outstanding",
    "{row}",
    "Rows, prompts or pictures that a stage has not answered, or that wait for a replica or a turn.",
)

# The stages.
batch_rows = _histogram("triptych.batch.rows", "{row}", "Rows of a forward pass.", _ROWS)
batch_tokens = Count("triptych.batch.tokens", "{token}", "Tokens of forward passes.")
batch_duration = _histogram("triptych.batch.duration", "s", "Time of a forward pass.", _SECONDS)
compute_time = Count("triptych.compute.time", "s", "Time of the work on the thread that computes.")
device_memory = _sum("triptych.device.memory.usage", "By", "Memory of the device that tensors take.")
device_memory_limit = _sum("triptych.device.memory.limit", "By", "Memory that the device has.")
model = _gauge("triptych.model.info", "1", "Always 1: the attributes say which model is served, and how.")
