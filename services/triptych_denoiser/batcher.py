"""The batcher: rows of concurrent calls that wait together run together where one pass can take them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from statistics import fmean

import torch
from opentelemetry.trace import Span, get_current_span
from torch import Tensor

from triptych.compute.thread import compute
from triptych.errors import deadline_exceeded, out_of_memory, resource_exhausted, unavailable
from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import COMPUTE_SECONDS, QUEUE, QUEUE_SECONDS
from triptych_denoiser.costs import Costs, Sizes
from triptych_denoiser.predictor import Predictor
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserOptions

log = logging.getLogger(__name__)

_WINDOW_SHARE = 0.1
_MAX_RETRY_SECONDS = 30.0
_ROWS = {QUEUE: "rows"}


@dataclass(frozen=True)
class Prediction:
    """A call's velocities, float32 [rows, channels, height, width], and how its time went.

    reused: whose features were those of another evaluation.
    sums: as Velocities has them.
    batch_rows: of the passes, on average; other calls' rows share them.
    waiting_rows, oldest_row_seconds: what still waits, and for how long the first.
    """

    velocities: Tensor
    reused: Sequence[bool]
    sums: Sequence[float]
    queue_seconds: float
    compute_seconds: float
    batch_rows: float
    waiting_rows: int
    oldest_row_seconds: float


Key = tuple[object, ...]
"""What rows have in common."""


@dataclass(eq=False)
class _Call:
    """The rows of one call: they may run in several passes, and it is done when it has every velocity."""

    rows: Sequence[Row]
    arrived: float
    done: asyncio.Future[None]
    velocities: dict[int, Tensor] = field(default_factory=dict)
    reused: set[int] = field(default_factory=set)
    sums: dict[int, float] = field(default_factory=dict)
    compute_seconds: float = 0.0
    batches: list[int] = field(default_factory=list)
    latest_batch: dict[str, int] = field(default_factory=dict)
    span: Span = field(default_factory=get_current_span)

    def take(self, index: int, velocity: Tensor, reused: bool, added: float) -> None:
        self.velocities[index] = velocity
        self.sums[index] = added
        if reused:
            self.reused.add(index)
        if len(self.velocities) == len(self.rows) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A row in the queue, and when it is due by the clock of even shares.

    group: what rows must have in common to share a pass.
    alike: what equal rows have in common.
    """

    call: _Call
    index: int
    tokens: int
    due: float
    group: Key

    @property
    def row(self) -> Row:
        return self.call.rows[self.index]

    @property
    def alike(self) -> Key:
        return self.group, self.row.shape


@dataclass(frozen=True)
class _Batch:
    """The rows of a pass, and what those have in common that the next one may wait for."""

    rows: Sequence[_Waiting]
    kind: Key


class _EvenShares:
    """The seconds that each call would have had of the denoiser, if all that are there shared it evenly.

    This is the virtual time of fair queueing (Demers, Keshav, Shenker, "Analysis and simulation of a fair
    queueing algorithm", 1989).
    """

    def __init__(self) -> None:
        self._seconds, self._calls, self._at = 0.0, 0, time.monotonic()

    def seconds(self) -> float:
        """Up to now."""
        now = time.monotonic()
        self._seconds += (now - self._at) / max(1, self._calls)
        self._at = now
        return self._seconds

    @contextmanager
    def shared_by_one_more(self) -> Iterator[None]:
        """While a call is there."""
        self.seconds()
        self._calls += 1
        try:
            yield
        finally:
            self.seconds()
            self._calls -= 1


