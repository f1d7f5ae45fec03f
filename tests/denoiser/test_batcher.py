"""The batcher over a predictor that notes its passes and waits to be let go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import grpc
import pytest
import torch

from triptych.errors import TriptychError, retry_after_seconds
from triptych_denoiser.batcher import Batcher
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.predictor import Velocities
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserOptions

CONDITIONING = Conditioning(torch.zeros(1, 1), torch.zeros(1), 1)


def row(name: float, size: int = 2, conditioning: Conditioning = CONDITIONING) -> Row:
    """A row whose velocity is its name."""
    return Row(torch.full((1, size, size), float(name)), 0.5, conditioning)


def limits(rows: int, tokens: int, milliseconds: float) -> DenoiserOptions:
    """Of the queue, of a pass, and of the batching window."""
    return DenoiserOptions(
        max_queued_rows=rows, max_batch_tokens=tokens, max_batching_window_milliseconds=milliseconds
    )


LIMITS = limits(8, 1000, 5)


class Clock:
    """The batcher's, which these tests set: its choices then do not depend on how busy the machine is."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("triptych_denoiser.batcher.time", clock)
    return clock


class HeldPredictor:
    """Gives latents back as velocities, a pass for each `release`, which takes `seconds` by the clock."""

    def __init__(self, clock: Clock, max_rows: int, mixes: bool = False) -> None:
        self.clock = clock
        self.max_rows = max_rows
        self.mixes = mixes
        self.seconds: Callable[[Sequence[Row]], float] = lambda rows: 0.001
        self.passes: list[list[float]] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self._permits = threading.Semaphore(0)

    def tokens(self, row: Row) -> int:
        return row.latents.numel() + len(row.conditioning.sequence) - 1

    def group(self, row: Row) -> tuple[object, ...]:
        return row.variant if self.mixes else (*row.variant, row.shape)

    def release(self, passes: int = 100) -> None:
        self._permits.release(passes)

    def predict(self, rows: Sequence[Row]) -> Velocities:
        self.passes.append([row.latents.max().item() for row in rows])
        self.threads.add(threading.current_thread().name)
        assert self._permits.acquire(timeout=10)
        if self.error:
            error, self.error = self.error, None
            raise error
        self.clock.now += self.seconds(rows)
        return Velocities.of([row.latents for row in rows], [False] * len(rows))

    async def began(self, passes: int) -> None:
        """Waits until so many passes have begun."""
        while len(self.passes) < passes:
            await asyncio.sleep(0.001)


@pytest.fixture
async def predictor(clock: Clock) -> HeldPredictor:
    return HeldPredictor(clock, max_rows=3)


@pytest.fixture
async def batcher(predictor: HeldPredictor) -> AsyncIterator[Batcher]:
    batcher = Batcher(predictor, LIMITS)  # type: ignore[arg-type]
    yield batcher
    predictor.release()
    await batcher.close()


async def waiting(batcher: Batcher, *rows: Row, timeout: float | None = None) -> asyncio.Task[Any]:
    """A call that has come to the batcher, 20 ms after the one before; if nothing ran, its pass has begun."""
    predictor = cast(HeldPredictor, batcher._predictor)
    idle, passes = batcher._passes is None or batcher._passes.done(), len(predictor.passes)
    predictor.clock.now += 0.02
    task = asyncio.create_task(batcher.predict(rows, timeout))
    await asyncio.sleep(0)
    if idle:
        await predictor.began(passes + 1)
    return task


async def test_rows_that_wait_together_run_together(batcher: Batcher, predictor: HeldPredictor) -> None:
    calls = [
        await waiting(batcher, row(1)),
        await waiting(batcher, row(2), row(3)),
        await waiting(batcher, row(4)),
    ]
    predictor.release()
    predictions = await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2, 3, 4]]
    assert [p.velocities.amax((1, 2, 3)).tolist() for p in predictions] == [[1], [2, 3], [4]]
    assert predictions[1].queue_seconds == pytest.approx(0.021)
    assert predictor.threads == {"compute_0"}


