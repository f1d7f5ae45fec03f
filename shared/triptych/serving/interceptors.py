"""What stands between gRPC and every servicer: errors become statuses, malformed messages are refused."""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from triptych.errors import DETAILS_KEY, TriptychError, invalid_argument, to_status
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
    at DEBUG. Servicers' methods are coroutines or async generators.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

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
            self._handlers[method] = _handler(handler, method)
        return self._handlers[method]


def _handler(handler: Any, method: str) -> Any:
    """The handler with its behaviour and serializers wrapped."""
    codecs: dict[str, Any] = {
        "request_deserializer": _refusing_malformed(handler.request_deserializer),
        "response_serializer": handler.response_serializer and serializer(handler.response_serializer),
    }
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(_wrapped(handler.stream_stream, method), **codecs)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_wrapped(handler.unary_stream, method), **codecs)
    return grpc.unary_unary_rpc_method_handler(_wrapped(handler.unary_unary, method), **codecs)


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


def _wrapped(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
    """The behaviour with its exceptions as statuses.

    A refused request is let go before its call is aborted: the exception that ends it lives on in the call,
    and its traceback would hold the request until the garbage collector comes.
    """

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(_checked(request), context)
        except Exception as error:
            ending = _ending(error, method)
        del request
        raise await _aborted(context, ending)

    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            # When a client leaves, gRPC may just drop this generator; the servicer's must then close too.
            async with contextlib.aclosing(behaviour(_checked(request), context)) as responses:
                async for response in responses:
                    yield response
            return
        except Exception as error:
            ending = _ending(error, method)
        del request
        raise await _aborted(context, ending)

    return stream if inspect.isasyncgenfunction(behaviour) else answer


def _checked(request: Any) -> Any:
    """A request, or each of a stream of them, that was read. Raises TriptychError for one that was not."""
    if isinstance(request, AsyncIterator):
        return (_checked(each) async for each in request)
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
    metadata = ((DETAILS_KEY, status.SerializeToString()),) if status.details else ()
    try:
        await context.abort(ending.code, status.message, trailing_metadata=metadata)
    except grpc.aio.AbortError as aborted:
        return aborted.with_traceback(None)


def _internal(error: Exception, method: str) -> TriptychError:
    number = uuid.uuid4().hex[:8]
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("internal error %s in %s: %s\n%s", number, method, type(error).__qualname__, frames)
    log.debug("internal error %s: %s", number, error)
    return TriptychError(grpc.StatusCode.INTERNAL, f"internal error {number}: the server's log tells more")
