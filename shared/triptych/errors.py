"""Errors: a gRPC code, a sentence for people and google.rpc details for programs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "triptych"
MISSING_CONDITIONING = "MISSING_CONDITIONING"
_RESET = "RST_STREAM with error code 2"

# gRPC refuses a status whose metadata comes near 8 KB, and metadata grows when it is encoded.
_MAX_MESSAGE_BYTES = 1000
_MAX_DETAIL_BYTES = 3600
MAX_VIOLATIONS = 8
"""That an answer names."""
_MAX_FIELD_BYTES = 100
_MAX_DESCRIPTION_BYTES = 250
_MAX_DIGESTS = 48

_DETAIL_TYPES: tuple[type[Message], ...] = (
    error_details_pb2.BadRequest,
    error_details_pb2.ErrorInfo,
    error_details_pb2.RetryInfo,
)


class StartError(Exception):
    """Why a service cannot start, in one sentence for its operator."""


class CheckpointError(StartError):
    """Why a checkpoint cannot be used, in one sentence that names the file."""


class TriptychError(Exception):
    """A failed call: what a servicer raises and what a client gets."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Iterable[Message] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = tuple(details)


def invalid_argument(*violations: tuple[str, str]) -> TriptychError:
    """INVALID_ARGUMENT with a BadRequest; each violation is a field's path and what is wrong with it.

    The message names them too, for clients that do not read details. Past eight, it says that there are.
    """
    named = [
        (_clipped(field, _MAX_FIELD_BYTES), _clipped(description, _MAX_DESCRIPTION_BYTES))
        for field, description in violations[:MAX_VIOLATIONS]
    ]
    sentences = [f"{field}: {description}" for field, description in named]
    if len(violations) > len(named):
        sentences.append("and others")
    detail = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in named
        ]
    )
    return TriptychError(grpc.StatusCode.INVALID_ARGUMENT, "; ".join(sentences), [detail])


def refuse(violations: Iterable[tuple[str, str]]) -> None:
    """Raises INVALID_ARGUMENT with the first of them, if there are any; behind the ninth nobody looks."""
    first = list(islice(violations, MAX_VIOLATIONS + 1))
    if first:
        raise invalid_argument(*first)


def not_found(message: str) -> TriptychError:
    """NOT_FOUND."""
    return TriptychError(grpc.StatusCode.NOT_FOUND, message)


def unauthenticated(message: str) -> TriptychError:
    """UNAUTHENTICATED."""
    return TriptychError(grpc.StatusCode.UNAUTHENTICATED, message)


def permission_denied(message: str) -> TriptychError:
    """PERMISSION_DENIED."""
    return TriptychError(grpc.StatusCode.PERMISSION_DENIED, message)


def failed_precondition(message: str) -> TriptychError:
    """FAILED_PRECONDITION."""
    return TriptychError(grpc.StatusCode.FAILED_PRECONDITION, message)


def missing_conditioning(digests: Iterable[bytes]) -> TriptychError:
    """FAILED_PRECONDITION that names conditioning to send before the call is repeated.

    It names at most 48 digests, as many as surely fit in a status; the repeated call names the next ones.
    """
    missing = [digest.hex() for digest in dict.fromkeys(digests)]
    detail = error_details_pb2.ErrorInfo(
        reason=MISSING_CONDITIONING, domain=DOMAIN, metadata={"digests": ",".join(missing[:_MAX_DIGESTS])}
    )
    message = f"{len(missing)} conditionings are not here: send them with PutConditioning and repeat the call"
    return TriptychError(grpc.StatusCode.FAILED_PRECONDITION, message, [detail])


def resource_exhausted(message: str, retry_after_seconds: float) -> TriptychError:
    """RESOURCE_EXHAUSTED with a RetryInfo."""
    return TriptychError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, [_retry_info(retry_after_seconds)])


def out_of_memory(message: str) -> TriptychError:
    """RESOURCE_EXHAUSTED without a RetryInfo: it will not fit the next time either."""
    return TriptychError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def unavailable(message: str, retry_after_seconds: float | None = None) -> TriptychError:
    """UNAVAILABLE, with the time after which the call may succeed as RetryInfo."""
    details = [] if retry_after_seconds is None else [_retry_info(retry_after_seconds)]
    return TriptychError(grpc.StatusCode.UNAVAILABLE, message, details)


def internal(message: str) -> TriptychError:
    """INTERNAL: a service broke its contract."""
    return TriptychError(grpc.StatusCode.INTERNAL, message)


def deadline_exceeded(message: str) -> TriptychError:
    """DEADLINE_EXCEEDED."""
    return TriptychError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def missing_digests(error: TriptychError) -> list[bytes] | None:
    """The digests that a missing_conditioning error names; None for any other error."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.reason == MISSING_CONDITIONING:
            return [bytes.fromhex(digest) for digest in detail.metadata["digests"].split(",")]
    return None


def retry_after_seconds(error: TriptychError) -> float | None:
    """How long to wait before the call is repeated, if the error says so."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            milliseconds: int = detail.retry_delay.ToMilliseconds()
            return milliseconds / 1000
    return None


def to_status(error: TriptychError) -> status_pb2.Status:
    """The error as a google.rpc.Status that fits in a gRPC status.

    Long messages are cut, details that no longer fit are left out.
    """
    status = status_pb2.Status(code=error.code.value[0], message=_clipped(error.message, _MAX_MESSAGE_BYTES))
    for detail in error.details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() <= _MAX_MESSAGE_BYTES + _MAX_DETAIL_BYTES:
            status.details.append(packed)
    return status


def from_rpc_error(error: grpc.RpcError) -> TriptychError:
    """The error that a call failed with, of a sync or an aio stub, with its code, message and details.

    A stream that a proxy resets since its server is gone is UNAVAILABLE, as one is that the server leaves
    without a proxy; gRPC says INTERNAL.
    """
    details: list[Message] = []
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            details = _details(value)
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.INTERNAL and not details and _RESET in message:
        code = grpc.StatusCode.UNAVAILABLE
    return TriptychError(code, message, details)


def _details(value: bytes) -> list[Message]:
    try:
        status = status_pb2.Status.FromString(value)
        return [_unpacked(packed) for packed in status.details]
    except DecodeError:  # a proxy's idea of details; the code and the message are still good
        return []


def _unpacked(packed: any_pb2.Any) -> Message:
    for kind in _DETAIL_TYPES:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return packed


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _clipped(text: str, max_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()  # without half surrogates, which JSON can say and protobuf cannot
    return encoded[: max_bytes - 3].decode(errors="ignore") + "..."