class Batcher:
    """Queues rows and runs them in passes on the compute thread; the event loop stays free.

    The row that is due first is in the next pass, with those behind it that can share it, whatever their size
    and text length: as many as memory allows. Where measured costs say that passes of equal rows are cheaper,
    it is with its equals alone, as many as are worth it.

    A call is due when it would be done if all calls shared the denoiser evenly: served in this order none is
    done later than that (Friedman and Henderson, "Fairness and efficiency in web server protocols", 2003).
    What does not fit into its first pass is due later, by what the passes before it take. So small calls pass
    between the rows of a large one and pay for what they cost, and nobody comes first by a short deadline:
    that only ends the waiting.
    """

    def __init__(self, predictor: Predictor, options: DenoiserOptions) -> None:
        self._predictor = predictor
        self._options = options
        self._costs = Costs()
        self._queue: list[_Waiting] = []
        self._passes: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._expected: tuple[Key, int] = (), 0  # of this kind, so many rows
        self._window_until = 0.0
        self._shares = _EvenShares()
        self._max_batch_tokens = options.max_batch_tokens
        instruments.queue_length.watch(self, lambda batcher: len(batcher._queue), _ROWS)
        instruments.queue_age.watch(self, Batcher._age, _ROWS)

    async def predict(self, rows: Sequence[Row], timeout: float | None = None) -> Prediction:
        """The velocities of a call's rows, in order. Cancelled or late, its waiting rows leave the queue.

        Raises:
            TriptychError: RESOURCE_EXHAUSTED if the rows do not fit in the queue, or one of them not in
                memory; DEADLINE_EXCEEDED after `timeout` seconds.
        """
        self._check_room(len(rows))
        arrived = time.monotonic()
        call = _Call(rows, arrived, asyncio.get_running_loop().create_future())
        self._put(self._entries(call))
        self._arrived.set()
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run_passes(), context=Context())  # nobody's own
        try:
            with self._shares.shared_by_one_more():
                async with asyncio.timeout(timeout):
                    await call.done
        except TimeoutError as error:
            raise deadline_exceeded(f"the rows were not done within {timeout:g} s") from error
        finally:
            self._queue = [waiting for waiting in self._queue if waiting.call is not call]
        velocities = torch.stack([call.velocities[index] for index in range(len(rows))])
        reused = [index in call.reused for index in range(len(rows))]
        sums = [call.sums[index] for index in range(len(rows))]
        queue_seconds = time.monotonic() - arrived - call.compute_seconds
        instruments.queue_duration.record(queue_seconds, _ROWS)
        seconds: dict[str, float] = {QUEUE_SECONDS: queue_seconds, COMPUTE_SECONDS: call.compute_seconds}
        tracing.note(seconds | call.latest_batch)
        return Prediction(
            *(velocities, reused, sums, queue_seconds, call.compute_seconds),
            *(fmean(call.batches), len(self._queue), self._age()),
        )

    async def close(self) -> None:
        """Refuses what waits, and lets the pass that runs end."""
        for waiting in self._queue:
            waiting.call.fail(unavailable("the denoiser is stopping"))
        self._arrived.set()
        if self._passes is not None:
            await self._passes

    def _age(self) -> float:
        """Seconds that the row which came first has been waiting."""
        now = time.monotonic()
        return now - min((entry.call.arrived for entry in self._queue), default=now)

    def _entries(self, call: _Call) -> list[_Waiting]:
        most, tokens = self._predictor.max_rows, [self._predictor.tokens(row) for row in call.rows]
        pass_seconds = self._costs.seconds(max(tokens), min(most, len(call.rows)))
        due = self._shares.seconds() + pass_seconds
        groups = [self._predictor.group(row) for row in call.rows]
        return [
            _Waiting(call, index, tokens[index], due + index // most * pass_seconds, groups[index])
            for index in range(len(call.rows))
        ]

    def _put(self, entries: Sequence[_Waiting]) -> None:
        self._queue = sorted([*self._queue, *entries], key=lambda entry: entry.due)

    def _check_room(self, rows: int) -> None:
        waiting, most = len(self._queue), self._options.max_queued_rows
        if waiting + rows > most:
            seconds = sum(self._costs.seconds(entry.tokens, 1) for entry in self._queue)
            raise resource_exhausted(
                f"{waiting} rows wait and {rows} more do not fit: the queue holds {most}",
                min(seconds, _MAX_RETRY_SECONDS),
            )

    async def _run_passes(self) -> None:
        while self._queue:
            await self._wait_in_window()
            if batch := self._next_batch():
                await self._run_pass(batch)

    async def _wait_in_window(self) -> None:
        """Until those are back that the pass before answered, or the window is over.

        Not at all when nobody else was there.
        """
        kind, rows = self._expected
        while self._queue and _is_of(self._queue[0], kind) and self._count(kind) < rows:
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._window_until - time.monotonic()):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _count(self, kind: Key) -> int:
        return sum(_is_of(entry, kind) for entry in self._queue)

    def _next_batch(self) -> _Batch | None:
        """Takes the next pass's rows out of the queue; None if nobody waits any more."""
        self._queue = [entry for entry in self._queue if not entry.call.done.done()]
        if not self._queue:
            return None
        batch = self._sharing(self._queue)
        taken = set(batch.rows)
        self._queue = [entry for entry in self._queue if entry not in taken]
        return batch

    def _sharing(self, waiting: Sequence[_Waiting]) -> _Batch:
        """The first row with those that may share its pass, or with its equals alone if that is cheaper."""
        first = waiting[0]
        mixable = [entry for entry in waiting if entry.group == first.group]
        equals = [entry for entry in mixable if entry.alike == first.alike]
        if len(mixable) == len(equals):
            return _Batch(self._best(equals), first.group)
        mixed = self._fitting(mixable)
        if any(entry.alike != first.alike for entry in mixed) and self._costs.mixing_pays(_sizes(mixed)):
            return _Batch(mixed, first.group)
        return _Batch(self._best(equals), first.alike)

    def _best(self, equals: Sequence[_Waiting]) -> Sequence[_Waiting]:
        """As many of these equal rows as cost the least each."""
        fitting = self._fitting(equals)
        return fitting[: self._costs.best_rows(fitting[0].tokens, len(fitting))]

    def _fitting(self, rows: Sequence[_Waiting]) -> list[_Waiting]:
        """The first of these rows, and of the others those that fit into a pass with the ones before."""
        fitting, tokens = [rows[0]], rows[0].tokens
        for entry in rows[1:]:
            if len(fitting) < self._predictor.max_rows and tokens + entry.tokens <= self._max_batch_tokens:
                fitting.append(entry)
                tokens += entry.tokens
        return fitting

    async def _run_pass(self, batch: _Batch) -> None:
        rows = [waiting.row for waiting in batch.rows]
        calls = {waiting.call.span for waiting in batch.rows}
        tokens = sum(waiting.tokens for waiting in batch.rows)
        size = {"triptych.batch.rows": len(rows), "triptych.batch.tokens": tokens}
        started = time.monotonic()
        try:
            with tracing.batch(calls, size):
                predicted = await compute(self._predictor.predict, rows)
        except torch.OutOfMemoryError as error:
            self._make_smaller(batch.rows, error)
            return
        except Exception as error:
            for waiting in batch.rows:
                waiting.call.fail(error)
            return
        seconds = time.monotonic() - started
        self._note(batch.rows, seconds)
        for call in {waiting.call for waiting in batch.rows}:
            call.compute_seconds += seconds
            call.batches.append(len(rows))
            call.latest_batch = size
        for waiting, velocity, reused, added in zip(batch.rows, *predicted, strict=True):
            waiting.call.take(waiting.index, velocity, reused, added)
        expected = min(len(rows) + self._count(batch.kind), self._predictor.max_rows)
        self._expected = batch.kind, expected
        most = self._options.max_batching_window_milliseconds / 1000
        self._window_until = time.monotonic() + min(_WINDOW_SHARE * seconds, most)

    def _note(self, batch: Sequence[_Waiting], seconds: float) -> None:
        sizes = _sizes(batch)
        instruments.batch_rows.record(len(batch))
        instruments.batch_tokens.add(sum(entry.tokens for entry in batch))
        instruments.batch_duration.record(seconds)
        if len({entry.alike for entry in batch}) == 1:
            self._costs.note(batch[0].tokens, len(batch), seconds)
        else:
            self._costs.note_mixed(sizes, seconds)
        described = ", ".join(f"{rows} of {tokens} tokens" for tokens, rows in sizes.items())
        log.debug("rows: %s, in %.1f ms", described, 1000 * seconds)

    def _make_smaller(self, batch: Sequence[_Waiting], error: torch.OutOfMemoryError) -> None:
        """Lets the rows of a pass that did not fit in memory wait for smaller ones; refuses a single one."""
        tokens = sum(entry.tokens for entry in batch)
        if len(batch) == 1:
            log.error("one row of %d tokens does not fit in memory: %s", tokens, error)
            batch[0].call.fail(out_of_memory(f"a row of {tokens} tokens does not fit in memory"))
            return
        self._max_batch_tokens = tokens // 2
        log.warning(
            "%d rows of %d tokens together do not fit in memory: from now on passes have at most %d tokens",
            len(batch),
            tokens,
            self._max_batch_tokens,
        )
        self._put(batch)


def _is_of(entry: _Waiting, kind: Key) -> bool:
    return kind in (entry.group, entry.alike)


def _sizes(batch: Sequence[_Waiting]) -> Sizes:
    return Counter(entry.tokens for entry in batch)
