"""A process that is told to stop before there is anything to save."""

import logging
import os
import signal
from types import FrameType


def end_at_once_when_told(name: str) -> None:
    """From now on SIGTERM and SIGINT end this process with a line and the status 128 + the signal's number.

    The first process of a container has no default handlers: it would not hear them.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        try:
            os.write(2, f"{_line(name, f'stopped by {signal.Signals(number).name}')}\n".encode())
        finally:
            os._exit(128 + number)  # nothing is waited for, e.g. no thread that loads a model

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _line(name: str, message: str) -> str:
    """In the form of this process's log, if it has one, which itself may be just writing."""
    handlers = logging.getLogger().handlers
    if not handlers:
        return f"{name}: {message}"
    return handlers[0].format(logging.LogRecord("", logging.INFO, "", 0, message, None, None))
