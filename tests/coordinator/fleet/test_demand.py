"""Rows outstanding, their mean, and who hears that a stage is needed."""

import asyncio
from contextlib import aclosing

import pytest

from triptych_coordinator.fleet.demand import MEAN_SECONDS, Demand


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rows_are_those_of_all_who_hold_some() -> None:
    demand = Demand()
    with demand.outstanding(3), demand.outstanding(2), demand.expected():
        assert demand.rows == 5
    assert demand.rows == 0


def test_rows_of_what_failed_are_outstanding_no_more() -> None:
    demand = Demand()
    with pytest.raises(ValueError, match="it failed"), demand.outstanding(3):
        raise ValueError("it failed")
    assert demand.rows == 0


def test_the_mean_follows_the_rows_and_forgets() -> None:
    clock = Clock()
    demand = Demand(clock)
    with demand.outstanding(8):
        assert demand.mean_rows == 0
        clock.now += MEAN_SECONDS
        assert demand.mean_rows == pytest.approx(8 * (1 - 0.36788), rel=1e-4)
        clock.now += 100 * MEAN_SECONDS
        assert demand.mean_rows == pytest.approx(8)
    clock.now += MEAN_SECONDS
    assert demand.mean_rows == pytest.approx(8 * 0.36788, rel=1e-4)


def test_calls_shorter_than_the_time_between_questions_count_by_their_share_of_time() -> None:
    clock = Clock()
    demand = Demand(clock)
    for _ in range(400):
        with demand.outstanding(10):
            clock.now += 0.02
        clock.now += 0.08
    assert demand.mean_rows == pytest.approx(2, abs=0.05)


def test_it_is_needed_while_rows_are_outstanding_or_expected_and_a_while_longer() -> None:
    clock = Clock()
    demand = Demand(clock)
    assert not demand.needed(30)
    with demand.expected():
        clock.now += 1000
        assert demand.needed(0)
    assert not demand.needed(0)
    clock.now += 29
    assert demand.needed(30)
    clock.now += 2
    assert not demand.needed(30)


async def test_a_change_is_told_at_once_and_short_gaps_are_not_told() -> None:
    demand = Demand()
    async with aclosing(demand.changes(linger_seconds=0.3)) as changes, asyncio.timeout(30):
        assert not await anext(changes)
        following = asyncio.create_task(anext(changes))
        await asyncio.sleep(0)
        for _ in range(3):
            with demand.outstanding(1):
                assert await asyncio.shield(following)
            await asyncio.sleep(0)
        ending = asyncio.create_task(anext(changes))
        with demand.outstanding(1):
            await asyncio.sleep(0.4)
            assert not ending.done()
        assert not await ending
        assert not demand.needed(0.3)


async def test_everybody_hears_of_changes_until_they_end() -> None:
    demand = Demand()
    heard = [demand.changes(10) for _ in range(3)]
    assert [await anext(one) for one in heard] == [False] * 3
    waiting = [asyncio.ensure_future(anext(one)) for one in heard]
    await asyncio.sleep(0)
    with demand.outstanding(1):
        assert await asyncio.gather(*waiting) == [True] * 3
    ending = [asyncio.ensure_future(anext(one, None)) for one in heard]
    await asyncio.sleep(0)
    demand.end_changes()
    assert await asyncio.gather(*ending) == [None] * 3
