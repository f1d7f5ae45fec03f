"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class EventStream(StreamingResponse):
    """Events as they come. However it ends, `close` is awaited: a client that leaves cancels the work."""

    def __init__(self, events: AsyncGenerator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            await self._close()


def server_sent(event: str, data: Any) -> bytes:
    """One event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
