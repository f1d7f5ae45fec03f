"""What a request may ask for, and what it is told otherwise."""

import math
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from triptych.errors import TriptychError
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.guidance import GuidanceInput, GuidanceSchedule
from triptych_coordinator.requests import (
    Limits,
    Lora,
    Parameters,
    parameters_from_message,
    parameters_to_message,
)

LIMITS = Limits(
    model="small",
    default_height=64,
    default_width=96,
    size_multiple=16,
    max_size=256,
    max_image_pixels=50_000,
    max_request_pixels=100_000,
    max_images=6,
    max_prompt_bytes=100,
    default_num_inference_steps=28,
    default_guidance_scale=5.0,
    guidance=GuidanceInput.BRANCHES,
    loras=("ink", "oil paint"),
)
EMBEDDED = replace(LIMITS, guidance=GuidanceInput.EMBEDDED)
WITHOUT_GUIDANCE = replace(LIMITS, guidance=GuidanceInput.NONE, default_guidance_scale=1.0)


def parsed(limits: Limits = LIMITS, **fields: Any) -> Parameters:
    return parameters_from_message(pb.GenerationParameters(**{"prompts": ["a cat"], **fields}), limits)


def wrong(limits: Limits = LIMITS, **fields: Any) -> dict[str, str]:
    """The violations of a request that is refused."""
    with pytest.raises(TriptychError) as raised:
        parsed(limits, **fields)
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    (detail,) = raised.value.details
    assert isinstance(detail, error_details_pb2.BadRequest)
    return {violation.field: violation.description for violation in detail.field_violations}


def test_every_default_is_filled_in() -> None:
    parameters = parsed(prompts=["a", "b"], num_images_per_prompt=2)
    assert (parameters.height, parameters.width) == (64, 96)
    assert parameters.num_inference_steps == 28
    assert parameters.guidance_scale == 5.0
    assert parameters.guidance_schedule == GuidanceSchedule("constant", {})
    assert parameters.negative_prompts == ("", "")
    assert parameters.model == "small"
    first = parameters.seeds[0]
    assert parameters.seeds == (first, first + 1, first + 2, first + 3)
    assert [parameters.prompt(k) for k in range(4)] == ["a", "a", "b", "b"]


def test_loras_keep_their_order_and_weigh_one_by_default() -> None:
    parameters = parsed(loras=[{"name": "oil paint", "weight": 0.7}, {"name": "ink"}])
    assert parameters.loras == (Lora("oil paint", 0.7), Lora("ink", 1.0))
    again = parameters_from_message(parameters_to_message(parameters), LIMITS)
    assert again == parameters


@pytest.mark.parametrize(
    ("loras", "violations"),
    [
        ([{"name": "ink", "weight": 10.5}], {"loras[0].weight": "is 10.5; allowed are -10 to 10"}),
        ([{"name": "tea", "weight": math.inf}], {"loras[0].weight": "is inf; allowed are -10 to 10"}),
        ([{"name": "ink"}, {"name": "ink"}], {"loras[1].name": "'ink' is named twice"}),
        ([{"name": "ink"}] * 9, {"loras": "9 of them; allowed are 0 to 8"}),
    ],
)
def test_bad_loras_are_refused_by_field(loras: list[dict[str, Any]], violations: dict[str, str]) -> None:
    assert wrong(loras=loras) == violations


@pytest.mark.parametrize("name", ["tempera", "", "../ink"])
def test_an_unknown_lora_is_not_found_and_the_others_are_listed(name: str) -> None:
    with pytest.raises(TriptychError) as raised:
        parsed(loras=[{"name": "ink"}, {"name": name}])
    assert raised.value.code is grpc.StatusCode.NOT_FOUND
    assert raised.value.message == f"there is no LoRA {name!r}; there are: ink, oil paint"


def test_two_requests_without_seeds_get_different_ones() -> None:
    assert parsed().seeds != parsed().seeds


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [([7], (7, 8, 9)), ([5, 5, 1], (5, 5, 1)), ([2**64 - 2], (2**64 - 2, 2**64 - 1, 0))],
)
def test_seeds_are_one_per_picture(seeds: list[int], expected: tuple[int, ...]) -> None:
    assert parsed(num_images_per_prompt=3, seeds=seeds).seeds == expected


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"linear": {"end_scale": 1.5}},
        {"cosine": {"end_scale": 0}},
        {"interval": {"start": 0.1, "stop": 0.7}},
        {"interval": {"start": 0, "stop": 0}},
    ],
)
def test_the_request_with_its_defaults_says_the_same_again(schedule: dict[str, Any]) -> None:
    parameters = parsed(
        prompts=["a", "b"], negative_prompts=["x"], guidance_scale=7.1, guidance_schedule=schedule
    )
    message = parameters_to_message(parameters)
    assert message.HasField("height")
    assert message.guidance_schedule.WhichOneof("schedule") == (next(iter(schedule), "constant"))
    assert parameters_from_message(message, LIMITS) == parameters


