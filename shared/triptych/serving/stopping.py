"""A process that is told to stop before there is anything to save."""

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
            os.write(2, f"{name}: stopped by {signal.Signals(number).name}\n".encode())
        finally:
            os._exit(128 + number)  # nothing is waited for, e.g. no thread that loads a model

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
