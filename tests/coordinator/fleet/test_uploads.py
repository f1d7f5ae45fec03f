"""What a replica was sent to keep: once for all who need it, and again when it was lost."""

import asyncio

import pytest

from triptych_coordinator.fleet.uploads import Uploads


class Sender:
    """Counts what it sends; sending ends when it is `open`."""

    def __init__(self) -> None:
        self.sent = 0
        self.fails = False
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.sent += 1
        await self.open.wait()
        if self.fails:
            raise ConnectionError("lost")


async def test_what_several_need_at_the_same_time_is_sent_once() -> None:
    uploads, send = Uploads(), Sender()
    waiting = [asyncio.create_task(uploads.ensure(b"a", send)) for _ in range(5)]
    await asyncio.sleep(0)
    assert uploads.has({b"a"})
    assert not uploads.has({b"a", b"b"})
    send.open.set()
    assert len(set(await asyncio.gather(*waiting))) == send.sent == 1


async def test_who_is_cancelled_does_not_stop_it_for_the_others() -> None:
    uploads, send = Uploads(), Sender()
    first, second = (asyncio.create_task(uploads.ensure(b"a", send)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    send.open.set()
    await second
    assert send.sent == 1


async def test_a_failure_is_everyones_and_the_next_one_tries_again() -> None:
    uploads, send = Uploads(), Sender()
    send.fails = True
    send.open.set()
    for result in await asyncio.gather(
        *(uploads.ensure(b"a", send) for _ in range(3)), return_exceptions=True
    ):
        assert isinstance(result, ConnectionError)
    assert not uploads.has({b"a"})
    send.fails = False
    await uploads.ensure(b"a", send)
    assert send.sent == 2


async def test_two_who_learn_of_the_same_loss_send_it_again_once() -> None:
    uploads, send = Uploads(), Sender()
    send.open.set()
    lost = await uploads.ensure(b"a", send)
    uploads.forget(b"a", lost)
    again = await uploads.ensure(b"a", send)
    uploads.forget(b"a", lost)  # the second to learn of it
    assert await uploads.ensure(b"a", send) is again
    assert send.sent == 2


async def test_the_oldest_are_forgotten_before_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych_coordinator.fleet.uploads._MOST_REMEMBERED", 2)
    uploads, send = Uploads(), Sender()
    send.open.set()
    for digest in (b"a", b"b", b"c"):
        await uploads.ensure(digest, send)
        await asyncio.sleep(0)
    assert uploads.has({b"b", b"c"})
    assert not uploads.has({b"a"})
