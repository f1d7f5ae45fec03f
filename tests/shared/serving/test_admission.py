"""Bounded numbers of calls run and wait; the others hear when to come back."""

import asyncio

import grpc
import pytest

from triptych.errors import TriptychError, retry_after_seconds
from triptych.serving.admission import Admission


async def stay(admission: Admission, over: asyncio.Event) -> None:
    async with admission.admit():
        await over.wait()


async def begun(*tasks: asyncio.Task[None]) -> None:
    """Until every task waits for something."""
    for _ in range(2 * len(tasks) + 2):
        await asyncio.sleep(0)


async def test_who_is_too_many_is_told_when_to_come_back_and_let_in_once_another_left() -> None:
    admission, over = Admission(max_running=1, max_waiting=1), asyncio.Event()
    running, waiting = (asyncio.create_task(stay(admission, over)) for _ in range(2))
    await begun(running, waiting)

    with pytest.raises(TriptychError, match="2 requests are running or waiting") as refused:
        await stay(admission, over)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_after_seconds(refused.value) is not None

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    third = asyncio.create_task(stay(admission, over))
    await begun(running, third)
    over.set()
    await asyncio.gather(running, third)


async def test_who_fails_leaves_room() -> None:
    admission = Admission(max_running=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with admission.admit():
                1 / 0  # noqa: B018
