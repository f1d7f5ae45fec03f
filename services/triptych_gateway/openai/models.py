"""OpenAI's Models API: the one model that is served."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from triptych.client import AsyncClient
from triptych_gateway.credentials import Credentials
from triptych_gateway.errors import HttpError, json_response
from triptych_gateway.settings import GatewaySettings


class Models:
    """The handlers."""

    def __init__(self, client: AsyncClient, settings: GatewaySettings) -> None:
        self._client = client
        self._credentials = Credentials(settings)
        self._aliases = settings.model_alias
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        """GET /v1/models."""
        return json_response({"object": "list", "data": [await self._model(request)]})

    async def get(self, request: Request) -> Response:
        """GET /v1/models/{id}: by its name, or one that stands for it."""
        model, name = await self._model(request), request.path_params["id"]
        if name != model["id"] and not any(fnmatchcase(name, alias) for alias in self._aliases):
            message = f"there is no model '{name[:100]}'; this server has '{model['id']}'"
            raise HttpError(404, message, "model_not_found", "model")
        return json_response(model)

    async def _model(self, request: Request) -> dict[str, Any]:
        served = await self._client.model(metadata=self._credentials.of(request))
        return {"id": served.name, "object": "model", "created": self._created, "owned_by": "triptych"}
