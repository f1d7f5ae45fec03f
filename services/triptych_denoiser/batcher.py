"""The batcher: rows of concurrent calls that wait together run together when their shapes match."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triptych.compute import compute_thread
from triptych.errors import deadline_exceeded, resource_exhausted, unavailable
from triptych_denoiser.predictor import Predictor, Row

_FIRST_GUESS_SECONDS = 0.1
_MAX_RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class Prediction:
    """A call's velocities, float32 [rows, channels, height, width], and how its time went.

    reused: whose features were those of another evaluation.
    """

    velocities: Tensor
    reused: Sequence[bool]
    queue_seconds: float
    compute_seconds: float


@dataclass(eq=False)
class _Call:
    """The rows of one call: they may run in several passes, and it is done when it has every velocity."""

    rows: Sequence[Row]
    done: asyncio.Future[None]
    velocities: dict[int, Tensor] = field(default_factory=dict)
    reused: set[int] = field(default_factory=set)
    compute_seconds: float = 0.0

    def take(self, index: int, velocity: Tensor, reused: bool) -> None:
        self.velocities[index] = velocity
        if reused:
            self.reused.add(index)
        if len(self.velocities) == len(self.rows) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A row in the queue."""

    call: _Call
    index: int

    @property
    def row(self) -> Row:
        return self.call.rows[self.index]


class Batcher:
    """Queues rows and runs them in passes on the compute thread, the event loop stays free.

    A pass is made of the row that has waited longest and those of its shape behind it, so no shape starves
    another. Nothing waits for company: a pass starts when the one before has ended.
    """

    def __init__(self, predictor: Predictor, max_queued_rows: int) -> None:
        self._predictor = predictor
        self._max_queued_rows = max_queued_rows
        self._queue: list[_Waiting] = []
        self._passes: asyncio.Task[None] | None = None
        self._pass_seconds = _FIRST_GUESS_SECONDS

    async def predict(self, rows: Sequence[Row], timeout: float | None = None) -> Prediction:
        """The velocities of a call's rows, in order. Cancelled or late, its waiting rows leave the queue.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED if the rows do not fit in the queue, DEADLINE_EXCEEDED after
                `timeout` seconds.
        """
        self._check_room(len(rows))
        arrived = time.monotonic()
        call = _Call(rows, asyncio.get_running_loop().create_future())
        self._queue += [_Waiting(call, index) for index in range(len(rows))]
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run_passes())
        try:
            async with asyncio.timeout(timeout):
                await call.done
        except TimeoutError as error:
            raise deadline_exceeded(f"the rows were not done within {timeout:g} s") from error
        finally:
            self._queue = [waiting for waiting in self._queue if waiting.call is not call]
        velocities = torch.stack([call.velocities[index] for index in range(len(rows))])
        reused = [index in call.reused for index in range(len(rows))]
        queue_seconds = time.monotonic() - arrived - call.compute_seconds
        return Prediction(velocities, reused, queue_seconds, call.compute_seconds)

    async def close(self) -> None:
        """Refuses what waits, and lets the pass that runs end."""
        for waiting in self._queue:
            waiting.call.fail(unavailable("the denoiser is stopping"))
        if self._passes is not None:
            await self._passes

    def _check_room(self, rows: int) -> None:
        waiting = len(self._queue)
        if waiting + rows > self._max_queued_rows:
            passes = waiting / self._predictor.max_rows
            raise resource_exhausted(
                f"{waiting} rows wait and {rows} more do not fit: the queue holds {self._max_queued_rows}",
                min(max(passes, 1) * self._pass_seconds, _MAX_RETRY_SECONDS),
            )

    async def _run_passes(self) -> None:
        while batch := self._next_batch():
            await self._run_pass(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Takes the next pass's rows out of the queue; none if nobody waits any more."""
        waiting = [entry for entry in self._queue if not entry.call.done.done()]
        shape = waiting[0].row.shape if waiting else ()
        batch = [entry for entry in waiting if entry.row.shape == shape][: self._predictor.max_rows]
        taken = set(batch)
        self._queue = [entry for entry in waiting if entry not in taken]
        return batch

    async def _run_pass(self, batch: Sequence[_Waiting]) -> None:
        rows = [waiting.row for waiting in batch]
        loop, started = asyncio.get_running_loop(), time.monotonic()
        try:
            predicted = await loop.run_in_executor(compute_thread(), self._predictor.predict, rows)
        except Exception as error:
            for waiting in batch:
                waiting.call.fail(error)
            return
        self._pass_seconds = time.monotonic() - started
        for call in {waiting.call for waiting in batch}:
            call.compute_seconds += self._pass_seconds
        for waiting, velocity, reused in zip(batch, *predicted, strict=True):
            waiting.call.take(waiting.index, velocity, reused)
