"""A request waits for a stage that is away, says so, and goes on where it was."""

import asyncio
import time
from typing import Any

import grpc
import pytest

from tests.coordinator.conftest import House
from tests.coordinator.test_servicer import kind, refused, request
from triptych import errors
from triptych.errors import TriptychError
from triptych_coordinator.settings import CoordinatorLimits

NAMES = {"text": "text encoder", "denoiser": "denoiser", "vae": "VAE codec"}
every_stage = pytest.mark.parametrize("stage", NAMES)


@pytest.fixture
def limits() -> CoordinatorLimits:
    return CoordinatorLimits(
        max_running=2, health_check_seconds=1, attempt_seconds=30, attempts=3, max_wait_seconds=20
    )


async def events_while_back(house: House, stage: str, wanted: Any) -> list[Any]:
    """The events of a request, while the stage that was stopped comes back after two seconds."""

    async def back() -> None:
        await asyncio.sleep(2)
        await house.start_stage(stage)

    task = asyncio.create_task(back())
    events = [event async for event in house.stub.Generate(wanted)]
    await task
    return events


@every_stage
async def test_a_new_request_waits_for_a_stage_that_was_never_there(house: House, stage: str) -> None:
    await house.stop_stage(stage)
    events = await events_while_back(house, stage, request("a cat", seeds=[1], num_inference_steps=2))
    assert (kind(events[0]), events[0].waiting.stage) == ("waiting", NAMES[stage])
    assert [kind(event) for event in events[1:]] == [
        *("accepted", "step_completed", "step_completed", "image", "finished"),
    ]


@every_stage
async def test_a_new_request_waits_for_a_stage_that_went_away(house: House, stage: str) -> None:
    wanted = request("a dog", seeds=[1], num_inference_steps=2)
    before = [event async for event in house.stub.Generate(wanted)]
    await house.stop_stage(stage)
    again = request("a cat", seeds=[1], num_inference_steps=2)  # no prompt that is remembered
    events = await events_while_back(house, stage, again)
    assert [event.waiting.stage for event in events if kind(event) == "waiting"] == [NAMES[stage]]
    after = [event async for event in house.stub.Generate(wanted)]
    assert [event.image for event in after] == [event.image for event in before]


async def test_a_denoiser_lost_in_mid_request_costs_a_step_and_no_bit(house: House) -> None:
    wanted = request("a cat", seeds=[1], num_inference_steps=6)
    undisturbed = [event.image async for event in house.stub.Generate(wanted) if kind(event) == "image"]
    house.denoiser.seconds = 0.05
    events, back = [], None
    async for event in house.stub.Generate(wanted):
        events.append(event)
        if event.step_completed.step == 2:
            await house.stop_stage("denoiser")
            back = asyncio.get_running_loop().call_later(
                2, lambda: asyncio.ensure_future(house.start_stage("denoiser"))
            )
    assert back is not None
    assert [event.waiting.stage for event in events if kind(event) == "waiting"] == ["denoiser"]
    assert [event.image for event in events if kind(event) == "image"] == undisturbed


async def test_a_remembered_prompt_needs_no_text_encoder(house: House) -> None:
    expected = list((await house.images("a cat", seeds=[1])).images)
    await house.stop_stage("text")
    began = time.monotonic()
    assert list((await house.images("a cat", seeds=[1])).images) == expected
    assert time.monotonic() - began < 5


async def test_a_deadline_ends_the_waiting_and_says_what_for(house: House) -> None:
    await house.stop_stage("denoiser")
    began = time.monotonic()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, ""):
        await house.images("a cat", seconds=2)
    assert time.monotonic() - began < 4


async def test_a_call_that_every_attempt_fails_of_is_given_up(house: House) -> None:
    house.denoiser.failures = [errors.unavailable("it kills me")] * 10
    with refused(grpc.StatusCode.UNAVAILABLE, "cannot be reached: it kills me") as caught:
        await house.images("a cat")
    assert errors.retry_after_seconds(caught[0])
    assert len(house.denoiser.failures) == 7
    house.denoiser.failures.clear()
    assert len((await house.images("a cat")).images) == 1


class TestWithABound:
    @pytest.fixture
    def limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(health_check_seconds=1, max_wait_seconds=2)

    async def test_without_a_deadline_the_waiting_ends_with_a_time_to_come_back(self, house: House) -> None:
        await house.stop_stage("vae")
        began = time.monotonic()
        with refused(grpc.StatusCode.UNAVAILABLE, "the VAE codec at") as caught:
            await house.images("a cat")
        assert 1.5 < time.monotonic() - began < 6
        assert errors.retry_after_seconds(caught[0]) == 5


async def test_many_requests_ask_a_stage_once_what_it_serves(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = 0, type(house.denoiser).GetModel

    async def counted(self: Any, message: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        return await answer(self, message, context)

    monkeypatch.setattr(type(house.denoiser), "GetModel", counted)
    began = time.monotonic()
    for seed in range(10):
        await house.images("a cat", seeds=[seed])
    assert asked <= 2 + (time.monotonic() - began)


class TestWithADeadlineBelowThatOfAnAttempt:
    @pytest.fixture
    def limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(health_check_seconds=1, attempt_seconds=600)

    async def test_a_stage_that_is_too_slow_for_its_own_reasons_is_asked_again(self, house: House) -> None:
        expected = list((await house.images("a cat", seeds=[1])).images)
        house.denoiser.failures = [
            TriptychError(grpc.StatusCode.DEADLINE_EXCEEDED, "a health check took long")
        ]
        assert list((await house.images("a cat", seeds=[1], seconds=60)).images) == expected
