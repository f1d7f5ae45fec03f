"""Calls of servicers in this process: the same methods and messages as a gRPC stub's, nothing serialized."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from triptych.errors import deadline_exceeded


class DirectContext:
    """What servicers ask of a call's context."""

    def __init__(self, timeout: float | None) -> None:
        """`timeout` in seconds from now; None for no limit."""
        self._expires_at = None if timeout is None else time.monotonic() + timeout

    def peer(self) -> str:
        """Who calls."""
        return "this process"

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline, at least 0; None if it has none."""
        return None if self._expires_at is None else max(0.0, self._expires_at - time.monotonic())


class DirectStub:
    """A stub whose methods are the servicer's. Cancelling the caller, or closing a stream, cancels it."""

    def __init__(self, servicer: object) -> None:
        self._servicer = servicer

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """The method. A TriptychError that it raises passes as it is."""
        behaviour = getattr(self._servicer, method)
        return _stream(behaviour) if inspect.isasyncgenfunction(behaviour) else _answer(behaviour)


def _stream(behaviour: Callable[..., AsyncGenerator[Any]]) -> Callable[..., AsyncGenerator[Any]]:
    """A streaming method, which keeps to its deadline by itself."""

    def call(
        request: Any, /, *, timeout: float | None = None, metadata: object = None
    ) -> AsyncGenerator[Any]:
        del metadata  # the caller's span is current here too
        return behaviour(request, DirectContext(timeout))

    return call


def _answer(behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A unary method, cancelled when its time is over."""

    async def call(request: Any, /, *, timeout: float | None = None, metadata: object = None) -> Any:
        del metadata
        try:
            async with asyncio.timeout(timeout) as limit:
                return await behaviour(request, DirectContext(timeout))
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise deadline_exceeded(f"no answer within {timeout:g} s") from error

    return call
