"""Errors as OpenAI's API has them: a status, and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import grpc
from google.rpc import error_details_pb2
from starlette.responses import Response

from triptych.errors import TriptychError, retry_after_seconds


@dataclass
class HttpError(Exception):
    """A refused request. `param` is the field that is wrong, `code` a word for programs."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The envelope."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer."""
        return json_response(self.body(), self.status, self.headers)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_STATUSES: Mapping[grpc.StatusCode, tuple[HTTPStatus, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (HTTPStatus.BAD_REQUEST, "invalid_value"),
    grpc.StatusCode.FAILED_PRECONDITION: (HTTPStatus.BAD_REQUEST, "failed_precondition"),
    grpc.StatusCode.NOT_FOUND: (HTTPStatus.NOT_FOUND, "not_found"),
    grpc.StatusCode.UNAUTHENTICATED: (HTTPStatus.UNAUTHORIZED, "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: (HTTPStatus.FORBIDDEN, "permission_denied"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded"),
    grpc.StatusCode.UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    grpc.StatusCode.CANCELLED: (HTTPStatus.SERVICE_UNAVAILABLE, "cancelled"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"),
    grpc.StatusCode.UNIMPLEMENTED: (HTTPStatus.NOT_IMPLEMENTED, "unimplemented"),
}


def http_error(error: TriptychError) -> HttpError:
    """What a failed call of the coordinator is over HTTP; `param` is the first wrong field."""
    status, code = _STATUSES.get(error.code, (HTTPStatus.INTERNAL_SERVER_ERROR, "internal"))
    seconds = retry_after_seconds(error)
    if seconds is None and status == HTTPStatus.SERVICE_UNAVAILABLE:
        seconds = 1.0
    headers = {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return HttpError(status, error.message, code, _first_field(error), headers)


def _first_field(error: TriptychError) -> str | None:
    for detail in error.details:
        if isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            return str(detail.field_violations[0].field)
    return None


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, which a text with half a surrogate pair, from a client's own JSON, fits too."""
    return Response(json.dumps(body).encode(), status, headers, "application/json")
