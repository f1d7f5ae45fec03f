"""The form of log lines: for people, or a JSON object each for what collects them."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from triptych.serving.settings import LogFormat
from triptych.telemetry.tracing import ids

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def chosen_format(wish: LogFormat) -> Literal["text", "json"]:
    """What "auto" is here: text where standard error is a terminal."""
    if wish != "auto":
        return wish
    return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"


class _Lines(logging.Formatter):
    """Without the words of exceptions, whoever logs them: they may quote a request."""

    def __init__(self, name: str, requests: bool = False) -> None:
        """`name` of the service. `requests`: whether lines may quote requests."""
        form = f"%(asctime)s %(levelname)s {name.replace('%', '%%')}: %(message)s"
        super().__init__(form, "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._name = name
        self._requests = requests

    def format(self, record: logging.LogRecord) -> str:
        """As logging has it."""
        if record.name == "asyncio" and not self._requests:
            what = record.getMessage().partition("\n")[0]  # the next lines show tasks with their exceptions
            record = logging.makeLogRecord(record.__dict__ | {"msg": what, "args": None})
        return self._written(record)

    def _written(self, record: logging.LogRecord) -> str:
        return super().format(record)

    def formatException(self, ei: ExceptionInfo) -> str:
        """As logging has it."""
        if self._requests or ei[0] is None:
            return super().formatException(ei)
        return "".join([*traceback.format_tb(ei[2]), ei[0].__qualname__])


class TextLines(_Lines):
    """Lines such as "2026-01-02T03:04:05Z INFO denoiser: ready on unix:/run/denoiser.sock in 1.2 s".

    Figures and the ids of trace and span follow as name=value.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As logging has it."""
        line = super().formatMessage(record)
        said = {**getattr(record, "figures", {}), **ids()}
        return " ".join([line, *(f"{name}={value}" for name, value in said.items())])


class JsonLines(_Lines):
    """{"time": ..., "level": "INFO", "service": "denoiser", "message": ...} and what else is known.

    Trace and span have the names that OpenTelemetry gives them in logs of other forms.
    """

    def _written(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "service": self._name.lower().replace(" ", "-"),
            "message": record.getMessage(),
            **ids(),
            **getattr(record, "call", {}),
            **getattr(record, "figures", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def lines_of(name: str, form: LogFormat, requests: bool = False) -> logging.Formatter:
    """The formatter of a service's lines."""
    return (TextLines if chosen_format(form) == "text" else JsonLines)(name, requests)


def as_line(formatter: logging.Formatter, level: int, message: str) -> str:
    """A message as a line of its own."""
    return formatter.format(logging.LogRecord("", level, "", 0, message, None, None))


def error_in(line: str) -> str | None:
    """The message of a line that tells an error, in either form; None of every other line."""
    try:
        told = json.loads(line)
    except ValueError:
        return line.partition(" ERROR ")[2].partition(": ")[2] or None
    if not isinstance(told, dict) or told.get("level") != "ERROR":
        return None
    return str(told.get("message", "")) or None
