"""OpenAI's Images API: /v1/images/generations, /edits and /variations, and pictures by their address."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import Response

from triptych.client import AsyncClient, Metadata
from triptych.errors import TriptychError, invalid_argument
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_gateway.bodies import read_fields
from triptych_gateway.connected import while_connected
from triptych_gateway.credentials import Credentials
from triptych_gateway.errors import HttpError, http_error, json_response
from triptych_gateway.event_stream import EventStream, server_sent
from triptych_gateway.openai.image_request import ANSWERED_QUALITIES, ImageRequest, read_image_request
from triptych_gateway.openai.kept import KeptPictures
from triptych_gateway.pictures import (
    background_of,
    enlarged,
    in_thread,
    mask_of_transparency,
    of_file,
    recorded_prompt,
)
from triptych_gateway.settings import GatewaySettings

Events = AsyncGenerator[pb.GenerateResponse]

PLAIN_PROMPT = "a picture"
"""Of a variation of a picture that does not say what it shows, which is made without guidance."""


class Images:
    """The handlers."""

    def __init__(self, client: AsyncClient, settings: GatewaySettings) -> None:
        self._client = client
        self._settings = settings
        self._credentials = Credentials(settings)
        self._kept = KeptPictures(settings.url_bytes, settings.url_seconds)

    async def generate(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        fields = await self._fields(request)
        return await self._answer(request, fields, "image_generation")

    async def edit(self, request: Request) -> Response:
        """POST /v1/images/edits: `image`, and a mask whose transparent pixels are made anew.

        Without a mask a picture's own transparent pixels are its mask. Where a mask is, it is made anew as a
        whole, and everything else stays to the bit, unless `strength` and `preserve` say otherwise. Without
        one, a model that takes references has all pictures as references, unless `strength` says how much of
        the one is made anew; another model has one picture, and edits all of it. With one, pictures behind
        the first are references.
        """
        fields = await self._fields(request)
        image, *others = _files(fields, "image")
        masked = _file(fields, "mask") if "mask" in fields else None
        mask = await of_file("image" if masked is None else "mask", mask_of_transparency, masked or image)
        starts = mask is not None or bool({"strength", "margins", "references"} & fields.keys())
        if others or not starts:
            served = await self._client.model(metadata=self._credentials.of(request))
            if others and (not served.max_references or "references" in fields):
                raise invalid_argument(("image", f"holds {1 + len(others)} files, and one is read"))
            if served.max_references:
                seen = others if starts else [image, *others]
                fields["references"] = [base64.b64encode(file).decode() for file in seen]
                if not starts:
                    del fields["image"]
        if mask is not None:
            fields = {"strength": 1.0, "preserve": True} | fields | {"mask": base64.b64encode(mask).decode()}
        elif masked is not None:
            raise invalid_argument(("mask", "has no transparent pixel, and those are what is edited"))
        return await self._answer(request, fields, "image_edit", {"references": "image"})

    async def vary(self, request: Request) -> Response:
        """POST /v1/images/variations: another picture like `image`, of the prompt that its file says."""
        fields = await self._fields(request)
        image = _file(fields, "image")
        if not {"prompt", "prompts"} & fields.keys():
            prompt = await of_file("image", recorded_prompt, image)
            said = {"prompt": prompt} if prompt else {"prompt": PLAIN_PROMPT, "guidance_scale": 1.0}
            fields = said | fields
        return await self._answer(request, fields, "image_generation")

    async def fetch(self, request: Request) -> Response:
        """GET /v1/images/{id}: a picture of an answer with addresses, while it is kept."""
        kept = self._kept.get(request.path_params["id"])
        if kept is None:
            raise HttpError(404, "there is no such picture, or no longer", "not_found")
        shown = {"Cross-Origin-Resource-Policy": "cross-origin"}  # its address is enough, on any page
        return Response(kept.data, headers=shown, media_type=kept.media_type)

    async def _fields(self, request: Request) -> dict[str, Any]:
        return await read_fields(request, self._settings.body_seconds)

    async def _answer(
        self, request: Request, fields: dict[str, Any], kind: str, said: Mapping[str, str] | None = None
    ) -> Response:
        """Makes the pictures that the fields ask for; `kind` is what a stream's events are called.

        said: what the client calls fields that it did not give by this name.
        """
        # A million seeds would hold up the event loop.
        asked = await asyncio.to_thread(read_image_request, fields, self._settings.model_alias)
        asked.said |= said or {}
        try:
            return await while_connected(request, self._made(request, asked, kind))
        except TriptychError as error:
            raise _called(asked, error) from error

    async def _made(self, request: Request, asked: ImageRequest, kind: str) -> Response:
        metadata = self._credentials.of(request)
        asked.suit(await self._client.model(metadata=metadata) if asked.needs_model() else None)
        events = self._events(asked.parameters, metadata)
        if not asked.stream:
            return await self._collected(request, asked, events)
        first = await anext(events)  # so that what is refused is an answer with a status
        return EventStream(_stream(asked, kind, first, events), events.aclose)

    async def _events(self, parameters: GenerationParameters, metadata: Metadata) -> Events:
        """Those of a generation, from the one on that says that it is queued or accepted."""
        sent = pb.GenerateRequest(parameters=parameters)
        seconds = self._settings.request_seconds
        async with aclosing(self._client.events(sent, timeout=seconds, metadata=metadata)) as events:
            async for event in events:
                if event.WhichOneof("event") != "waiting":
                    yield event

    async def _collected(self, request: Request, asked: ImageRequest, events: Events) -> Response:
        """All pictures in one answer."""
        accepted, images, warnings = pb.Accepted(), list[pb.GeneratedImage](), list[str]()
        async with aclosing(events):
            async for event in events:
                match event.WhichOneof("event"):
                    case "accepted":
                        accepted = event.accepted
                        warnings += accepted.warnings
                    case "image":
                        images.append(event.image)
                    case "finished":
                        warnings += event.finished.warnings
        described = Described(asked, accepted.parameters)
        background = {"background": await in_thread(background_of, file_of(images[0]))} if images else {}
        return json_response(
            {
                "created": int(time.time()),
                **described.fields(),
                **background,
                "data": self._data(request, asked, images, described.kind),
                **({"warnings": warnings} if warnings else {}),
            }
        )

    def _data(
        self, request: Request, asked: ImageRequest, images: list[pb.GeneratedImage], kind: str
    ) -> list[dict[str, Any]]:
        files = [file_of(image) for image in images]
        if not asked.as_url:
            data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
        else:
            if sum(map(len, files)) > self._kept.max_bytes:
                message = "the pictures together are larger than what is kept here: take them as b64_json"
                raise invalid_argument(("response_format", message))
            base = self._settings.public_url or str(request.base_url).rstrip("/")
            names = [self._kept.keep(file, f"image/{kind}") for file in files]
            data = [{"url": f"{base}/v1/images/{name}"} for name in names]
        return [one | {"seed": image.seed} for one, image in zip(data, images, strict=True)]


@dataclass(frozen=True)
class Described:
    """What an answer says of its pictures."""

    asked: ImageRequest
    parameters: GenerationParameters

    @property
    def kind(self) -> str:
        """Of their files."""
        return self.parameters.output_format.WhichOneof("format") or "png"

    def fields(self, always_quality: bool = False) -> dict[str, str]:
        """By the API's names."""
        fields = {
            "background": self.asked.background,
            "output_format": self.kind,
            "size": f"{self.parameters.width}x{self.parameters.height}",
        }
        if self.asked.quality in ANSWERED_QUALITIES or always_quality:
            answered = self.asked.quality in ANSWERED_QUALITIES
            fields["quality"] = self.asked.quality if answered else "auto"
        if self.asked.user:
            fields["safety_identifier"] = self.asked.user
        return fields


