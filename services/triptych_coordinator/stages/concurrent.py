"""Work that is done at the same time."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def in_order(
    work: Sequence[Callable[[], Coroutine[Any, Any, T]]], at_once: int
) -> AsyncGenerator[T, None]:
    """The results in order, while so much is worked on at the same time. An error ends the rest."""
    if len(work) == 1:
        yield await work[0]()
        return
    free = asyncio.Semaphore(at_once)

    async def when_free(one: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with free:
            return await one()

    tasks = [asyncio.create_task(when_free(one)) for one in work]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
