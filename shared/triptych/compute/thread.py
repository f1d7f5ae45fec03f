"""The one thread of a process that computes."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import COMPUTE_SECONDS, QUEUE, QUEUE_SECONDS

CORES_LOCK = "TRIPTYCH_CORES_LOCK"
"""Environment variable: a file that processes which share cores lock while they compute."""
_LONGEST_TURN_SECONDS = 2.0
_TURN_POLL_SECONDS = 0.0001
_turn_ended = 0.0
"""When this process's latest turn did, by the monotonic clock."""

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def compute_thread() -> ThreadPoolExecutor:
    """The thread on which every stage of this process loads its model and runs it.

    OpenMP keeps a team of threads for every thread that ever computed in parallel. As soon as there are more
    of them than cores, GNU's OpenMP no longer spins at a barrier but sleeps, and a forward pass has hundreds:
    it takes 1.3 times as long. So all other threads compute without a team.
    """
    gc.disable()  # what torch brings stays: to look through it, again and again, is an eighth of its import
    import torch

    gc.freeze()
    gc.enable()
    threads = torch.get_num_threads()
    worker = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(threads,))
    worker.submit(torch.get_num_threads).result()
    torch.set_num_threads(1)  # of this thread, and of those that begin later
    return worker


class InterruptedWorkError(Exception):
    """Ends work on the compute thread that nobody waits for any more."""


class _Waiting:
    """The work that waits for the compute thread, and since when."""

    def __init__(self) -> None:
        self.since: dict[threading.Event, float] = {}
        instruments.queue_length.watch(self, lambda waiting: len(waiting.since), _COMPUTE)
        instruments.queue_age.watch(self, _Waiting.age, _COMPUTE)

    def age(self) -> float:
        """Seconds that the first has been waiting."""
        now = time.monotonic()
        return now - min(list(self.since.values()), default=now)

    def begun(self, work: threading.Event) -> float:
        """It waits no more. Returns the seconds that it did."""
        seconds = time.monotonic() - self.since.pop(work)
        instruments.queue_duration.record(seconds, _COMPUTE)
        return seconds


_COMPUTE = {QUEUE: "compute"}
_waiting = _Waiting()
_unwanted = threading.Event()
"""Whether nobody waits for the work that the compute thread does now; each has an event of its own."""


async def compute(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `work` returns, computed on the compute thread.

    Cancelled before it began, it is dropped; later, it ends at its next call of end_if_unwanted. The current
    span has the seconds that it waited and took.
    """
    unwanted, seconds = threading.Event(), dict[str, float]()

    def run() -> R:
        global _unwanted
        with turn():
            seconds[QUEUE_SECONDS] = _waiting.begun(unwanted)
            began, _unwanted = time.monotonic(), unwanted
            try:
                return work(*args, **kwargs)
            finally:
                _unwanted = threading.Event()
                seconds[COMPUTE_SECONDS] = time.monotonic() - began
                instruments.compute_time.add(seconds[COMPUTE_SECONDS])

    _waiting.since[unwanted] = time.monotonic()
    try:
        return await asyncio.get_running_loop().run_in_executor(compute_thread(), run)
    finally:
        unwanted.set()
        _waiting.since.pop(unwanted, None)
        tracing.add(seconds)


def end_if_unwanted(*_: object) -> None:
    """Raises InterruptedWorkError if nobody waits for this work any more; may be a module's forward hook."""
    if _unwanted.is_set():
        raise InterruptedWorkError


@contextmanager
def turn() -> Iterator[None]:
    """This process's turn on cores that it shares with others, if it was told of a CORES_LOCK.

    Threads that spin at a barrier keep from the cores the very threads of other processes that those wait
    for: two transformers at once took ten times as long as one after the other. A process that is stopped
    within its turn holds the others up for _LONGEST_TURN_SECONDS each time.
    """
    global _turn_ended
    lock = _cores_lock()
    if lock is None:
        yield
        return
    time.sleep(max(0.0, _turn_ended + 2 * _TURN_POLL_SECONDS - time.monotonic()))  # whoever waits comes first
    held = _locked(lock)
    try:
        yield
    finally:
        if held:
            fcntl.flock(lock, fcntl.LOCK_UN)
            _turn_ended = time.monotonic()


def _locked(lock: int) -> bool:
    until = time.monotonic() + _LONGEST_TURN_SECONDS
    while time.monotonic() < until:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TURN_POLL_SECONDS)
        else:
            return True
    return False


@functools.cache
def _cores_lock() -> int | None:
    path = os.environ.get(CORES_LOCK)
    return os.open(path, os.O_RDONLY) if path else None
