"""How long calls take and how they end, for every method of every service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from opentelemetry.trace import INVALID_SPAN, StatusCode

from triptych.errors import TriptychError, retry_after_seconds
from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import REASON, RPC_METHOD, RPC_STATUS, RPC_SYSTEM

_UNTRACED = ("/GetModel", "/HoldRegion")
"""Questions of those who watch, and what lasts as long as a connection."""
_REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
_ON_ITS_WAY_SECONDS = 0.05


@contextmanager
def measured(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    """Counts the call of the block, by how it ends. `method` is "/package.Service/Method", as gRPC has it."""
    began, allowed, status = time.monotonic(), context.time_remaining(), "OK"
    name = method.removeprefix("/")
    traced = method.startswith("/triptych.") and not method.endswith(_UNTRACED)
    span = tracing.received(name, context.invocation_metadata()) if traced else INVALID_SPAN
    try:
        yield
    except BaseException as error:
        status = status_of(error, context, allowed)
        if isinstance(error, TriptychError) and error.code in _REFUSED:
            instruments.refusals.add(1, {RPC_METHOD: name, REASON: _reason(error)})
        raise
    finally:
        attributes = {RPC_SYSTEM: "grpc", RPC_METHOD: name, RPC_STATUS: status}
        instruments.server_call_duration.record(time.monotonic() - began, attributes)
        span.set_attributes(attributes)
        if status not in ("OK", "CANCELLED"):
            span.set_status(StatusCode.ERROR, status)
        span.end()


def status_of(
    error: BaseException, context: grpc.aio.ServicerContext[Any, Any], allowed: float | None
) -> str:
    """The name of the status that a call ends with because of an error; `allowed` as status_of_cancelled."""
    match error:
        case TriptychError():
            return error.code.name
        case asyncio.CancelledError() | GeneratorExit():
            return status_of_cancelled(context, allowed)
        case grpc.aio.AbortError():  # of gRPC's own health service
            code = context.code()
            return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
        case _:
            return "INTERNAL"


def status_of_cancelled(context: grpc.aio.ServicerContext[Any, Any], allowed: float | None) -> str:
    """What the status of a call that is being cancelled is to its client.

    `allowed` is the time that was left when it came. A client's own clock ends the call first: gRPC sends the
    time that is left rounded up by as much as a hundredth, and the client's word may overtake the deadline.
    """
    left = context.time_remaining()
    if allowed is None or left is None or left > allowed / 100 + _ON_ITS_WAY_SECONDS:
        return "CANCELLED"
    return "DEADLINE_EXCEEDED"


def _reason(error: TriptychError) -> str:
    """The status, or of RESOURCE_EXHAUSTED whether it passes."""
    if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return error.code.name.lower()
    return "too_large" if retry_after_seconds(error) is None else "busy"
