"""Log lines: their form, what may not be in them, and one for each call of a known caller."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from triptych.errors import TriptychError
from triptych.serving.authorization import CLIENT, RPCS
from triptych.serving.callers import current_caller
from triptych.telemetry.tracing import trace_id

log = logging.getLogger(__name__)

request_log = logging.getLogger("triptych.requests")
"""For what may quote a request, which is nobody's to read unless --log-requests says so."""
request_log.disabled = True

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

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


def log_to_stderr(name: str, level: str, requests: bool = False) -> None:
    """Lines such as "2026-01-02T03:04:05Z INFO denoiser: ready on unix:/run/denoiser.sock in 1.2 s".

    requests: whether what may quote a request is logged too.
    """
    request_log.disabled = not requests
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(name, requests))
    logging.raiseExceptions = False  # a log that cannot be written, e.g. to a full disk, is no reason to stop
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in ("httpx", "httpx2"):  # under huggingface_hub: a line with the address for every request
        logging.getLogger(library).setLevel(logging.WARNING)


class _Lines(logging.Formatter):
    """Without the words of exceptions, whoever logs them: they may quote a request."""

    def __init__(self, name: str, requests: bool) -> None:
        form = f"%(asctime)s %(levelname)s {name.replace('%', '%%')}: %(message)s"
        super().__init__(form, "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._requests = requests

    def format(self, record: logging.LogRecord) -> str:
        """As logging has it."""
        if record.name == "asyncio" and not self._requests:
            what = record.getMessage().partition("\n")[0]  # the next lines show tasks with their exceptions
            record = logging.makeLogRecord(record.__dict__ | {"msg": what, "args": None})
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As logging has it, and the trace that the line belongs to, if there is one."""
        found = trace_id()
        line = super().formatMessage(record)
        return f"{line} trace_id={found}" if found else line

    def formatException(self, ei: ExceptionInfo) -> str:
        """As logging has it."""
        if self._requests or ei[0] is None:
            return super().formatException(ei)
        return "".join([*traceback.format_tb(ei[2]), ei[0].__qualname__])