async def test_the_longest_waiting_row_says_the_shape_of_a_pass(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    calls = [await waiting(batcher, row(1))]
    for name, size in ((2, 4), (3, 2), (4, 4), (5, 2), (6, 6)):
        calls.append(await waiting(batcher, row(name, size)))
    predictor.release()
    await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2, 4], [3, 5], [6]]


async def test_rows_of_a_weakened_model_share_a_pass_with_their_like_alone(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    latents = [row(name).latents for name in range(6)]
    layers = [{}, {"skipped_layers": (7, 8)}, {}, {"skipped_layers": (7,)}, {"perturbed_layers": (7,)},
              {"skipped_layers": (7, 8)}]  # fmt: skip
    rows = [Row(each, 0.5, CONDITIONING, **weak) for each, weak in zip(latents, layers, strict=True)]
    predictor.release()
    prediction = await batcher.predict(rows)

    assert predictor.passes == [[0, 2], [1, 5], [3], [4]]
    assert prediction.velocities.amax((1, 2, 3)).tolist() == list(range(6))


async def test_a_call_with_more_rows_than_a_pass_gets_them_all_in_order(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    predictor.release()
    prediction = await batcher.predict([row(name) for name in range(8)])

    assert predictor.passes == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert prediction.velocities.amax((1, 2, 3)).tolist() == list(range(8))


async def test_a_cancelled_call_leaves_and_its_neighbours_stay(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    first = await waiting(batcher, row(1))
    cancelled = await waiting(batcher, row(2), row(3))
    neighbour = await waiting(batcher, row(4))
    cancelled.cancel()
    await asyncio.wait([cancelled])
    predictor.release()
    await asyncio.gather(first, neighbour)

    assert cancelled.cancelled()
    assert predictor.passes == [[1], [4]]


async def test_a_call_cancelled_in_its_pass_harms_nobody(batcher: Batcher, predictor: HeldPredictor) -> None:
    first = await waiting(batcher, row(1), row(2), row(3), row(4))
    neighbour = await waiting(batcher, row(5))
    first.cancel()
    await asyncio.wait([first])
    predictor.release()

    assert (await neighbour).velocities.max().item() == 5
    assert predictor.passes == [[1, 2, 3], [5]]


async def test_a_call_whose_time_is_over_leaves(batcher: Batcher, predictor: HeldPredictor) -> None:
    first = await waiting(batcher, row(1))
    with pytest.raises(TriptychError) as late:
        await batcher.predict([row(2)], timeout=0.05)
    predictor.release()
    await first

    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert predictor.passes == [[1]]


async def test_a_full_queue_refuses_and_says_when_to_come_back(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    running = await waiting(batcher, row(0))
    queued = await waiting(batcher, *(row(name) for name in range(1, 8)))
    with pytest.raises(TriptychError) as refused:
        await batcher.predict([row(8), row(9)])
    last = await waiting(batcher, row(8))
    predictor.release()
    await asyncio.gather(running, queued, last)

    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.message == "7 rows wait and 2 more do not fit: the queue holds 8"
    assert (retry_after_seconds(refused.value) or 0) > 0


async def test_a_pass_that_fails_fails_its_calls_alone(batcher: Batcher, predictor: HeldPredictor) -> None:
    predictor.error = RuntimeError("out of memory")
    failing = await waiting(batcher, row(1), row(2), row(3), row(4))
    neighbour = await waiting(batcher, row(5))
    predictor.release()
    await asyncio.wait([failing, neighbour])

    assert isinstance(failing.exception(), RuntimeError)
    assert neighbour.result().velocities.max().item() == 5
    assert predictor.passes == [[1, 2, 3], [5]]


async def test_closing_refuses_what_waits(predictor: HeldPredictor) -> None:
    batcher = Batcher(predictor, LIMITS)  # type: ignore[arg-type]
    running, waits = await waiting(batcher, row(1)), await waiting(batcher, row(2))
    predictor.release()
    await batcher.close()
    await asyncio.wait([running, waits])

    assert running.result().velocities.max().item() == 1
    error = waits.exception()
    assert isinstance(error, TriptychError)
    assert error.code is grpc.StatusCode.UNAVAILABLE


async def test_a_short_deadline_is_no_advantage(batcher: Batcher, predictor: HeldPredictor) -> None:
    calls = [await waiting(batcher, row(1))]
    calls.append(await waiting(batcher, row(2, 4)))
    calls.append(await waiting(batcher, row(3, 6), timeout=20))
    calls.append(await waiting(batcher, row(4, 8), timeout=10))
    predictor.release()
    await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2], [3], [4]]


async def test_a_small_call_that_came_a_little_later_goes_before_a_large_one(
    predictor: HeldPredictor,
) -> None:
    batcher = Batcher(predictor, LIMITS)  # type: ignore[arg-type]
    predictor.seconds = lambda rows: 0.05
    predictor.release(1)
    await batcher.predict([row(0, 2)])  # what a pass of few tokens takes is known then
    predictor.seconds = lambda rows: 0.001
    calls = [await waiting(batcher, row(name, size)) for name, size in ((1, 2), (2, 16), (3, 2))]
    predictor.release()
    await asyncio.gather(*calls)
    await batcher.close()

    assert predictor.passes == [[0], [1], [3], [2]]


async def test_a_large_call_has_an_even_share_while_small_ones_come_and_go(clock: Clock) -> None:
    """A half or a third, as they come back: its 16 s are nearer than another's 4 s after 24 to 36 s,
    and a small one or two that were there before go first.
    """
    predictor = HeldPredictor(clock, max_rows=1)
    predictor.seconds = lambda rows: rows[0].latents.numel()
    batcher = Batcher(predictor, LIMITS)  # type: ignore[arg-type]
    predictor.release()
    await batcher.predict([row(0, 2)])
    await batcher.predict([row(0, 4)])

    async def ask(times: int) -> None:
        for _ in range(times):
            await batcher.predict([row(1, 2)])

    await asyncio.gather(ask(20), ask(20), batcher.predict([row(2, 4)]))
    await batcher.close()

    assert 6 <= predictor.passes[2:].index([2]) <= 13


async def test_a_small_call_passes_between_the_rows_of_a_large_one(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    large = await waiting(batcher, *(row(name) for name in range(7)))
    small = await waiting(batcher, row(7))
    predictor.release()
    await asyncio.gather(large, small)

    assert predictor.passes == [[0, 1, 2], [7, 3, 4], [5, 6]]


async def test_a_pass_holds_as_many_tokens_as_it_may(predictor: HeldPredictor) -> None:
    batcher = Batcher(predictor, limits(8, 8, 0))  # type: ignore[arg-type]
    predictor.release()
    await batcher.predict([row(name) for name in range(4)])
    await batcher.predict([row(4, 16)])
    await batcher.close()

    assert predictor.passes == [[0, 1], [2, 3], [4]]


async def test_a_pass_waits_a_little_for_those_that_the_one_before_answered(predictor: HeldPredictor) -> None:
    """Two clients that ask step by step stay together, though one of them comes back later."""
    batcher = Batcher(predictor, limits(8, 1000, 60_000))  # type: ignore[arg-type]
    calls = [await waiting(batcher, row(name)) for name in range(3)]
    predictor.release(1)
    await calls[0]
    predictor.seconds = lambda rows: 100  # a tenth of this would be the window
    predictor.release(1)
    await asyncio.gather(*calls[1:])
    quick = asyncio.create_task(batcher.predict([row(3)]))
    await asyncio.sleep(0)
    late = asyncio.create_task(batcher.predict([row(4)]))
    predictor.release()
    await asyncio.gather(quick, late)
    await batcher.close()

    assert predictor.passes == [[0], [1, 2], [3, 4]]


async def test_nobody_waits_long_for_company_that_does_not_come(predictor: HeldPredictor) -> None:
    batcher = Batcher(predictor, limits(8, 1000, 600_000))  # type: ignore[arg-type]
    predictor.release()
    async with asyncio.timeout(60):  # the longest window is of 10 minutes
        predictor.seconds = lambda rows: 1  # a tenth of this is the window
        await batcher.predict([row(0), row(1)])
        await batcher.predict([row(2)])
        predictor.seconds = lambda rows: 10_000
        await batcher.predict([row(3)])  # after it nobody is waited for
        await batcher.predict([row(4)])
        await batcher.predict([row(5, 4)])
    await batcher.close()


async def test_passes_that_do_not_fit_in_memory_become_smaller(
    batcher: Batcher, predictor: HeldPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    predictor.error = torch.OutOfMemoryError("CUDA out of memory")
    predictor.release()
    prediction = await batcher.predict([row(1), row(2), row(3)])
    await batcher.predict([row(4), row(5)])

    assert prediction.velocities.amax((1, 2, 3)).tolist() == [1, 2, 3]
    assert predictor.passes == [[1, 2, 3], [1], [2], [3], [4], [5]]
    assert "from now on passes have at most 6 tokens" in caplog.text


async def test_a_row_that_does_not_fit_in_memory_is_refused(
    batcher: Batcher, predictor: HeldPredictor
) -> None:
    predictor.error = torch.OutOfMemoryError("CUDA out of memory")
    predictor.release()
    with pytest.raises(TriptychError, match="a row of 256 tokens does not fit in memory") as no:
        await batcher.predict([row(1, 16)])

    assert no.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_after_seconds(no.value) is None
    assert (await batcher.predict([row(2)])).velocities.max().item() == 2


@pytest.fixture
async def mixing(clock: Clock) -> AsyncIterator[tuple[Batcher, HeldPredictor]]:
    """A batcher that mixes sizes, up to 4 rows and 100 tokens; it knows what sizes 2, 4 and 6 cost."""
    predictor = HeldPredictor(clock, max_rows=4, mixes=True)
    batcher = Batcher(predictor, limits(20, 100, 5))  # type: ignore[arg-type]
    for size in (2, 4, 6) * 3:
        predictor.release(1)
        await batcher.predict([row(0, size)])
    predictor.passes.clear()
    yield batcher, predictor
    predictor.release()
    await batcher.close()


async def test_rows_of_any_size_share_a_pass(mixing: tuple[Batcher, HeldPredictor]) -> None:
    batcher, predictor = mixing
    calls = [await waiting(batcher, row(1))]
    for name, size in ((2, 4), (3, 2), (4, 4), (5, 6)):
        calls.append(await waiting(batcher, row(name, size)))
    predictor.release()
    predictions = await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2, 3, 4, 5]]
    assert [p.velocities.shape[-1] for p in predictions] == [2, 4, 2, 4, 6]
    assert [p.velocities.max().item() for p in predictions] == [1, 2, 3, 4, 5]


async def test_branches_of_a_call_share_a_pass_though_their_prompts_differ_in_length(
    mixing: tuple[Batcher, HeldPredictor],
) -> None:
    """And are counted as long as they are."""
    batcher, predictor = mixing
    short, long = (Conditioning(torch.zeros(tokens, 1), torch.zeros(1), 1) for tokens in (1, 8))
    predictor.release()
    for names in ((1, 2), (3, 4)):
        await batcher.predict([row(names[0], 6, short), row(names[1], 6, long)])
    await batcher.predict([row(5, 6, long), row(6, 6, short), row(7, 6, short)])

    assert predictor.passes == [[1, 2], [3, 4], [5, 6], [7]]


async def test_a_size_that_is_new_goes_alone_a_few_times(mixing: tuple[Batcher, HeldPredictor]) -> None:
    batcher, predictor = mixing
    predictor.release()
    for _ in range(4):
        await asyncio.gather(batcher.predict([row(1, 8)]), batcher.predict([row(2, 2)]))

    alone, together = predictor.passes[:6], predictor.passes[6:]
    assert sorted(alone) == 3 * [[1]] + 3 * [[2]]
    assert [sorted(one) for one in together] == [[1, 2]]


async def test_a_mixed_pass_holds_as_many_tokens_as_it_may(mixing: tuple[Batcher, HeldPredictor]) -> None:
    """Of 100; what does not fit waits, and what is behind it and fits goes."""
    batcher, predictor = mixing
    calls = [await waiting(batcher, row(1))]
    for name, size in ((2, 6), (3, 6), (4, 6), (5, 4), (6, 2)):
        calls.append(await waiting(batcher, row(name, size)))
    predictor.release()
    await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2, 3, 5, 6], [4]]


