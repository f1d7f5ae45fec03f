"""Requests that run, by who asked: how far they are, and how they are interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Job:
    """A request that waits or runs. `preview` is the last one, a PNG; began is on the monotonic clock.

    position: among those that wait, from 1 on; 0 once it runs. wait_seconds: until its turn, about.
    """

    task: asyncio.Task[object]
    began: float = field(default_factory=time.monotonic)
    step: int = 0
    num_steps: int = 0
    position: int = 0
    wait_seconds: float = 0.0
    preview: bytes = b""
    interrupted: bool = False

    def progress(self) -> float:
        """0 to 1."""
        return self.step / self.num_steps if self.num_steps else 0.0

    def begin(self) -> None:
        """Its turn came."""
        self.began, self.position, self.wait_seconds = time.monotonic(), 0, 0.0

    def place(self) -> str | None:
        """Where it waits, in words; None once it runs."""
        ahead = self.position - 1
        if ahead < 0:
            return None
        return f"In the queue: {ahead} request{'s' * (ahead > 1)} ahead" if ahead else "In the queue: next"

    def seconds_left(self) -> float:
        """If the steps that are left take as long as those before; 0 where there were none.

        While it waits, until its turn.
        """
        if self.position:
            return self.wait_seconds
        elapsed = time.monotonic() - self.began
        return elapsed / self.step * (self.num_steps - self.step) if self.step else 0.0


class Jobs:
    """Those that run. A caller sees and interrupts those of the same credential, and nobody else's."""

    def __init__(self) -> None:
        self._running: dict[str, list[Job]] = {}

    @contextmanager
    def running(self, caller: str, task: asyncio.Task[object]) -> Iterator[Job]:
        """A job, while the block runs."""
        job, jobs = Job(task), self._running.setdefault(caller, [])
        jobs.append(job)
        try:
            yield job
        finally:
            jobs.remove(job)
            if not jobs:
                self._running.pop(caller, None)

    def oldest(self, caller: str) -> Job | None:
        """The one that runs longest."""
        return next(iter(self._running.get(caller, ())), None)

    def interrupt(self, caller: str) -> None:
        """Ends all of a caller's."""
        for job in self._running.get(caller, ()):
            job.interrupted = True
            job.task.cancel()
