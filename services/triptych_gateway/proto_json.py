"""Triptych's own API over HTTP: the proto's messages in protobuf's JSON, its stream as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triptych.client import AsyncClient
from triptych.errors import TriptychError, invalid_argument
from triptych.v1 import image_generation_pb2 as pb
from triptych_gateway.bodies import read_fields
from triptych_gateway.connected import while_connected
from triptych_gateway.credentials import Credentials
from triptych_gateway.described import described_parameters
from triptych_gateway.errors import HttpError, http_error, json_response
from triptych_gateway.event_stream import EventStream, server_sent
from triptych_gateway.parameters import FIELDS, read_parameter
from triptych_gateway.settings import GatewaySettings

Events = AsyncGenerator[pb.GenerateResponse]


class ProtoJson:
    """The handlers. Fields have the proto's names, 64-bit numbers are texts, bytes are base64."""

    def __init__(self, client: AsyncClient, settings: GatewaySettings) -> None:
        self._client = client
        self._settings = settings
        self._credentials = Credentials(settings)

    def routes(self) -> list[Route]:
        """Which path is whose."""
        return [
            Route("/triptych/v1/model", self.model, methods=["GET"]),
            Route("/triptych/v1/parameters", self.parameters, methods=["GET"]),
            Route("/triptych/v1/generate", self.generate, methods=["POST"]),
        ]

    async def model(self, request: Request) -> Response:
        """What GetModel answers."""
        served = await self._client.model(metadata=self._credentials.of(request))
        return json_response(in_json(served))

    async def parameters(self, request: Request) -> Response:
        """The fields of GenerationParameters, with the proto's comments."""
        del request
        return json_response({"parameters": described_parameters()})

    async def generate(self, request: Request) -> Response:
        """The events of Generate by their names: `queued`, `accepted`, `step_completed`, ...; or `error`.

        What is refused before the first of them is an answer with a status.
        """
        fields = await read_fields(request, self._settings.body_seconds)
        asked = await asyncio.to_thread(read_request, fields)  # a long one takes a while
        seconds, metadata = self._settings.request_seconds, self._credentials.of(request)
        events = self._client.events(asked, timeout=seconds, metadata=metadata)
        first = await while_connected(request, anext(events))
        return EventStream(_stream(first, events), events.aclose)


def read_request(fields: dict[str, Any]) -> pb.GenerateRequest:
    """The request of {"parameters": {...}, "priority": 0}. Raises TriptychError or HttpError."""
    request, given = pb.GenerateRequest(), dict(fields)
    parameters, priority = given.pop("parameters", {}), given.pop("priority", 0)
    if not isinstance(parameters, dict):
        raise invalid_argument(("parameters", "must be an object"))
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) >= 1 << 31:
        raise invalid_argument(("priority", "must be a whole number of 32 bits"))
    for name in (*given, *(name for name in parameters if name not in FIELDS)):
        raise HttpError(400, f"there is no parameter '{name[:100]}'", "unknown_parameter", name[:100])
    for name, value in parameters.items():
        if value is not None:
            request.parameters.MergeFrom(read_parameter(name, value, name))
    request.priority = priority
    return request


def in_json(message: Message) -> dict[str, Any]:
    """A message, with its zeros too."""
    said: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return said


async def _stream(first: pb.GenerateResponse, events: Events) -> AsyncGenerator[bytes]:
    try:
        yield _event(first)
        async for event in events:
            yield _event(event)
    except TriptychError as error:
        yield server_sent("error", http_error(error).body())


def _event(event: pb.GenerateResponse) -> bytes:
    kind = event.WhichOneof("event")
    assert kind is not None
    return server_sent(kind, in_json(getattr(event, kind)))
