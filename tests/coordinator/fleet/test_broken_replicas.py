"""A replica that answers nonsense, errors, or never: another one does its work, and the log names it."""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from tests.coordinator.conftest import House
from tests.coordinator.fleet.test_membership import Neighbourhood, images, near
from tests.coordinator.numpy_stages import Denoiser, TextEncoder, VaeCodec
from tests.coordinator.test_servicer import refused
from triptych import errors
from triptych.errors import TriptychError
from triptych.tensors import array_to_message, message_to_array
from triptych_coordinator.fleet.replica import Connection, Replica
from triptych_coordinator.settings import CoordinatorLimits

__all__ = ["near"]

Spoil = Callable[[Any], object]
Stage = Denoiser | TextEncoder | VaeCodec


@pytest.fixture
def limits() -> CoordinatorLimits:
    return CoordinatorLimits(max_running=16, health_check_seconds=5, attempt_seconds=2, max_wait_seconds=3)


def reshaped(field: str) -> Spoil:
    def spoil(answer: Any) -> None:
        array = message_to_array(getattr(answer, field), field)
        getattr(answer, field).CopyFrom(array_to_message(array[..., :1]))

    return spoil


def retyped(field: str) -> Spoil:
    def spoil(answer: Any) -> None:
        array = message_to_array(getattr(answer, field), field)
        getattr(answer, field).CopyFrom(array_to_message(array.astype(np.int64)))

    return spoil


def not_finite(field: str) -> Spoil:
    def spoil(answer: Any) -> None:
        array = message_to_array(getattr(answer, field), field).copy()
        array.flat[0] = math.nan
        getattr(answer, field).CopyFrom(array_to_message(array))

    return spoil


def of_each(field: str, spoil: Spoil) -> Spoil:
    return lambda answer: [spoil(one) for one in getattr(answer, field)]


def restarted_with_another_model(answer: Any) -> None:
    answer.fingerprint = "another"


def error(code: grpc.StatusCode) -> Spoil:
    def spoil(answer: Any) -> None:
        raise TriptychError(code, "it broke")

    return spoil


def replace_digest(answer: Any) -> None:
    answer.conditionings[0].digest = bytes(32)


