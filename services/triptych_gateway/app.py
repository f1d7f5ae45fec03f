"""The gateway's application: which path is whose."""

from __future__ import annotations

from typing import cast

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler

from triptych.client import AsyncClient
from triptych.errors import TriptychError
from triptych.serving.addresses import is_local
from triptych_gateway.automatic1111.sdapi import SdApi
from triptych_gateway.bodies import BoundedBodies
from triptych_gateway.browsers import Guarded
from triptych_gateway.errors import HttpError, http_error, json_response
from triptych_gateway.observed import Observed
from triptych_gateway.openai.images import Images
from triptych_gateway.openai.models import Models
from triptych_gateway.openapi import OpenApi
from triptych_gateway.page import page_routes
from triptych_gateway.proto_json import ProtoJson
from triptych_gateway.settings import GatewaySettings


class Health:
    """Whether the gateway runs, and whether it can make pictures."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.stopping = False

    async def live(self, request: Request) -> Response:
        """GET /health."""
        del request
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /health/ready: 503 while it stops, and where the coordinator and its stages do not answer."""
        del request
        if self.stopping:
            raise HttpError(503, "the gateway stops", "stopping")
        try:
            await self._client.model()
        except TriptychError as error:
            if error.code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise HttpError(503, error.message, "unavailable", headers={"Retry-After": "1"}) from error
        return json_response({"status": "ok"})


def create_app(client: AsyncClient, settings: GatewaySettings, health: Health) -> ASGIApp:
    """The application, in front of a coordinator's client."""
    images, models = Images(client, settings), Models(client, settings)
    routes = [
        Route("/v1/images/generations", images.generate, methods=["POST"]),
        Route("/v1/images/edits", images.edit, methods=["POST"]),
        Route("/v1/images/variations", images.vary, methods=["POST"]),
        Route("/v1/images/{id}", images.fetch, methods=["GET"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{id:path}", models.get, methods=["GET"]),
        *SdApi(client, settings).routes(),
        *ProtoJson(client, settings).routes(),
        *page_routes(),
        Route("/health", health.live, methods=["GET"]),
        Route("/health/ready", health.ready, methods=["GET"]),
    ]
    routes.append(Route("/openapi.json", OpenApi(routes).get, methods=["GET"]))
    handlers = {
        HttpError: _refused,
        TriptychError: _failed,
        HTTPException: _no_route,
        ClientDisconnect: _gone,
    }
    inner: ASGIApp = Starlette(
        routes=routes,
        exception_handlers={kind: cast(ExceptionHandler, one) for kind, one in handlers.items()},
    )
    inner = BoundedBodies(inner, settings.max_body_bytes, settings.max_bodies_bytes)
    if settings.cors_origin:
        exposed = ["Retry-After"]
        inner = CORSMiddleware(
            inner, settings.cors_origin, allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
        )
    own = [settings.public_url] if settings.public_url else []
    return Observed(Guarded(inner, [*settings.cors_origin, *own], is_local(settings.listen)), routes)


async def _refused(request: Request, error: HttpError) -> Response:
    return _shaped(request, error)


async def _failed(request: Request, error: TriptychError) -> Response:
    return _shaped(request, http_error(error))


async def _no_route(request: Request, error: HTTPException) -> Response:
    """A path or method that is none, or a form that cannot be read."""
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    return _shaped(request, HttpError(error.status_code, error.detail, code, headers=error.headers or {}))


def _shaped(request: Request, error: HttpError) -> Response:
    """As the API of the path has errors."""
    if not request.url.path.startswith("/sdapi/"):
        return error.response()
    body = {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    return json_response(body, error.status, error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    """Nobody reads it."""
    del request, error
    return Response(status_code=499)
