"""What stands between gRPC and every servicer: errors become statuses, malformed messages are refused."""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from triptych.errors import DETAILS_KEY, TriptychError, invalid_argument, to_status
from triptych.wire.messages import serializer

log = logging.getLogger(__name__)

Deserializer = Callable[[bytes], Any]


class _Malformed:
    """Stands for a request whose bytes are no message of the method's type."""


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
        """Wraps the method's behaviour and its serializers, once; client streams are left as they are."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None or handler.request_streaming:
                return handler
            self._handlers[method] = _handler(handler, method)
        return self._handlers[method]


def _handler(handler: Any, method: str) -> Any:
    """The handler with its behaviour and serializers wrapped."""
    codecs: dict[str, Any] = {
        "request_deserializer": _refusing_malformed(handler.request_deserializer),
        "response_serializer": handler.response_serializer and serializer(handler.response_serializer),
    }
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_wrapped(handler.unary_stream, method), **codecs)
    return grpc.unary_unary_rpc_method_handler(_wrapped(handler.unary_unary, method), **codecs)


def _refusing_malformed(deserializer: Deserializer | None) -> Deserializer | None:
    if deserializer is None:
        return None

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:
            return _Malformed()

    return deserialize


def _wrapped(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            _check_form(request)
            return await behaviour(request, context)
        except Exception as error:
            await _abort(context, error, method)

    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            _check_form(request)
            # When a client leaves, gRPC may just drop this generator; the servicer's must then close too.
            async with contextlib.aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await _abort(context, error, method)

    return stream if inspect.isasyncgenfunction(behaviour) else answer


def _check_form(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise invalid_argument(("request", "its bytes are no message of the method's request type"))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> NoReturn:
    """Ends the call; an AbortError marks a call that was ended already, as gRPC's health service does."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    known = error if isinstance(error, TriptychError) else _internal(error, method)
    status = to_status(known)
    metadata = ((DETAILS_KEY, status.SerializeToString()),) if status.details else ()
    await context.abort(known.code, status.message, trailing_metadata=metadata)


def _internal(error: Exception, method: str) -> TriptychError:
    number = uuid.uuid4().hex[:8]
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("internal error %s in %s: %s\n%s", number, method, type(error).__qualname__, frames)
    log.debug("internal error %s: %s", number, error)
    return TriptychError(grpc.StatusCode.INTERNAL, f"internal error {number}: the server's log tells more")
