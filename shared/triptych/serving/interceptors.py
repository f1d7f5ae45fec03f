"""What stands between gRPC and every servicer: who may not call is refused before its message is read, errors
become statuses, malformed messages are refused.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from triptych.errors import DETAILS_KEY, TriptychError, invalid_argument, to_status
from triptych.serving.arrivals import Arrivals
from triptych.serving.callers.authorization import Authorization
from triptych.serving.callers.caller import set_caller
from triptych.serving.logs import logged, note_caller, request_log
from triptych.serving.measuring import measured
from triptych.telemetry import tracing
from triptych.wire.counting import holds_at_most
from triptych.wire.messages import serializer

log = logging.getLogger(__name__)

Deserializer = Callable[[bytes], Any]


UNCOUNTED_BYTES = 64 << 10
"""A message of so few bytes is not counted: it cannot hold much."""
MAX_VALUES = 50_000
"""Of a message; tensors and pictures are one value each."""


class _Refused:
    """Stands for a request that was not read, and why."""

    def __init__(self, why: str) -> None:
        self.why = why


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers a servicer's TriptychError with its rich status, and any other exception with INTERNAL.

    The log of an INTERNAL has the traceback, but the exception's own words, which may quote the request, only
    where --log-requests allows it. Servicers' methods are coroutines or async generators. To gRPC all of them
    read streams: for the message of a unary call it would wait for ever.
    """

    def __init__(self, authorization: Authorization | None = None) -> None:
        """Without `authorization` nobody is asked for a credential."""
        self._handlers: dict[str, Any] = {}
        self._arrivals = Arrivals()
        self._authorization = authorization

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method's behaviour and its serializers, once."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._handlers[method] = _handler(handler, method, self._arrivals, self._authorization)
        return self._handlers[method]


def _handler(handler: Any, method: str, arrivals: Arrivals, authorization: Authorization | None) -> Any:
    """The handler with its behaviour and serializers wrapped."""
    codecs: dict[str, Any] = {
        "request_deserializer": _refusing_malformed(handler.request_deserializer),
        "response_serializer": handler.response_serializer and serializer(handler.response_serializer),
    }
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_stream
    requests = _each_of if handler.request_streaming else _only_one_of
    received = partial(requests, arrivals)
    if authorization is not None:
        received = partial(_of_callers, authorization, method, received)
    wrapped = _wrapped(behaviour, received, method)
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(wrapped, **codecs)
    return grpc.stream_unary_rpc_method_handler(wrapped, **codecs)


async def _of_callers(
    authorization: Authorization,
    method: str,
    received: Callable[[grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]],
    context: grpc.aio.ServicerContext[Any, Any],
) -> Any:
    """What is received of who may call. Raises TriptychError for others, whose message is not read."""
    caller = await authorization.authorize(method, context)
    set_caller(caller)
    note_caller(caller)
    if caller is not None:
        tracing.note({"enduser.id": caller.share})
    return await received(context)


async def _only_one_of(arrivals: Arrivals, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """The message of a unary call. Raises TriptychError if there is none."""
    request = await arrivals.next(context)
    if request is grpc.aio.EOF:
        raise invalid_argument(("request", "is missing: the call ended without a message"))
    return _checked(request)


async def _each_of(arrivals: Arrivals, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    """The messages of a stream. Iterating raises TriptychError for one that was not read."""

    async def messages() -> AsyncIterator[Any]:
        while (request := await arrivals.next(context)) is not grpc.aio.EOF:
            yield _checked(request)

    return messages()


def _refusing_malformed(deserializer: Deserializer | None) -> Deserializer | None:
    if deserializer is None:
        return None

    kind = getattr(deserializer, "__self__", None)  # FromString is a method of the message's class

    def deserialize(data: bytes) -> Any:
        if len(data) > UNCOUNTED_BYTES and kind and not holds_at_most(data, kind.DESCRIPTOR, MAX_VALUES):
            return _Refused(f"holds more than {MAX_VALUES} values")
        try:
            return deserializer(data)
        except Exception:
            return _Refused("its bytes are no message of the method's request type")

    return deserialize


def _wrapped(
    behaviour: Callable[[Any, Any], Any], received: Callable[[Any], Awaitable[Any]], method: str
) -> Callable[[Any, Any], Any]:
    """The behaviour of what is received, with its exceptions as statuses.

    A refused request is let go before its call is aborted: the exception that ends it lives on in the call,
    and its traceback would hold the request until the garbage collector comes.
    """

    async def answer(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            with measured(method, context), logged(method, context):
                return await behaviour(await received(context), context)
        except Exception as error:
            ending = _ending(error, method)
        raise await _aborted(context, ending)

    async def stream(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            # When a client leaves, gRPC may just drop this generator; the servicer's must then close too.
            with measured(method, context), logged(method, context):
                async with contextlib.aclosing(behaviour(await received(context), context)) as responses:
                    async for response in responses:
                        yield response
            return
        except Exception as error:
            ending = _ending(error, method)
        raise await _aborted(context, ending)

    return stream if inspect.isasyncgenfunction(behaviour) else answer


def _checked(request: Any) -> Any:
    """A request that was read. Raises TriptychError for one that was not."""
    if isinstance(request, _Refused):
        raise invalid_argument(("request", request.why))
    return request


def _ending(error: Exception, method: str) -> TriptychError | grpc.aio.AbortError:
    """What a call ends with, without a traceback: AbortError if it was ended already, as by gRPC's health."""
    if isinstance(error, TriptychError | grpc.aio.AbortError):
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return _internal(error, method)


async def _aborted(
    context: grpc.aio.ServicerContext[Any, Any], ending: TriptychError | grpc.aio.AbortError
) -> Exception:
    """Ends a call. Returns what its handler is to raise."""
    if isinstance(ending, grpc.aio.AbortError):
        return ending
    status = to_status(ending)
    details = ((DETAILS_KEY, status.SerializeToString()),) if status.details else ()
    metadata = (*(context.trailing_metadata() or ()), *details)
    try:
        await context.abort(ending.code, status.message, trailing_metadata=metadata)
    except grpc.aio.AbortError as aborted:
        return aborted.with_traceback(None)


def _internal(error: Exception, method: str) -> TriptychError:
    number = uuid.uuid4().hex[:8]
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("internal error %s in %s: %s\n%s", number, method, type(error).__qualname__, frames)
    request_log.error("internal error %s: %s", number, error)
    return TriptychError(grpc.StatusCode.INTERNAL, f"internal error {number}: the server's log tells more")
