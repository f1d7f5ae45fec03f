"""Bodies of requests, within bounds of size, number and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych_gateway.errors import HttpError
from triptych_gateway.parameters import FIELDS, is_text

MAX_FILES = 16
MAX_FIELDS = 200
MAX_FIELD_BYTES = 1 << 20


class BoundedBodies:
    """An application none of whose requests has a larger body, nor all that run a larger one together."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_total_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls it; a body that is too large ends in an HttpError where it is read."""
        announced = Headers(scope=scope).get("content-length", "0")
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            if int(announced) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            self._held += size
            if taken > self._max_bytes:
                raise self._too_large()
            if self._held > self._max_total_bytes:
                busy = "too many bodies are being read or worked on: try again"
                raise HttpError(503, busy, "overloaded", headers={"Retry-After": "1"})
            return message

        try:
            await self._app(scope, bounded, send)
        finally:
            self._held -= taken

    def _too_large(self) -> HttpError:
        message = f"the body is larger than {self._max_bytes} bytes, the most that is read"
        return HttpError(413, message, "request_too_large", headers={"Connection": "close"})


async def read_fields(request: Request, seconds: float) -> dict[str, Any]:
    """The fields of a JSON object or of a form, where files are bytes. Null is a field that is not there.

    Raises HttpError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    readers: dict[str, Callable[[Request], Any]] = {
        "application/json": _read_json,
        "multipart/form-data": _read_form,
    }
    if kind not in readers:
        message = f"the body is of the type '{kind[:60]}'; {' and '.join(readers)} are read"
        raise HttpError(415, message, "unsupported_media_type")
    try:
        async with asyncio.timeout(seconds):
            fields: dict[str, Any] = await readers[kind](request)
    except TimeoutError as error:
        message = f"the body did not arrive within {seconds:g} s"
        raise HttpError(408, message, "request_timeout", headers={"Connection": "close"}) from error
    return {name: value for name, value in fields.items() if value is not None}


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is no JSON: {str(error)[:200]}", "invalid_json") from error
    if not isinstance(fields, dict):
        raise HttpError(400, "the body is JSON, but no object", "invalid_json")
    return fields


async def _read_form(request: Request) -> dict[str, Any]:
    """Of a name with [] behind, as of the name. What is given several times is a list."""
    given: dict[str, list[Any]] = {}
    async with request.form(
        max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    ) as form:
        for said, value in form.multi_items():
            name = said.removesuffix("[]")
            read = await value.read() if isinstance(value, UploadFile) else _read_word(name, value)
            given.setdefault(name, []).append(read)
    return {name: values[0] if len(values) == 1 else values for name, values in given.items()}


TEXTS = {
    "prompt",
    "negative_prompt",
    "model",
    "size",
    "quality",
    "response_format",
    "user",
    "safety_identifier",
}


def _read_word(name: str, text: str) -> Any:
    """A field of a form as JSON would have it: a text where texts belong, else what the text says."""
    field = FIELDS.get(name)
    if name in TEXTS or (field is not None and is_text(field)):
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text
