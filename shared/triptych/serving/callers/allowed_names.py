"""Which clients may call a server: by the DNS names and URIs in their certificates, SPIFFE's among them."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

log = logging.getLogger(__name__)


def check_pattern(pattern: str) -> str:
    """Returns a pattern that names can match: a DNS name or a URI, in which * stands for a part.

    Raises ValueError.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+|[A-Za-z0-9*._-]+", pattern):
        raise ValueError(f"'{pattern}' is neither a DNS name nor a URI, such as spiffe://example.org/a/b")
    return pattern


def matches(pattern: str, name: str) -> bool:
    """Whether a DNS name or a URI is as the pattern says.

    A * stands for one or more characters without a dot in a DNS name, without a slash in a URI. DNS names are
    the same in any case.
    """
    is_uri = "://" in pattern
    if is_uri != ("://" in name):
        return False
    parts = [re.escape(part) for part in pattern.split("*")]
    return bool(re.fullmatch(("[^/]+" if is_uri else "[^.]+").join(parts), name, 0 if is_uri else re.I))


def peer_names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """URIs and DNS names in the certificate that the client of a call showed and gRPC verified."""
    said: Any = context.auth_context()
    return [name.decode(errors="replace") for kind in ("peer_uri", "peer_dns") for name in said.get(kind, ())]


class AllowedNamesInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every call of a client whose certificate has none of the names, before its message is read.

    With PERMISSION_DENIED; the name that came is in the log. It stands outside of ErrorInterceptor, whose
    handlers read streams.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = tuple(allowed)
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method's behaviour, once."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._handlers[method] = self._guarded(handler, method)
        return self._handlers[method]

    def _guarded(self, handler: Any, method: str) -> Any:
        behaviour = handler.stream_unary or handler.stream_stream

        async def answer(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._check(context, method)
            return await behaviour(requests, context)

        async def stream(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            await self._check(context, method)
            async with contextlib.aclosing(behaviour(requests, context)) as responses:
                async for response in responses:
                    yield response

        codecs = (handler.request_deserializer, handler.response_serializer)
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(answer, *codecs)
        # gRPC's own health streams by writing to the context; as a coroutine it is called like the others.
        streaming = stream if inspect.isasyncgenfunction(behaviour) else answer
        return grpc.stream_stream_rpc_method_handler(streaming, *codecs)

    async def _check(self, context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
        names = peer_names(context)
        if any(matches(pattern, name) for pattern in self._allowed for name in names):
            return
        said = ", ".join(names) or "neither a DNS name nor a URI"
        allowed = ", ".join(self._allowed)
        log.warning(
            "refused %s from %s: its certificate has %s, allowed is %s", method, context.peer(), said, allowed
        )
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"this service does not take calls from {said}: its --tls-allowed-names have another",
        )
