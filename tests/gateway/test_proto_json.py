"""Triptych's own API over HTTP: the proto in JSON, events as they come, the parameters described."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import Answer, Fleet, ask, gateway_to
from tests.shared.scripted_coordinator import STEPS, ScriptedCoordinator
from triptych import errors
from triptych_gateway.described import described_parameters
from triptych_gateway.parameters import FIELDS


def ask_to_generate(url: str, **fields: Any) -> Answer:
    return ask(f"{url}/triptych/v1/generate", json.dumps(fields).encode(), content_type="application/json")


def events_of(answer: Answer) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in answer.data.decode().strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_events_are_the_protos(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    async with gateway_to(servicer, tmp_path) as url:
        parameters = {"prompts": ["a cat"], "seeds": ["18446744073709551615"], "solver": "heun"}
        answer = await asyncio.to_thread(ask_to_generate, url, parameters=parameters, priority=2)
    events = events_of(answer)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events] == ["accepted", *["step_completed"] * STEPS, "image", "finished"]
    assert events[0][1]["parameters"]["seeds"] == ["18446744073709551615"]
    assert events[0][1]["parameters"]["solver"] == {"heun": {}}
    assert events[-2][1]["index"] == 0, "zeros are said too"
    assert servicer.requests[-1].priority == 2


async def test_the_place_in_the_queue_is_an_event(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    servicer.turn.set()
    async with gateway_to(servicer, tmp_path) as url:
        answer = await asyncio.to_thread(ask_to_generate, url, parameters={"prompts": ["queue"]})
    places = [data for name, data in events_of(answer) if name == "queued"]
    assert places == [{"position": 3, "wait_seconds": 12}, {"position": 1}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"parameters": {"prompts": ["a cat"], "colour": 1}}, "colour"),
        ({"parameters": {"prompts": ["a cat"], "solver": "magic"}}, "solver"),
        ({"parameters": {"prompts": ["fail"]}}, "parameters.prompts[0]"),
        ({"parameters": []}, "parameters"),
        ({"parameters": {"prompts": ["a cat"]}, "priority": 1 << 31}, "priority"),
        ({"parameters": {"prompts": ["a cat"]}, "prompt": "a dog"}, "prompt"),
    ],
)
async def test_what_is_wrong_is_an_answer_with_a_status(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        answer = await asyncio.to_thread(ask_to_generate, url, **fields)
    assert (answer.status, answer.error()["param"]) == (400, param)


async def test_what_fails_later_is_the_last_event(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    servicer.cuts = [(3, errors.unavailable("the denoiser is gone"))]
    async with gateway_to(servicer, tmp_path) as url:
        answer = await asyncio.to_thread(ask_to_generate, url, parameters={"prompts": ["a cat"]})
    name, data = events_of(answer)[-1]
    assert (name, data["error"]["code"]) == ("error", "unavailable")


def test_the_model_is_what_the_coordinator_says(fleet: Fleet) -> None:
    model = ask(f"{fleet.url}/triptych/v1/model").json()
    assert (model["default_width"], model["guidance"]) == (64, "GUIDANCE_INPUT_BRANCHES")
    assert model["loras"] == []


def test_every_field_is_described_with_its_comment() -> None:
    described = described_parameters()
    assert [field["name"] for field in described] == list(FIELDS)
    by_name = {field["name"]: field for field in described}
    assert by_name["seeds"]["repeated"]
    assert by_name["prompt_weighting"]["kind"] == "flag"
    assert "(text) 1.1 times" in by_name["prompt_weighting"]["help"]
    solver = {choice["name"]: choice for choice in by_name["solver"]["choices"]}
    assert (by_name["solver"]["kind"], solver["heun"]["kind"]) == ("choice", "message")
    (eta,) = solver["euler_ancestral"]["fields"]
    assert (eta["name"], eta["kind"]) == ("eta", "number")
    assert "Default 1." in eta["help"]