async def _stream(
    asked: ImageRequest, kind: str, first: pb.GenerateResponse, events: Events
) -> AsyncGenerator[bytes]:
    """Server-sent events: a partial image for each preview, a completed one for each picture, or an error.

    Steps and places in the queue are comments, which say to whoever is between that the connection is alive.
    """
    described, partial = Described(asked, pb.Accepted().parameters), 0
    fields = dict[str, str]()
    try:
        async with aclosing(_with_first(first, events)) as all_events:
            async for event in all_events:
                match event.WhichOneof("event"):
                    case "queued":
                        yield b": number %d in the queue\n\n" % event.queued.position
                    case "accepted":
                        described = Described(asked, event.accepted.parameters)
                        fields = described.fields(always_quality=True)
                    case "step_completed":
                        step = event.step_completed
                        yield b": step %d of %d\n\n" % (step.step, step.num_steps)
                        if not step.previews or partial == asked.partial_images:
                            continue
                        size = described.parameters.width, described.parameters.height
                        for index, preview in enumerate(step.previews):
                            file = await in_thread(enlarged, preview, *size, described.kind)
                            said = {"partial_image_index": partial, "image_index": index}
                            yield _picture(f"{kind}.partial_image", file, fields | said)
                        partial += 1
                    case "image":
                        file = file_of(event.image)
                        said = {"image_index": event.image.index, "seed": event.image.seed}
                        background = {"background": await in_thread(background_of, file)}
                        yield _picture(f"{kind}.completed", file, fields | background | said)
    except TriptychError as error:
        yield server_sent("error", {"type": "error", **_called(asked, error).body()})


async def _with_first(first: pb.GenerateResponse, events: Events) -> Events:
    yield first
    async for event in events:
        yield event


def _picture(kind: str, file: bytes, fields: dict[str, Any]) -> bytes:
    b64 = base64.b64encode(file).decode()
    return server_sent(kind, {"type": kind, "b64_json": b64, "created_at": int(time.time()), **fields})


def file_of(image: pb.GeneratedImage) -> bytes:
    """A picture's file, of whatever kind."""
    return image.png or image.webp or image.jpeg


def _called(asked: ImageRequest, error: TriptychError) -> HttpError:
    """The error with the client's name of the field that is wrong."""
    said = http_error(error)
    if said.param is not None:
        said.param = asked.called(said.param)
    if error.code is grpc.StatusCode.NOT_FOUND and not asked.parameters.loras:
        said.param, said.code = "model", "model_not_found"
    return said


def _file(fields: dict[str, Any], name: str) -> bytes:
    """The file of a field, whose place in `fields` its base64 takes, as JSON has it."""
    file, *others = _files(fields, name)
    if others:
        raise invalid_argument((name, f"holds {1 + len(others)} files, and one is read"))
    return file


def _files(fields: dict[str, Any], name: str) -> list[bytes]:
    """One file or several; the place of the field in `fields` the first one's base64 takes."""
    given = fields.get(name)
    files = [_bytes(name, value) for value in (given if isinstance(given, list) and given else [given])]
    fields[name] = base64.b64encode(files[0]).decode()
    return files


def _bytes(name: str, value: Any) -> bytes:
    """A file of a form, or of base64."""
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except ValueError as error:
            raise invalid_argument((name, "is neither a file of a form nor base64")) from error
    if not isinstance(value, bytes) or not value:
        raise invalid_argument((name, "must be the file of a picture"))
    return value
