"""Calls to a stage that are repeated until they succeed, which is safe because stages are pure functions."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from triptych import errors
from triptych.errors import TriptychError
from triptych_coordinator.deadlines import Deadline

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)

_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # a server that shuts down cancels its calls
)


class Method(Protocol[Request, Response]):
    """A unary method of a stage: of a gRPC stub, or of a servicer in this process."""

    def __call__(self, request: Request, /, *, timeout: float | None = None) -> Awaitable[Response]:
        """Calls it. `timeout` in seconds."""
        ...


@dataclass(frozen=True)
class Patience:
    """How often a call is tried, and how long an attempt may take, in seconds."""

    attempts: int
    attempt_timeout: float
    first_pause: float = 0.1
    longest_pause: float = 3.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`, from 0."""
        return min(self.first_pause * 2.0**attempt, self.longest_pause)


@dataclass(frozen=True)
class Stage:
    """Which stage a call goes to, for error messages."""

    name: str
    address: str

    async def call(
        self, method: Method[Request, Response], request: Request, patience: Patience, deadline: Deadline
    ) -> Response:
        """Calls a method until it answers.

        Raises:
            TriptychError: DEADLINE_EXCEEDED when `deadline` passed; UNAVAILABLE when no attempt reached the
            stage
                in time; INTERNAL when the stage refused what the coordinator made; else as the stage said.
        """
        for attempt in range(patience.attempts):
            try:
                return await _attempt(method, request, deadline.timeout(patience.attempt_timeout))
            except TriptychError as error:
                pause = _pause(error, patience.pause(attempt))
                if pause is None or attempt == patience.attempts - 1:
                    raise self._explained(error, patience) from error
            await asyncio.sleep(deadline.timeout(pause))
        raise AssertionError("patience allows no attempt")

    def _explained(self, error: TriptychError, patience: Patience) -> TriptychError:
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            late = f"did not answer within {patience.attempt_timeout:g} s, tried {patience.attempts} times"
            return errors.unavailable(f"the {self.name} at {self.address} {late}")
        if error.code in _TRANSIENT:
            return errors.unavailable(f"the {self.name} at {self.address} cannot be reached: {error.message}")
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            refusal = f"the {self.name} at {self.address} refused the coordinator's call: {error.message}"
            return TriptychError(grpc.StatusCode.INTERNAL, refusal)
        return TriptychError(error.code, f"the {self.name} at {self.address}: {error.message}", error.details)


async def _attempt(method: Method[Request, Response], request: Request, seconds: float) -> Response:
    try:
        return await method(request, timeout=seconds)
    except grpc.RpcError as error:
        raise errors.from_rpc_error(error) from error


def _pause(error: TriptychError, usual: float) -> float | None:
    """Seconds until the call is worth repeating; None if it is not."""
    if error.code in _TRANSIENT:
        return usual
    return errors.retry_after_seconds(error)