CODES = ("UNKNOWN", "INTERNAL", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INVALID_ARGUMENT", "DATA_LOSS")
ERRORS = {code: error(grpc.StatusCode[code]) for code in CODES}
NONSENSE: dict[str, dict[str, Spoil]] = {
    "denoiser": ERRORS
    | {
        "shape": reshaped("velocities"),
        "dtype": retyped("velocities"),
        "not finite": not_finite("velocities"),
        "reused": lambda answer: answer.reused.append(True),
        "another model": restarted_with_another_model,
    },
    "text": {
        "error": error(grpc.StatusCode.INTERNAL),
        "shape": of_each("conditionings", reshaped("sequence")),
        "pooled shape": of_each("conditionings", reshaped("pooled")),
        "dtype": of_each("conditionings", retyped("sequence")),
        "not finite": of_each("conditionings", not_finite("sequence")),
        "number": lambda answer: answer.conditionings.pop(),
        "digest": replace_digest,
        "another model": restarted_with_another_model,
    },
    "vae": {
        "error": error(grpc.StatusCode.INTERNAL),
        "shape": reshaped("pixels"),
        "dtype": retyped("pixels"),
        "another model": restarted_with_another_model,
    },
}
STAGES: dict[str, type[Stage]] = {"denoiser": Denoiser, "text": TextEncoder, "vae": VaeCodec}
METHODS = {"denoiser": "Predict", "text": "Encode", "vae": "Decode"}


def broken(stage: str, spoil: Spoil) -> Any:
    """A stage whose answers are spoilt; `asked` counts them."""
    servicer: Any = STAGES[stage]()
    servicer.asked, right = 0, getattr(servicer, METHODS[stage])

    async def answer(request: Any, context: Any) -> Any:
        answered = await right(request, context)
        servicer.asked += 1
        spoil(answered)
        return answered

    setattr(servicer, METHODS[stage], answer)
    return servicer


@pytest.mark.parametrize(("stage", "kind"), [(stage, kind) for stage, of in NONSENSE.items() for kind in of])
async def test_what_is_nonsense_is_done_again_by_another_replica(
    house: House, near: Neighbourhood, stage: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked: dict[str, Any] = {"seeds": [1], "num_inference_steps": 2}
    alone = [images(await house.images(f"cat {number}", **asked)) for number in range(4)]
    servicers = [broken(stage, NONSENSE[stage][kind]), STAGES[stage]()]
    fleet = await near.coordinator(**{stage: await near.serving(servicers)})
    for number in range(4):
        assert images(await fleet.images(f"cat {number}", **asked)) == alone[number]
    assert servicers[0].asked
    assert f"{near.address('replica-0')} is ejected" in caplog.text
    if kind != "another model":  # of which it is asked again at once, which says the right one here
        assert servicers[0].asked <= 2


@pytest.mark.parametrize("stage", STAGES)
async def test_one_that_answers_questions_but_finishes_nothing_costs_two_attempts_at_most(
    house: House, near: Neighbourhood, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    alone = [images(await house.images(f"cat {number}", seeds=[1])) for number in range(6)]
    hanging = STAGES[stage]()
    asked = 0

    async def never(request: Any, context: Any) -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    setattr(hanging, METHODS[stage], never)
    fleet = await near.coordinator(**{stage: await near.serving([hanging, STAGES[stage]()])})
    for number in range(6):
        async with asyncio.timeout(2 * 2 + 2):
            assert images(await fleet.images(f"cat {number}", seeds=[1])) == alone[number]
    assert 1 <= asked <= 3
    assert "is ejected for 1 s: it did not finish in 2 s" in caplog.text


async def test_what_breaks_every_replica_is_refused_and_others_go_on(near: Neighbourhood) -> None:
    breaking = True

    def spoil(answer: Any) -> None:
        if breaking:
            raise TriptychError(grpc.StatusCode.INTERNAL, "it broke")

    denoisers = [broken("denoiser", spoil) for _ in range(2)]
    fleet = await near.coordinator(denoiser=await near.serving(denoisers))
    with refused(grpc.StatusCode.INTERNAL, "it broke"):
        await fleet.images("a cat", guidance_scale=1)
    assert [one.asked for one in denoisers] == [1, 1]
    breaking = False
    async with asyncio.timeout(0.9):  # although both are ejected for a second
        await fleet.images("a cat", guidance_scale=1)


async def test_one_that_was_restarted_with_the_right_model_gets_work_again(
    house: House, near: Neighbourhood
) -> None:
    alone = images(await house.images("a cat", seeds=[1]))
    denoisers = [Denoiser(), Denoiser()]
    fleet = await near.coordinator(denoiser=await near.serving(denoisers))
    await fleet.images("a cat", seeds=[1])
    denoisers[0].fingerprint = denoisers[0].name = "another"
    for _ in range(2):
        assert images(await fleet.images("a cat", seeds=[1])) == alone
    before = denoisers[0].predictions
    denoisers[0].fingerprint, denoisers[0].name = denoisers[1].fingerprint, denoisers[1].name
    async with asyncio.timeout(30):
        while denoisers[0].predictions == before:
            assert images(await fleet.images("a cat", seeds=[1])) == alone
            await asyncio.sleep(0.1)


async def test_one_that_describes_no_model_gets_no_work(
    house: House, near: Neighbourhood, caplog: pytest.LogCaptureFixture
) -> None:
    empty: Any = Denoiser()
    right = empty.GetModel

    async def describe(request: Any, context: Any) -> Any:
        answer = await right(request, context)
        answer.max_samples = 0
        return answer

    empty.GetModel = describe
    alone = images(await house.images("a cat", seeds=[1]))
    fleet = await near.coordinator(denoiser=await near.serving([empty, Denoiser()]))
    assert images(await fleet.images("a cat", seeds=[1])) == alone
    assert empty.predictions == 0
    assert "what it says of its model lacks max_samples" in caplog.text


async def test_a_full_replica_is_not_ejected(
    house: House, near: Neighbourhood, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    denoisers = [Denoiser(), Denoiser()]
    for one in denoisers:
        one.failures = [errors.resource_exhausted("queue full", 0.1)]
    fleet = await near.coordinator(denoiser=await near.serving(denoisers))
    await fleet.images("a cat", seeds=[1])
    assert "ejected" not in caplog.text


async def nothing() -> None:
    """Closes nothing."""


def test_ejections_grow_with_mistakes_and_end_with_right_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("triptych_coordinator.fleet.replica.time.monotonic", lambda: now)
    replica = Replica("here", Connection(None, nothing))
    assert replica.trusted
    seconds = []
    for _ in range(8):
        ejected = replica.distrust()
        assert ejected
        assert not replica.trusted
        assert replica.distrust() is None  # calls at the same time are one mistake
        seconds.append(ejected)
        now += ejected
        assert replica.trusted
        with replica.working(1):
            assert not replica.trusted  # one call at a time until one is right
    assert seconds == [1, 2, 4, 8, 16, 32, 60, 60]
    replica.succeed()
    with replica.working(1):
        assert replica.trusted
