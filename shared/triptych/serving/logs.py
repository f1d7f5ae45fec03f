"""What is logged: a line at the end of each request with its figures, and nothing that quotes one."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from triptych.errors import TriptychError
from triptych.serving.callers.authorization import CLIENT, RPCS
from triptych.serving.callers.caller import Caller
from triptych.serving.log_lines import lines_of
from triptych.serving.measuring import status_of
from triptych.serving.settings import LogOptions

log = logging.getLogger(__name__)

request_log = logging.getLogger("triptych.requests")
"""For what may quote a request, which is nobody's to read unless --log-requests says so."""
request_log.disabled = True

REQUEST_ID = "x-request-id"
"""Metadata, or header: what a request is called in logs. A client may choose it."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

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


def request_id(sent: str | bytes | None) -> str:
    """What a request is called: as its client said, if that can be a name, or a new one."""
    return sent if isinstance(sent, str) and _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


class Call:
    """A call that a line is logged of when it has ended: who called what, how it ended, and its figures."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """A request, of a client, has an id, which the client is told too."""
        self.caller: Caller | None = None
        self.figures: dict[str, str | int | float] = {}
        self._method = method
        self._began = time.monotonic()
        self._is_request = RPCS.get(method) == CLIENT
        if self._is_request:
            name = request_id(dict(context.invocation_metadata() or ()).get(REQUEST_ID))
            self.figures["request_id"] = name
            context.set_trailing_metadata(((REQUEST_ID, name),))

    def end(self, status: str) -> None:
        """Logs the line: of requests at INFO, of the many calls of coordinators and probes at DEBUG."""
        level = logging.INFO if self._is_request else logging.DEBUG
        if not log.isEnabledFor(level) or not self._is_of_someone(status):
            return
        seconds = time.monotonic() - self._began
        of = "" if self.caller is None else f" of {self.caller}"
        call: dict[str, object] = {"method": self._method.removeprefix("/"), "status": status}
        if self.caller is not None:
            call["caller"] = str(self.caller)
        extra = {"call": {**call, "seconds": round(seconds, 4)}, "figures": self.figures}
        log.log(level, "%s%s: %s in %.2f s", self._method, of, status, seconds, extra=extra)

    def _is_of_someone(self, status: str) -> bool:
        """Strangers' calls are in the lines of refusals."""
        refused = status in (code.name for code in _REFUSED)
        return self.caller is not None or (self._is_request and not refused)


_call: ContextVar[Call | None] = ContextVar("call", default=None)


def note_caller(caller: Caller | None) -> None:
    """Whose the current call is."""
    call = _call.get()
    if call is not None:
        call.caller = caller


def note_figures(figures: Mapping[str, str | int | float]) -> None:
    """Adds to what the line at the end of the current call says. No figure may quote a request."""
    call = _call.get()
    if call is not None:
        call.figures.update(figures)


@contextmanager
def logged(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    """Logs how the call of the block ended, and nothing that it said."""
    call, allowed, status = Call(method, context), context.time_remaining(), "OK"
    _call.set(call)  # each call has a task of its own
    try:
        yield
    except BaseException as error:
        status = status_of(error, context, allowed)
        if isinstance(error, TriptychError) and error.code in _REFUSED:
            _refusals.say(method, context.peer(), error)
        raise
    finally:
        call.end(status)


def log_to_stderr(options: LogOptions, name: str) -> None:
    """From now on this process, a service of that name, logs as it was told, on standard error.

    By the standard library: structlog costs each start 40 ms, and the form of lines is all that is needed.
    """
    request_log.disabled = not options.log_requests
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(lines_of(name, options.log_format, options.log_requests))
    logging.raiseExceptions = False  # a log that cannot be written, e.g. to a full disk, is no reason to stop
    logging.basicConfig(level=options.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for library in ("httpx", "httpx2"):  # under huggingface_hub: a line with the address for every request
        logging.getLogger(library).setLevel(logging.WARNING)
