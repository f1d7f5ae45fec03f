"""Work at the same time: what is begun ahead, and what becomes of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from triptych_coordinator.stages.concurrent import one_ahead


async def test_an_item_is_begun_while_the_caller_has_the_one_before() -> None:
    begun = [asyncio.Event() for _ in range(4)]

    async def items() -> AsyncGenerator[int, None]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    async with aclosing(one_ahead(items())) as ahead:
        assert await anext(ahead) == 0
        async with asyncio.timeout(10):
            await begun[1].wait()
        assert not begun[2].is_set(), "one ahead and no more, however long the caller takes"
        assert [item async for item in ahead] == [1, 2, 3]


async def test_what_was_begun_is_cancelled_with_the_caller() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncGenerator[int, None]:
        yield 0
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with aclosing(one_ahead(items())) as ahead:
        assert await anext(ahead) == 0
        async with asyncio.timeout(10):
            await begun.wait()
    assert ended.is_set()


async def test_an_error_comes_behind_the_items_before_it() -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 0
        raise ValueError("the second one")

    ahead = one_ahead(items())
    assert await anext(ahead) == 0
    with pytest.raises(ValueError, match="the second one"):
        await anext(ahead)
