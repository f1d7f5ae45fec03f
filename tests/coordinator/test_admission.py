"""Requests are admitted by cost, clients in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import errors
from triptych.errors import TriptychError
from triptych_coordinator.admission import MOST_RUNNING, FairAdmission
from triptych_coordinator.servicer import client_of


class Requests:
    """Requests that run until they are told to end; `started` has their names in order.

    `places` has what those that wait were told: their name and their position.
    """

    def __init__(self, admission: FairAdmission) -> None:
        self.admission = admission
        self.started: list[str] = []
        self.places: list[tuple[str, int]] = []
        self.seconds: dict[str, float | None] = {}
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def send(self, name: str, load: float = 1, steps: int = 10, priority: int = 0) -> None:
        """The first letter of a name is its client's."""

        def on_queued(position: int, seconds: float | None) -> None:
            self.places.append((name, position))
            self.seconds[name] = seconds

        async def run() -> None:
            async with self.admission.admit(name[0], load, steps, priority, on_queued):
                self.started.append(name)
                await self.ends[name].wait()

        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.tasks[name].done():
            self.tasks[name].result()

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
            await self.tasks[name]
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@pytest.fixture
async def requests() -> AsyncIterator[Requests]:
    requests = Requests(FairAdmission(max_load=4, max_waiting=8))
    yield requests
    for task in requests.tasks.values():
        task.cancel()
    await asyncio.gather(*requests.tasks.values(), return_exceptions=True)


async def test_light_requests_run_together_and_heavy_ones_do_not(requests: Requests) -> None:
    for name in ("a1", "a2", "a3"):
        await requests.send(name, load=3)
    assert requests.started == ["a1"]
    await requests.end("a1")
    assert requests.started == ["a1", "a2"]
    await requests.send("b1", load=0.25)
    await requests.end("a2")
    for name in ("b2", "b3"):
        await requests.send(name, load=0.25)
    assert requests.started[2:] == ["b1", "a3", "b2", "b3"]


async def test_one_that_is_larger_than_all_room_runs_alone(requests: Requests) -> None:
    await requests.send("a1", load=100)
    await requests.send("a2", load=100)
    assert requests.started == ["a1"]
    await requests.end("a1")
    assert requests.started == ["a1", "a2"]


async def test_who_has_nothing_running_does_not_wait_behind_others(requests: Requests) -> None:
    for number in range(8):
        await requests.send(f"a{number}", load=2)
    await requests.send("b0", load=2)
    assert requests.started == ["a0", "a1", "b0"]


async def test_clients_take_turns_by_what_they_were_served(requests: Requests) -> None:
    for number in range(6):
        await requests.send(f"a{number}", load=4)
    for number in range(4):
        await requests.send(f"b{number}", load=4)
    order = []
    while len(order) < 10:
        order = list(requests.started)
        await requests.end(*(name for name in order if not requests.tasks[name].done()))
    assert sum(name[0] == "b" for name in order[:8]) == 4  # not behind all of a's


async def test_of_one_client_the_urgent_come_first(requests: Requests) -> None:
    await requests.send("a0", load=4)
    await requests.send("a1", load=4)
    await requests.send("a2", load=4, priority=5)
    await requests.end("a0")
    assert requests.started == ["a0", "a2"]


async def test_a_flood_is_refused_and_the_polite_one_let_in(requests: Requests) -> None:
    await requests.send("a0", load=4)
    await requests.end("a0")  # what a request takes is known
    for number in range(1, 10):
        await requests.send(f"a{number}", load=4)
    with pytest.raises(TriptychError, match="8 requests wait, 8 of them yours") as refused:
        await requests.send("a10", load=4)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert errors.retry_after_seconds(refused.value)
    for number in range(4):
        await requests.send(f"b{number}", load=4)  # the first runs, and three of four places are its share
    assert "b0" in requests.started
    with pytest.raises(TriptychError):
        await requests.send("a11", load=4)