async def test_rows_that_came_first_are_in_the_next_pass(mixing: tuple[Batcher, HeldPredictor]) -> None:
    batcher, predictor = mixing
    calls = [await waiting(batcher, row(1))]
    calls.append(await waiting(batcher, row(2), row(3), row(4), row(5)))
    calls.append(await waiting(batcher, row(6, 6), timeout=20))
    calls.append(await waiting(batcher, row(7, 4), timeout=10))
    predictor.release()
    await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2, 3, 4, 5], [6, 7]]


async def test_a_large_row_does_not_starve_behind_small_ones(mixing: tuple[Batcher, HeldPredictor]) -> None:
    """It does not fit beside two others that were there before, and does not wait for a third."""
    batcher, predictor = mixing
    calls = [await waiting(batcher, row(1))]
    for name, size in ((2, 6), (3, 6), (4, 6)):
        calls.append(await waiting(batcher, row(name, size)))
    for name in range(5, 12):
        predictor.release(1)
        await predictor.began(name - 3)
        calls.append(await waiting(batcher, row(name)))
    predictor.release()
    await asyncio.gather(*calls)

    assert [4 in one for one in predictor.passes].index(True) <= 2


async def test_rows_of_other_models_do_not_share_a_mixed_pass(mixing: tuple[Batcher, HeldPredictor]) -> None:
    batcher, predictor = mixing
    plain, weak = [row(1), row(2, 4)], [row(3), row(4, 4)]
    weakened = [Row(each.latents, 0.5, CONDITIONING, skipped_layers=(7,)) for each in weak]
    calls = [await waiting(batcher, row(0)), await waiting(batcher, *plain[:1])]
    calls += [await waiting(batcher, each) for each in (weakened[0], plain[1], weakened[1])]
    predictor.release()
    await asyncio.gather(*calls)

    assert predictor.passes == [[0], [1, 2], [3, 4]]


