"""What a request may ask for, and what it is told otherwise."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from triptych.errors import TriptychError
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.guidance import GuidanceSchedule
from triptych_coordinator.requests import (
    Limits,
    Parameters,
    parameters_from_message,
    parameters_to_message,
)
from triptych_coordinator.sampling_options import Choice, SamplingOptions

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
)


def parsed(**fields: Any) -> Parameters:
    return parameters_from_message(pb.GenerationParameters(**{"prompts": ["a cat"], **fields}), LIMITS)


def wrong(**fields: Any) -> dict[str, str]:
    """The violations of a request that is refused."""
    with pytest.raises(TriptychError) as raised:
        parsed(**fields)
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


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": {"heun": {}}},
        {"solver": {"euler_ancestral": {"eta": 0.3}}, "sigma_schedule": {"karras": {"rho": 5}}},
        {"solver": {"stochastic_euler": {}}, "step_reuse": {"guidance": {"every": 3}}},
        {"solver": {"adaptive": {"relative_tolerance": 0.1}}, "sigma_schedule": {"beta": {}}},
        {"solver": {"unipc": {}}, "step_reuse": {"extrapolation": {}}},
        {"sigma_schedule": {"explicit": {"sigmas": [1, 0.7, 0.1]}}},
    ],
)
def test_the_sampling_with_its_defaults_says_the_same_again(fields: dict[str, Any]) -> None:
    parameters = parsed(**fields)
    message = parameters_to_message(parameters)
    assert message.HasField("solver")
    assert message.HasField("sigma_schedule")
    assert message.HasField("step_reuse")
    assert parameters_from_message(message, LIMITS) == parameters


def test_a_request_that_chooses_nothing_gets_euler_on_the_checkpoint_s_levels() -> None:
    assert parsed().sampling == SamplingOptions(Choice("euler"), Choice("checkpoint"), Choice("none"))
    assert parsed(solver={}, sigma_schedule={}, step_reuse={}).sampling == parsed().sampling


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def test_solvers_over_lambda_get_linear_levels_unless_told_otherwise(solver: str) -> None:
    assert parsed(solver={solver: {}}).sampling.sigma_schedule == Choice("linear")
    told = parsed(solver={solver: {}}, sigma_schedule={"checkpoint": {}})
    assert told.sampling.sigma_schedule == Choice("checkpoint")


def test_parameters_that_are_left_out_are_the_usual_ones() -> None:
    assert parsed(solver={"euler_ancestral": {}}).sampling.solver.parameters == {"eta": 1}
    assert parsed(solver={"euler_ancestral": {"eta": 0}}).sampling.solver.parameters == {"eta": 0}
    assert parsed(sigma_schedule={"karras": {}}).sampling.sigma_schedule.parameters == {"rho": 7}
    assert parsed(step_reuse={"guidance": {}}).sampling.reuse.parameters == {"every": 2}


def test_a_list_of_sigmas_decides_the_number_of_steps() -> None:
    for sigmas in ([1, 0.7, 0.1], [1, 0.7, 0.1, 0]):
        parameters = parsed(sigma_schedule={"explicit": {"sigmas": sigmas}})
        assert parameters.num_inference_steps == 3
        assert parameters.sampling.sigma_schedule.parameters == {"sigmas": (1, 0.7, 0.1, 0)}
    assert parsed(sigma_schedule={"explicit": {"sigmas": [1, 0.5]}}, num_inference_steps=2) is not None


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
        ({"solver": {"euler_ancestral": {"eta": 1.5}}}, "solver.euler_ancestral.eta", "0 to 1"),
        (
            {"solver": {"stochastic_euler": {"noise_fraction": float("nan")}}},
            "solver.stochastic_euler.noise_fraction",
            "0 to 1",
        ),
        ({"solver": {"adaptive": {"absolute_tolerance": 0}}}, "solver.adaptive.absolute_tolerance", "to 1"),
        ({"sigma_schedule": {"karras": {"rho": 0}}}, "sigma_schedule.karras.rho", "1 to 100"),
        ({"sigma_schedule": {"beta": {"alpha": 0.01}}}, "sigma_schedule.beta.alpha", "0.1 to 10"),
        (
            {"sigma_schedule": {"explicit": {"sigmas": []}}},
            "sigma_schedule.explicit.sigmas",
            "at least one level above 0",
        ),
        (
            {"sigma_schedule": {"explicit": {"sigmas": [0]}}},
            "sigma_schedule.explicit.sigmas",
            "at least one level above 0",
        ),
        (
            {"sigma_schedule": {"explicit": {"sigmas": [1 - i / 300 for i in range(201)]}}},
            "sigma_schedule.explicit.sigmas",
            "1 to 200 steps, not 201",
        ),
        (
            {"sigma_schedule": {"explicit": {"sigmas": [1, 0.5, 0.5]}}},
            "sigma_schedule.explicit.sigmas[2]",
            "below the level before, 0.5",
        ),
        (
            {"sigma_schedule": {"explicit": {"sigmas": [1, 0, 0.5]}}},
            "sigma_schedule.explicit.sigmas[2]",
            "below the level before, 0",
        ),
        (
            {"sigma_schedule": {"explicit": {"sigmas": [1.5, 1]}}},
            "sigma_schedule.explicit.sigmas[0]",
            "0 to 1, not 1.5",
        ),
        (
            {"sigma_schedule": {"explicit": {"sigmas": [1, 0.5]}}, "num_inference_steps": 3},
            "num_inference_steps",
            "left out or 2",
        ),
        ({"step_reuse": {"guidance": {"every": 1}}}, "step_reuse.guidance.every", "2 to 20"),
        ({"step_reuse": {"extrapolation": {"every": 21}}}, "step_reuse.extrapolation.every", "2 to 20"),
        ({"solver": {"adaptive": {}}, "step_reuse": {"guidance": {}}}, "step_reuse", "adaptive"),
        ({"solver": {"lcm": {}}, "step_reuse": {"extrapolation": {}}}, "step_reuse.extrapolation", "lcm"),
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


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(TriptychError, match="'big' is not served here; this server has 'small'") as raised:
        parsed(model="big")
    assert raised.value.code is grpc.StatusCode.NOT_FOUND
    assert parsed(model="small") is not None
