"""Work that is done at the same time."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
N = TypeVar("N")


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


async def one_ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The items, each of which is begun before the caller has dealt with the one before."""
    item = asyncio.ensure_future(_next(items))
    try:
        while (ready := await item) is not None:
            item = asyncio.ensure_future(_next(items))
            yield ready
    finally:
        item.cancel()
        await asyncio.gather(item, return_exceptions=True)


async def interleaved(
    events: AsyncGenerator[T, None], notices: asyncio.Queue[N]
) -> AsyncGenerator[T | N, None]:
    """The events, and between them the notices as they come. Ends with the events.

    The events are made in one context, a copy of the current one.
    """
    context, loop = copy_context(), asyncio.get_running_loop()
    notice = asyncio.ensure_future(notices.get())
    event = loop.create_task(_next(events), context=context)
    try:
        while True:
            await asyncio.wait({event, notice}, return_when=asyncio.FIRST_COMPLETED)
            if notice.done():
                yield notice.result()
                notice = asyncio.ensure_future(notices.get())
            elif (item := event.result()) is not None:
                yield item
                event = loop.create_task(_next(events), context=context)
            else:
                return
    finally:
        notice.cancel()
        event.cancel()
        await asyncio.gather(notice, event, return_exceptions=True)


async def _next(events: AsyncGenerator[T, None]) -> T | None:
    return await anext(events, None)
