"""Quotas: what refills, what is paid for, and refusals that say the true time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import TriptychError, resource_exhausted, retry_after_seconds
from triptych.serving.callers.caller import Caller
from triptych_coordinator.quotas import FEW, Quotas


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def caller(quota: float | None, identity: str = "0a0a0a0a") -> Caller:
    return Caller("key", identity, "alice", frozenset(["client"]), quota=quota)


@asynccontextmanager
async def at_once() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def never() -> AsyncIterator[None]:
    raise resource_exhausted("32 requests wait", 7)
    yield


async def ask(quotas: Quotas, who: Caller | None, pictures: float) -> float | None:
    """What its refusal says to wait; None if it ran."""
    try:
        async with quotas.charged(who, pictures, at_once()):
            return None
    except TriptychError as error:
        return retry_after_seconds(error)


async def test_a_minutes_pictures_at_once_and_then_as_they_refill() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    assert [await ask(quotas, caller(6), 2) for _ in range(4)] == [None, None, None, 20.0]
    clock.now += 19
    assert await ask(quotas, caller(6), 2) == 1.0
    clock.now += 1
    assert await ask(quotas, caller(6), 2) is None
    assert await ask(quotas, caller(6, "0b0b0b0b"), 6) is None
    clock.now += 3600
    assert await ask(quotas, caller(6), 6) is None
    assert await ask(quotas, caller(6), 1) == 10.0


async def test_callers_with_nothing_to_pay_are_forgotten() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    assert await ask(quotas, caller(1, "in debt"), 1000) is None
    for number in range(10 * FEW):
        clock.now += 1
        assert await ask(quotas, caller(60, f"subject {number}"), 1) is None
    assert len(quotas._buckets) <= FEW + 1
    assert await ask(quotas, caller(1, "in debt"), 1) == 60 * 1000 - 10 * FEW


async def test_who_has_no_quota_waits_for_nothing() -> None:
    quotas = Quotas(Clock())
    assert [await ask(quotas, who, 1e9) for who in (None, caller(None)) for _ in range(3)] == [None] * 6


async def test_a_request_that_is_larger_than_the_quota_runs_and_is_paid_for() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    assert await ask(quotas, caller(6), 12) is None
    assert await ask(quotas, caller(6), 1) == 70.0
    clock.now += 70
    assert await ask(quotas, caller(6), 1) is None


async def test_what_never_began_costs_nothing_and_what_failed_later_does() -> None:
    quotas = Quotas(Clock())
    for _ in range(3):
        with pytest.raises(TriptychError, match="32 requests wait"):
            async with quotas.charged(caller(6), 6, never()):
                pass
    with pytest.raises(KeyError):
        async with quotas.charged(caller(6), 6, at_once()):
            raise KeyError
    assert await ask(quotas, caller(6), 6) == 60.0


async def test_a_refusal_says_the_numbers() -> None:
    quotas = Quotas(Clock())
    await ask(quotas, caller(6), 5)
    with pytest.raises(TriptychError) as caught:
        async with quotas.charged(caller(6), 2, at_once()):
            pass
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.message == (
        "'alice' (key 0a0a0a0a) may have 6 pictures a minute, counted as the model makes them by default; "
        "this request counts as 2 and 1 are left: try again in 10.0 s"
    )


sizes = st.floats(0.01, 100)


@given(quota=sizes, asked=st.lists(st.tuples(sizes, st.floats(0, 100)), max_size=20))
async def test_who_waits_as_told_is_served_and_not_sooner(
    quota: float, asked: list[tuple[float, float]]
) -> None:
    clock = Clock()
    quotas = Quotas(clock)
    for pictures, pause in asked:
        clock.now += pause
        seconds = await ask(quotas, caller(quota), pictures)
        if seconds is None:
            continue
        begun = clock.now
        clock.now = begun + seconds - 0.002 - 1e-3 * seconds
        if clock.now > begun and seconds > 0.01:
            assert await ask(quotas, caller(quota), pictures) is not None
        clock.now = begun + seconds + 1e-3
        assert await ask(quotas, caller(quota), pictures) is None