async def test_sizes_go_apart_where_mixing_them_was_slower(mixing: tuple[Batcher, HeldPredictor]) -> None:
    batcher, predictor = mixing
    predictor.seconds = lambda rows: 0.02 * len({row.shape for row in rows}) - 0.01
    predictor.release(1000)

    async def request(size: int) -> None:
        for step in range(12):
            await batcher.predict([row(step, size)])

    await asyncio.gather(request(2), request(4))
    mixed = [len(one) > 1 for one in predictor.passes]
    assert any(mixed[:12])
    assert not any(mixed[-4:])


async def test_a_mixed_pass_that_does_not_fit_in_memory_becomes_smaller(
    mixing: tuple[Batcher, HeldPredictor], caplog: pytest.LogCaptureFixture
) -> None:
    batcher, predictor = mixing
    calls = [await waiting(batcher, row(1))]
    calls += [await waiting(batcher, row(name, size)) for name, size in ((2, 6), (3, 4), (4, 2))]
    predictor.release(1)
    await calls[0]
    predictor.error = torch.OutOfMemoryError("CUDA out of memory")
    predictor.release()
    await asyncio.gather(*calls)

    assert predictor.passes == [[1], [2, 3, 4], [2], [3, 4]]
    assert "3 rows of 56 tokens together do not fit in memory" in caplog.text


async def test_a_pass_waits_for_company_of_other_sizes(mixing: tuple[Batcher, HeldPredictor]) -> None:
    """Two clients of different sizes that ask step by step stay together."""
    batcher, predictor = mixing
    batcher._options = limits(20, 100, 60_000)
    calls = [
        await waiting(batcher, row(0)),
        await waiting(batcher, row(1)),
        await waiting(batcher, row(2, 4)),
    ]
    predictor.release(1)
    await calls[0]
    predictor.seconds = lambda rows: 100  # a tenth of this would be the window
    predictor.release(1)
    await asyncio.gather(*calls)
    quick = asyncio.create_task(batcher.predict([row(3)]))
    await asyncio.sleep(0)
    late = asyncio.create_task(batcher.predict([row(4, 4)]))
    predictor.release()
    await asyncio.gather(quick, late)

    assert predictor.passes == [[0], [1, 2], [3, 4]]
