"""One call of a stage, and which failures are worth repeating, which is safe as stages are pure functions."""

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

import grpc

from triptych import errors
from triptych.errors import TriptychError

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)

_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # a server that shuts down cancels its calls
    grpc.StatusCode.UNAUTHENTICATED,  # it is the coordinator's credential that is wrong, not its client's
    grpc.StatusCode.PERMISSION_DENIED,
)
_OF_THE_REPLICA = (
    *_TRANSIENT,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_OF_THE_REQUEST = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


class Failure(Enum):
    """What a failed attempt says of the replica, and so what becomes of the call."""

    TRANSIENT = "it did not answer: the call may succeed on another one, or on the same one later"
    BUSY = "it has no room now, and says for how long"
    BROKEN = "it answered as no replica should: another one is asked, and this one never again"
    OF_THE_REQUEST = "every replica would say that"


RETRY_AFTER_SECONDS = 5.0
"""What a client is told to wait where no replica is there: about what one takes to start."""

_SOON_SECONDS = 0.1


class Method(Protocol[Request, Response]):
    """A unary method of a stage: of a gRPC stub, or of a servicer in this process."""

    def __call__(self, request: Request, /, *, timeout: float | None = None) -> Awaitable[Response]:
        """Calls it. `timeout` in seconds."""
        ...


@dataclass(frozen=True)
class HealthCheck:
    """How long a replica may take to say what it serves, and how often it is asked, in seconds."""

    timeout: float
    first_backoff: float = 0.1
    longest_backoff: float = 1.0

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        doubled = self.first_backoff * 2.0 ** min(failures - 1, 30)
        return min(doubled, self.longest_backoff) if failures else 0.0


@dataclass(frozen=True)
class RetryPolicy:
    """How a call is repeated, times in seconds.

    attempts: how many replicas may fail it before it is given up, since it may be what they fail of.
    attempt_timeout: how long an attempt may take.
    max_wait: how long a request without a deadline waits while no replica is there.
    """

    attempts: int
    attempt_timeout: float
    max_wait: float


async def attempt(method: Method[Request, Response], request: Request, seconds: float) -> Response:
    """Calls a method once. Raises TriptychError, as the stage said or as gRPC failed."""
    try:
        return await method(request, timeout=seconds)
    except grpc.RpcError as error:
        raise errors.from_rpc_error(error) from error


def failure_of(error: TriptychError) -> Failure:
    """What an attempt's error says."""
    if error.code in _TRANSIENT:
        return Failure.TRANSIENT
    if errors.retry_after_seconds(error) is not None:
        return Failure.BUSY
    return Failure.OF_THE_REQUEST if error.code in _OF_THE_REQUEST else Failure.BROKEN


def without_request(error: TriptychError) -> str:
    """An error for logs and for others' requests: its sentence, unless that may quote the one that failed."""
    return error.message if error.code in _OF_THE_REPLICA else f"it answered {error.code.name}"


def explained(error: TriptychError, stage: str, address: str, retries: RetryPolicy) -> TriptychError:
    """What a client is told of the error that a call of a stage ended with.

    UNAVAILABLE when the stage did not answer; INTERNAL when it refused what the coordinator made; else as the
    stage said.
    """
    replica = f"the {stage} at {address}"
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        late = f"did not answer within {retries.attempt_timeout:g} s, tried {retries.attempts} times"
        return errors.unavailable(f"{replica} {late}", RETRY_AFTER_SECONDS)
    if error.code in _TRANSIENT:
        return errors.unavailable(f"{replica} cannot be reached: {error.message}", RETRY_AFTER_SECONDS)
    if error.code is grpc.StatusCode.INVALID_ARGUMENT:
        return errors.internal(f"{replica} refused the coordinator's call: {error.message}")
    return TriptychError(error.code, f"{replica}: {error.message}", error.details)


def nobody(stage: str, address: str, fingerprint: str | bool | None, reason: str | None) -> TriptychError:
    """What a client is told when no replica came for too long.

    `fingerprint`: what the request began on, if other replicas are ready. `reason`: why nobody is.
    """
    if fingerprint:
        return errors.unavailable(
            f"no {stage} at {address} computes as the one that this request began on "
            f"(fingerprint {fingerprint}); sent again, the request begins on another",
            _SOON_SECONDS,
        )
    why = reason or "nobody was found there"
    return errors.unavailable(f"the {stage} at {address} cannot be reached: {why}", RETRY_AFTER_SECONDS)
