"""A line in the log for each call of a known caller, and for calls that were refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from triptych.errors import TriptychError
from triptych.serving.authorization import CLIENT, RPCS
from triptych.serving.callers import current_caller

log = logging.getLogger(__name__)

_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_REFUSALS_A_SECOND = 1.0


class _Refusals:
    """Says who is refused, once a second at most: who cannot call shall not fill the disk."""

    def __init__(self) -> None:
        self._said_at = -1.0
        self._unsaid = 0

    def say(self, method: str, peer: str, error: TriptychError) -> None:
        """A line, unless there was one just now; it then counts the ones that were left out."""
        now = time.monotonic()
        if now - self._said_at < _REFUSALS_A_SECOND:
            self._unsaid += 1
            return
        others = f" ({self._unsaid} others since the last such line)" if self._unsaid else ""
        log.warning("%s refused to %s: %s%s", method, peer, error.message, others)
        self._said_at, self._unsaid = now, 0


_refusals = _Refusals()


@contextmanager
def logged(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    """Logs how the call of the block ended: who called what, the status and the time, and nothing it said.

    Requests of clients at INFO, the many calls of coordinators and probes at DEBUG.
    """
    began, status = time.monotonic(), "CANCELLED"
    try:
        yield
        status = "OK"
    except TriptychError as error:
        status = error.code.name
        if error.code in _REFUSED:
            _refusals.say(method, context.peer(), error)
        raise
    except grpc.aio.AbortError:  # of gRPC's own health service, which does not say with what
        status = "refused"
        raise
    except Exception:
        status = "INTERNAL"
        raise
    finally:
        caller = current_caller()
        if caller is not None:
            level = logging.INFO if RPCS.get(method) == CLIENT else logging.DEBUG
            log.log(level, "%s of %s: %s in %.2f s", method, caller, status, time.monotonic() - began)