@pytest.mark.parametrize("others", ["", "b"])
async def test_the_told_wait_is_that_of_the_own_waiting_requests(
    requests: Requests, others: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("triptych_coordinator.admission.time.monotonic", lambda: now)
    requests.admission = FairAdmission(max_load=1, max_waiting=8)
    for other in others:
        await requests.send(f"{other}0", load=1)
    for number in range(40):  # each takes 3 seconds, the first one 20, as it does when all is cold
        await requests.send(f"a{number}", load=1)
        now += 3 if number else 20
        await requests.end(f"a{number}")
    for number in range(40, 49):
        await requests.send(f"a{number}", load=1)
    with pytest.raises(TriptychError) as refused:
        await requests.send("a49", load=1)
    told = errors.retry_after_seconds(refused.value)
    assert told == pytest.approx(8 * 3 * (1 + len(others)), rel=0.1)


@pytest.mark.parametrize(("client", "turn"), [("d", 1), ("g", 4), ("k", 8)])
async def test_of_many_clients_the_told_wait_is_until_the_own_turn(
    requests: Requests, client: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("triptych_coordinator.admission.time.monotonic", lambda: now)
    requests.admission = FairAdmission(max_load=1, max_waiting=8)
    await requests.send("a0")
    now += 3
    await requests.end("a0")
    for name in "bcdefghijk":  # two run, eight wait
        await requests.send(f"{name}0")
    with pytest.raises(TriptychError) as refused:
        await requests.send(f"{client}1")
    assert errors.retry_after_seconds(refused.value) == pytest.approx(turn * 3, rel=0.01)


async def placed(requests: Requests, *expected: tuple[str, int]) -> None:
    """Waits until those that wait were told this, and nothing else, since the last time."""
    async with asyncio.timeout(60):
        while len(requests.places) < len(expected):
            await asyncio.sleep(0)
    assert requests.places == list(expected)
    requests.places.clear()


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych_coordinator.admission.TELL_SECONDS", 0)


@pytest.mark.usefixtures("told_at_once")
async def test_those_that_wait_are_told_their_place_and_every_other_one(requests: Requests) -> None:
    for number in range(4):
        await requests.send(f"a{number}", load=4)
    await placed(requests, ("a1", 1), ("a2", 2), ("a3", 3))
    await requests.end("a0")
    await placed(requests, ("a2", 1), ("a3", 2))
    await requests.send("a4", load=4, priority=1)
    await placed(requests, ("a4", 1), ("a2", 2), ("a3", 3))
    requests.tasks["a2"].cancel()
    await placed(requests, ("a3", 2))
    await requests.end("a1")
    await placed(requests, ("a3", 1))
    assert requests.started == ["a0", "a1", "a4"]
    await requests.send("b0", load=4)  # starts at once
    await requests.end("a4", "b0")
    assert requests.places == []


@pytest.mark.usefixtures("told_at_once")
async def test_places_are_those_of_clients_that_take_turns(requests: Requests) -> None:
    for name in ("a0", "b0", "a1", "a2", "b1", "a3", "b2"):
        await requests.send(name, load=4)
    order = await in_the_told_order(requests)
    for names in (["a0", "b0"], ["a1", "b1"], ["a2", "b2"], ["a3"]):
        await requests.end(*names)
    assert order == ["a1", "b1", "a2", "b2", "a3"] == requests.started[2:]


async def in_the_told_order(requests: Requests) -> list[str]:
    """All that wait, once each has heard of the last change."""
    async with asyncio.timeout(60):
        while True:
            places = dict(requests.places)
            if sorted(places.values()) == list(range(1, requests.admission.num_waiting() + 1)):
                return sorted(places, key=places.__getitem__)
            await asyncio.sleep(0)


async def test_changes_are_told_with_pauses_between(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych_coordinator.admission.TELL_SECONDS", 3600)
    for number in range(6):
        await requests.send(f"a{number}", load=4)
    await placed(requests, *((f"a{number}", number) for number in range(1, 6)))
    await requests.end("a0", "a1", "a2")
    await requests.send("a6", load=4)
    await placed(requests, ("a6", 3))  # the others wait for the end of the pause


async def test_the_told_seconds_are_those_of_the_work_that_is_before(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("triptych_coordinator.admission.time.monotonic", lambda: now)
    requests.admission = FairAdmission(max_load=1, max_waiting=8)
    await requests.send("a0", load=1)
    await requests.send("a1", load=1)
    assert requests.seconds == {"a1": None}
    now += 3
    await requests.end("a0")
    now += 1  # of the 3 that a1 will take
    await requests.send("a2", load=1, steps=20)
    await requests.send("a3", load=1)
    told = [requests.seconds[name] for name in ("a2", "a3")]
    assert told == pytest.approx([3, 3 + 2 * 4], rel=0.1)  # 4 s for one, as far as is known by now


@given(st.lists(st.tuples(st.floats(1, 9), st.integers(-2, 2)), min_size=1, max_size=9))
def test_what_one_client_is_told_comes_true(asked: list[tuple[float, int]]) -> None:
    async def main() -> None:
        requests = Requests(FairAdmission(max_load=1, max_waiting=20))
        await requests.send("a", load=1)
        for number, (load, priority) in enumerate(asked):
            await requests.send(f"a{number}", load, priority=priority)
        order = await in_the_told_order(requests)
        for name in ("a", *order):
            await requests.end(name)
        assert requests.started == ["a", *order]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triptych_coordinator.admission.TELL_SECONDS", 0)
        asyncio.run(main())


async def test_a_flood_is_refused_before_it_is_read(requests: Requests) -> None:
    for number in range(9):
        await requests.send(f"a{number}", load=4)
    full = "8 requests wait, 8 of them yours"
    with pytest.raises(TriptychError, match=full), requests.admission.arriving("a"):
        raise AssertionError("it was read")
    with requests.admission.arriving("b"):  # of which nothing runs
        pass


async def test_what_is_being_read_counts_as_waiting(requests: Requests) -> None:
    await requests.send("a0", load=4)
    with ExitStack() as reading:
        for _ in range(8):
            reading.enter_context(requests.admission.arriving("a"))
        with pytest.raises(TriptychError, match="8 of them yours"):
            reading.enter_context(requests.admission.arriving("a"))
    with requests.admission.arriving("a"):
        pass


async def test_without_room_to_wait_what_can_start_is_let_in() -> None:
    requests = Requests(FairAdmission(max_load=4, max_waiting=0))
    for name in ("a0", "a1"):
        with requests.admission.arriving("a"):
            pass
        await requests.send(name, load=2)
    with pytest.raises(TriptychError), requests.admission.arriving("a"):
        pass
    with pytest.raises(TriptychError, match="0 requests wait"):
        await requests.send("a2", load=2)
    await requests.end("a0", "a1")


async def test_who_asks_for_one_after_the_other_gets_its_share_beside_a_flood(requests: Requests) -> None:
    for number in range(8):
        await requests.send(f"a{number}", load=1)
    assert requests.started == ["a0", "a1", "a2", "a3"]
    await requests.send("b0", load=1)
    assert requests.started[4:] == ["b0"]
    await requests.end("a0", "a1")
    assert requests.started[5:] == []  # two of four are a's share
    await requests.end("b0")
    assert requests.started[5:] == []  # b may be back soon
    await requests.send("b1", load=1)
    await requests.end("a2")
    assert requests.started[5:] == ["b1", "a4"]


async def test_who_is_gone_has_no_share(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych_coordinator.admission.LINGER_SECONDS", 0.01)
    for number in range(6):
        await requests.send(f"a{number}", load=1)
    await requests.send("b0", load=1)
    await requests.end("a0", "b0")
    await asyncio.sleep(0.05)
    assert requests.started[-1] == "a4"


async def test_many_clients_take_turns_instead_of_all_at_once(requests: Requests) -> None:
    for number in range(16):
        await requests.send(chr(0x4E00 + number), load=1)
    assert len(requests.started) == 8


async def test_there_is_an_end_to_clients_too(requests: Requests) -> None:
    for number in range(MOST_RUNNING + 1):
        await requests.send(chr(0x4E00 + number), load=0.01)
    assert len(requests.started) == MOST_RUNNING


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.1.2.3:4567", "10.1.2.3"),
        ("ipv6:%5B2001:db8::5%5D:4567", "2001:db8::5"),
        ("ipv4:127.0.0.1:4567", "ipv4:127.0.0.1:4567"),
        ("ipv6:%5B::1%5D:4567", "ipv6:%5B::1%5D:4567"),
        ("unix:", "unix:"),
        ("this process", "this process"),
    ],
)
def test_a_client_is_a_host_or_here_a_connection(peer: str, client: str) -> None:
    assert client_of(peer) == client


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.1, 9), st.integers(1, 50), st.booleans()), max_size=30
    )
)
def test_everybody_is_served_or_refused_and_nothing_is_left(
    asked: list[tuple[str, float, int, bool]],
) -> None:
    async def main() -> None:
        admission = FairAdmission(max_load=4, max_waiting=4)
        done = 0

        async def one(client: str, load: float, steps: int, leaves: bool) -> None:
            nonlocal done
            with suppress(TriptychError):
                async with admission.admit(client, load, steps):
                    await asyncio.sleep(0)
                    if leaves:
                        raise asyncio.CancelledError
            done += 1

        tasks = [asyncio.create_task(one(*each)) for each in asked]
        for index, task in enumerate(tasks):
            if index % 5 == 4:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert admission._load == 0
        assert not admission._waiting
        assert not any(admission._running.values())
        await asyncio.sleep(0.01)
        assert not admission._served
        assert not admission._running
        assert not admission._loads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triptych_coordinator.admission.LINGER_SECONDS", 0)
        asyncio.run(main())
