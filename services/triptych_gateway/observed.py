"""What metrics, traces and the log say of the gateway's requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.trace import StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.serving.logs import REQUEST_ID, request_id
from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "triptych.request_id"
"""Of a request's scope."""
HEALTH = ("/health", "/health/ready")
"""Routes of probes, which are no requests of anybody."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


class Observed:
    """An application whose requests are counted and timed by route and status, each with a span and a line.

    A client may say which trace a request belongs to, by W3C's traceparent, and what it is called, by
    X-Request-Id, which the answer has too.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes: Mapping[Any, str] = dict(map(_endpoint_and_path, routes))
        self._running = 0
        instruments.http_requests_running.watch(self, lambda observed: observed._running, {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls it."""
        headers = Headers(scope=scope)
        name = scope[REQUEST_ID_KEY] = request_id(headers.get(REQUEST_ID))
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        began, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        span = None if scope["path"] in HEALTH else tracing.received(method, headers.items())
        self._running += 1
        try:
            await self._app(scope, receive, noting)
        finally:
            self._running -= 1
            # The path of a picture is its key, and other paths are a stranger's words.
            route = self._routes.get(scope.get("endpoint", self), "")
            attributes: dict[str, str | int] = {HTTP_METHOD: method}
            attributes |= {HTTP_ROUTE: route} if route else {}
            attributes |= {HTTP_STATUS: status} if status else {}
            seconds = time.monotonic() - began
            instruments.http_duration.record(seconds, attributes)
            _log(attributes, name, route, seconds)
            if span is not None:
                span.update_name(f"{method} {route}".rstrip())
                span.set_attributes(attributes)
                if status >= 500 or not status:
                    span.set_status(StatusCode.ERROR)
                span.end()


def _endpoint_and_path(route: BaseRoute) -> tuple[Any, str]:
    """What a request's scope has where it went to the route, and what metrics call that."""
    if isinstance(route, Mount):
        return route.app, route.path
    return getattr(route, "endpoint", None), getattr(route, "path", "")


def _log(attributes: Mapping[str, str | int], name: str, route: str, seconds: float) -> None:
    method, status = attributes[HTTP_METHOD], attributes.get(HTTP_STATUS, "ended")
    log.log(
        logging.DEBUG if route in HEALTH else logging.INFO,
        "%s %s: %s in %.2f s",
        *(method, route or "of no such path", status, seconds),
        extra={
            "call": {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)},
            "figures": {"request_id": name},
        },
    )
