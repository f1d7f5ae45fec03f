"""Messages on their way to a server: each has its time, and so many may be on their way at once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from triptych.errors import TriptychError

MESSAGE_SECONDS = 60.0
"""How long a call may take to send its message, or the next one of a stream."""
MAX_ARRIVING = 64
"""Messages on their way; of more, the one that takes longest is given up: its half is memory already."""


class Arrivals:
    """The calls of a server whose message is not there yet."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, None] = {}

    async def next(self, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The call's next message; grpc.aio.EOF after the last one.

        Raises:
            TriptychError: CANCELLED when it does not come.
        """
        if len(self._waits) >= MAX_ARRIVING:
            longest = next(iter(self._waits))
            del self._waits[longest]
            longest.reschedule(asyncio.get_running_loop().time())
        wait = asyncio.timeout(MESSAGE_SECONDS)
        try:
            async with wait:
                self._waits[wait] = None
                return await context.read()
        except TimeoutError as error:
            raise TriptychError(
                grpc.StatusCode.CANCELLED,
                f"the call's message was not there within {MESSAGE_SECONDS:g} s, or too many others were on "
                "their way",
            ) from error
        finally:
            self._waits.pop(wait, None)