def test_numbers_are_those_the_client_wrote() -> None:
    parameters = parsed(guidance_scale=7.1, guidance_schedule={"interval": {"start": 0.3, "stop": 0.7}})
    assert parameters.guidance_scale == 7.1
    assert parameters.guidance_schedule.parameters == {"start": 0.3, "stop": 0.7}
    assert parameters.guidance_scales() == parsed(
        guidance_scale=7.1, guidance_schedule={"interval": {"start": 0.3, "stop": 0.7}}
    ).guidance_schedule.scales(28, 7.1)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"prompts": []}, "prompts", "at least one"),
        ({"prompts": ["a", ""]}, "prompts[1]", "empty"),
        ({"prompts": ["  \n"]}, "prompts[0]", "empty"),
        ({"prompts": ["é" * 51]}, "prompts[0]", "at most 100 bytes of UTF-8, not 102"),
        ({"prompts": ["x" * 100_000]}, "prompts[0]", "not 100000"),
        ({"prompts": ["a\0b"]}, "prompts[0]", "U+0000"),
        ({"prompts": ["a"] * 7}, "prompts", "at most 6, not 7"),
        ({"negative_prompts": ["a", "b"]}, "negative_prompts", "one per prompt (1), not 2"),
        ({"negative_prompts": ["x" * 101]}, "negative_prompts[0]", "at most 100 bytes"),
        ({"height": 0}, "height", "nearest: 16"),
        ({"height": -64}, "height", "nearest: 16"),
        ({"height": 65}, "height", "nearest: 64 or 80"),
        ({"width": 72}, "width", "nearest: 64 or 80"),
        ({"width": 255}, "width", "nearest: 240 or 256"),
        ({"width": 2**31 - 1}, "width", "nearest: 256"),
        ({"width": 1}, "width", "nearest: 16"),
        ({"height": 256, "width": 256}, "height", "at most 50000, not 65536"),
        ({"height": 192, "width": 192, "num_images_per_prompt": 3}, "num_images_per_prompt", "100000 pixels"),
        ({"num_inference_steps": 0}, "num_inference_steps", "1 to 200"),
        ({"num_inference_steps": 10_000}, "num_inference_steps", "1 to 200"),
        ({"num_inference_steps": -1}, "num_inference_steps", "1 to 200"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "not nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale", "not inf"),
        ({"guidance_scale": -1}, "guidance_scale", "0 to 100"),
        ({"guidance_scale": 101}, "guidance_scale", "0 to 100"),
        (
            {"guidance_schedule": {"linear": {"end_scale": -1}}},
            "guidance_schedule.linear.end_scale",
            "0 to 100",
        ),
        (
            {"guidance_schedule": {"cosine": {"end_scale": float("nan")}}},
            "guidance_schedule.cosine.end_scale",
            "0 to 100",
        ),
        ({"guidance_schedule": {"interval": {"start": -0.1}}}, "guidance_schedule.interval.start", "0 to 1"),
        ({"guidance_schedule": {"interval": {"stop": 1.1}}}, "guidance_schedule.interval.stop", "0 to 1"),
        (
            {"guidance_schedule": {"interval": {"start": 0.6, "stop": 0.4}}},
            "guidance_schedule.interval.stop",
            "at least start (0.6)",
        ),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt", "at least 1"),
        ({"num_images_per_prompt": -3}, "num_images_per_prompt", "at least 1"),
        ({"num_images_per_prompt": 7}, "num_images_per_prompt", "at most 6"),
        ({"num_images_per_prompt": 2**31 - 1}, "num_images_per_prompt", "at most 6"),
        ({"num_images_per_prompt": 3, "seeds": [1, 2]}, "seeds", "one per picture (3), not 2"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str, says: str) -> None:
    violations = wrong(**fields)
    assert list(violations) == [field]
    assert says in violations[field]


def test_every_wrong_field_is_named_at_once() -> None:
    fields: dict[str, Any] = {
        "prompts": [""],
        "height": 7,
        "width": 0,
        "num_inference_steps": 0,
        "guidance_scale": float("nan"),
        "seeds": [1, 2],
    }
    assert wrong(**fields).keys() == {
        "prompts[0]", "height", "width", "num_inference_steps", "guidance_scale", "seeds",
    }  # fmt: skip


@pytest.mark.parametrize("limits", [EMBEDDED, WITHOUT_GUIDANCE], ids=["embedded", "none"])
def test_a_negative_prompt_that_cannot_steer_is_refused(limits: Limits) -> None:
    assert parsed(limits, negative_prompts=[""]).negative_prompts == ("",)
    violations = wrong(limits, negative_prompts=["mud"])
    assert list(violations) == ["negative_prompts"]
    assert "true classifier-free guidance" in violations["negative_prompts"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"guidance_scale": 3.5}, "guidance_scale"),
        ({"guidance_scale": 0}, "guidance_scale"),
        ({"guidance_schedule": {"linear": {"end_scale": 4}}}, "guidance_schedule"),
    ],
)
def test_guidance_of_a_model_without_any_is_refused(fields: dict[str, Any], field: str) -> None:
    violations = wrong(WITHOUT_GUIDANCE, **fields)
    assert list(violations) == [field]
    assert "leave it out, or make the scale 1" in violations[field]


def test_no_guidance_may_be_said_to_a_model_without_any() -> None:
    assert parsed(WITHOUT_GUIDANCE, guidance_scale=1).guidance_scales() == [1.0] * 28
    assert parsed(EMBEDDED, guidance_scale=2.5).guidance_scales() == [2.5] * 28


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(TriptychError, match="'big' is not served here; this server has 'small'") as raised:
        parsed(model="big")
    assert raised.value.code is grpc.StatusCode.NOT_FOUND
    assert parsed(model="small") is not None
