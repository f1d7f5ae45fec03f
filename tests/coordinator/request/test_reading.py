"""What a request may ask for, and what it is told otherwise."""

import math
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from triptych.errors import TriptychError
from triptych.families.family import GuidanceInput
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request import reading
from triptych_coordinator.request.parameters import Composition, Limits, Lora, Parameters, WeightedPrompt
from triptych_coordinator.request.prompt_weights import Span, WeightedText
from triptych_coordinator.request.reading import parameters_from_message
from triptych_coordinator.request.writing import parameters_to_message
from triptych_coordinator.sampling.guidance.layers import PerturbedAttentionGuidance, SkipLayerGuidance
from triptych_coordinator.sampling.guidance.methods import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    NormPreservingGuidance,
    ZeroStarGuidance,
)
from triptych_coordinator.sampling.guidance.schedules import ConstantGuidance, IntervalGuidance
from triptych_coordinator.sampling.reuse.branches import GuidanceReuse
from triptych_coordinator.sampling.reuse.features import MagCache
from triptych_coordinator.sampling.reuse.input_changes import TeaCache
from triptych_coordinator.sampling.reuse.step_reuse import NoReuse
from triptych_coordinator.sampling.sigma_schedules import (
    CheckpointSigmas,
    ExplicitSigmas,
    KarrasSigmas,
    LinearSigmas,
)
from triptych_coordinator.sampling.solvers.runge_kutta import EulerSolver
from triptych_coordinator.sampling.solvers.stochastic import EulerAncestralSolver

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
    num_layers=6,
    prompt_weighting=True,
    guidance=GuidanceInput.BRANCHES,
    loras=("ink", "oil paint"),
    latent_channels=4,
    downscale=8,
    previews=True,
)
EMBEDDED = replace(LIMITS, guidance=GuidanceInput.EMBEDDED)
WITHOUT_GUIDANCE = replace(LIMITS, guidance=GuidanceInput.NONE, default_guidance_scale=1.0)


def parsed(limits: Limits = LIMITS, **fields: Any) -> Parameters:
    return parameters_from_message(GenerationParameters(**{"prompts": ["a cat"], **fields}), limits)


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
    assert parameters.guidance_schedule == ConstantGuidance()
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


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": {"heun": {}}},
        {"solver": {"euler_ancestral": {"eta": 0.3}}, "sigma_schedule": {"karras": {"rho": 5}}},
        {"solver": {"stochastic_euler": {}}, "step_reuse": {"guidance": {"every": 3}}},
        {"solver": {"adaptive": {"relative_tolerance": 0.1}}, "sigma_schedule": {"beta": {}}},
        {"solver": {"unipc": {}}, "step_reuse": {"extrapolation": {}}},
        {"solver": {"lcm": {}}, "step_reuse": {"magcache": {"mag_ratios": [1, 1.5]}}},
        {"solver": {"lcm": {}}, "step_reuse": {"teacache": {"threshold": 0.5, "coefficients": [3, 1, 0]}}},
        {"solver": {"dpmpp_2m": {}}, "step_reuse": {"taylorseer": {"every": 4, "order": 0}}},
        {"solver": {"lcm": {}}, "step_reuse": {"features": {"threshold": 0.3}}},
        {"sigma_schedule": {"explicit": {"sigmas": [1, 0.7, 0.1]}}},
        {"progressive_resolution": {"sigmas": [0.9, 0.7]}},
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
    for parameters in (parsed(), parsed(solver={}, sigma_schedule={}, step_reuse={})):
        chosen = parameters.solver, parameters.sigma_schedule, parameters.step_reuse
        assert chosen == (EulerSolver(), CheckpointSigmas(), NoReuse())


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "unipc"])
def test_solvers_that_a_level_next_to_zero_hurts_get_linear_levels_unless_told_otherwise(solver: str) -> None:
    assert parsed(solver={solver: {}}).sigma_schedule == LinearSigmas()
    told = parsed(solver={solver: {}}, sigma_schedule={"checkpoint": {}})
    assert told.sigma_schedule == CheckpointSigmas()


def test_parameters_that_are_left_out_are_the_usual_ones() -> None:
    assert parsed(solver={"euler_ancestral": {}}).solver == EulerAncestralSolver(1.0)
    assert parsed(solver={"euler_ancestral": {"eta": 0}}).solver == EulerAncestralSolver(0.0)
    assert parsed(sigma_schedule={"karras": {}}).sigma_schedule == KarrasSigmas(7.0)
    assert parsed(step_reuse={"guidance": {}}).step_reuse == GuidanceReuse(2)


def test_magcache_has_the_ratios_of_the_model_unless_it_says_its_own() -> None:
    known = replace(LIMITS, mag_ratios=(1.0, 1.1))
    for given, ratios in (({}, (1.0, 1.1)), ({"mag_ratios": [1.0, 1.3]}, (1.0, 1.3))):
        assert parsed(known, step_reuse={"magcache": given}).step_reuse == MagCache(mag_ratios=ratios)


def test_coefficients_are_those_given_else_the_model_s_else_take_changes_as_they_are() -> None:
    known = replace(LIMITS, teacache_coefficients=(2.0, 1.0, 0.0))
    for limits, given, coefficients in (
        (known, {"coefficients": [3, 0]}, (3.0, 0.0)),
        (known, {}, (2.0, 1.0, 0.0)),
        (LIMITS, {}, (1.0, 0.0)),
    ):
        choice = parsed(limits, step_reuse={"teacache": given}).step_reuse
        assert choice == TeaCache(0.25, coefficients)


def test_a_list_of_sigmas_decides_the_number_of_steps() -> None:
    for sigmas in ([1, 0.7, 0.1], [1, 0.7, 0.1, 0]):
        parameters = parsed(sigma_schedule={"explicit": {"sigmas": sigmas}})
        assert parameters.num_inference_steps == 3
        assert parameters.sigma_schedule == ExplicitSigmas((1, 0.7, 0.1, 0))
    assert parsed(sigma_schedule={"explicit": {"sigmas": [1, 0.5]}}, num_inference_steps=2) is not None


def test_numbers_are_those_the_client_wrote() -> None:
    parameters = parsed(guidance_scale=7.1, guidance_schedule={"interval": {"start": 0.3, "stop": 0.7}})
    assert parameters.guidance_scale == 7.1
    assert parameters.guidance_schedule == IntervalGuidance(0.3, 0.7)
    assert parameters.guidance_scales() == parsed(
        guidance_scale=7.1, guidance_schedule={"interval": {"start": 0.3, "stop": 0.7}}
    ).guidance_schedule.over(28, 7.1)


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
        (
            {"guidance_schedule": {"explicit": {"scales": [1.0, 2.0]}}},
            "guidance_schedule.explicit.scales",
            "one per step (28), not 2",
        ),
        (
            {"num_inference_steps": 2, "guidance_schedule": {"explicit": {"scales": [1.0, -2.0]}}},
            "guidance_schedule.explicit.scales[1]",
            "0 to 100",
        ),
        (
            {
                "num_inference_steps": 1,
                "guidance_scale": 3.0,
                "guidance_schedule": {"explicit": {"scales": [1.0]}},
            },
            "guidance_scale",
            "must not be set",
        ),
        ({"guidance_rescale": 1.5}, "guidance_rescale", "0 to 1"),
        ({"guidance_rescale": float("nan")}, "guidance_rescale", "not nan"),
        (
            {"guidance_method": {"adaptive_projected": {"momentum": -1.5}}},
            "guidance_method.adaptive_projected.momentum",
            "-1 to 1",
        ),
        (
            {"guidance_method": {"adaptive_projected": {"norm_threshold": -1}}},
            "guidance_method.adaptive_projected.norm_threshold",
            "0 to 10000",
        ),
        (
            {"guidance_method": {"adaptive_projected": {"eta": 11}}},
            "guidance_method.adaptive_projected.eta",
            "-10 to 10",
        ),
        (
            {"guidance_method": {"zero_star": {"zero_init_steps": 28}}},
            "guidance_method.zero_star.zero_init_steps",
            "0 to 27, not 28",
        ),
        (
            {"num_inference_steps": 1, "guidance_method": {"zero_star": {}}},
            "guidance_method.zero_star.zero_init_steps",
            "at least one of the 1 steps: 0 to 0, not 1",
        ),
        ({"skip_layer_guidance": {}}, "skip_layer_guidance.layers", "at least one layer"),
        ({"skip_layer_guidance": {"layers": [1, 1]}}, "skip_layer_guidance.layers", "none twice"),
        ({"skip_layer_guidance": {"layers": [0, 6]}}, "skip_layer_guidance.layers[1]", "0 to 5, not 6"),
        ({"skip_layer_guidance": {"layers": [-1]}}, "skip_layer_guidance.layers[0]", "0 to 5, not -1"),
        (
            {"skip_layer_guidance": {"layers": [1], "start": 0.5}},
            "skip_layer_guidance.stop",
            "at least start (0.5), not 0.2",
        ),
        (
            {"perturbed_attention_guidance": {"layers": [1], "scale": 101}},
            "perturbed_attention_guidance.scale",
            "0 to 100",
        ),
        (
            {"perturbed_attention_guidance": {"layers": [9]}},
            "perturbed_attention_guidance.layers[0]",
            "0 to 5, not 9",
        ),
        ({"compositions": [{}]}, "compositions[0].prompts", "1 to 8"),
        ({"compositions": [{"prompts": [{"prompt": "a"}] * 9}]}, "compositions[0].prompts", "1 to 8"),
        ({"compositions": [{"prompts": [{}]}]}, "compositions[0].prompts[0].prompt", "empty"),
        (
            {"compositions": [{"prompts": [{"prompt": "x" * 101}]}]},
            "compositions[0].prompts[0].prompt",
            "at most 100 bytes",
        ),
        (
            {"compositions": [{"prompts": [{"prompt": "a", "weight": float("inf")}]}]},
            "compositions[0].prompts[0].weight",
            "-10 to 10",
        ),
        (
            {"compositions": [{"prompts": [{"prompt": "a"}], "prompt_weight": 11}]},
            "compositions[0].prompt_weight",
            "-10 to 10",
        ),
        ({"compositions": [{}, {}]}, "compositions", "one per prompt (1)"),
        (
            {
                "prompts": ["a", "b"],
                "compositions": [{"prompts": [{"prompt": "c"}]}, {"prompts": [{"prompt": "d"}] * 2}],
            },
            "compositions",
            "the same number of prompts",
        ),
        ({"prompts": ["a (b:11)"], "prompt_weighting": True}, "prompts[0]", "weight 11; allowed are -10"),
        ({"prompts": ["()"], "prompt_weighting": True}, "prompts[0]", "between its brackets"),
        ({"prompts": ["(" * 65], "prompt_weighting": True}, "prompts[0]", "more than 64 brackets"),
        (
            {"negative_prompts": ["(" * 26 + "b"], "prompt_weighting": True},
            "negative_prompts[0]",
            "weight 11.9",
        ),
        (
            {"compositions": [{"prompts": [{"prompt": "[]"}]}], "prompt_weighting": True},
            "compositions[0].prompts[0].prompt",
            "between its brackets",
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
        ({"step_reuse": {"features": {"threshold": 0}}}, "step_reuse.features.threshold", "0.001 to 1"),
        ({"progressive_resolution": {}}, "progressive_resolution.sigmas", "1 to 3 levels, not 0"),
        (
            {"progressive_resolution": {"sigmas": [0.5, 0.5]}},
            "progressive_resolution.sigmas[1]",
            "below the level before, 0.5",
        ),
        (
            {"progressive_resolution": {"sigmas": [1.5]}},
            "progressive_resolution.sigmas[0]",
            "0.01 to 1, not 1.5",
        ),
        ({"step_reuse": {"taylorseer": {"order": 5}}}, "step_reuse.taylorseer.order", "0 to 4, not 5"),
        (
            {"step_reuse": {"magcache": {}}},
            "step_reuse.magcache.mag_ratios",
            "must be given: none are known for this model",
        ),
        (
            {"step_reuse": {"magcache": {"mag_ratios": [1, 0]}}},
            "step_reuse.magcache.mag_ratios[1]",
            "0.01 to 100, not 0",
        ),
        (
            {"solver": {"midpoint": {}}, "step_reuse": {"magcache": {"mag_ratios": [1]}}},
            "step_reuse.magcache",
            "with it the solver is euler or dpmpp_2m or unipc or lcm",
        ),
        (
            {"solver": {"adaptive": {}}, "guidance_method": {"adaptive_projected": {}}},
            "guidance_method.adaptive_projected.momentum",
            "must be 0 with the adaptive solver",
        ),
        (
            {"step_reuse": {"teacache": {"threshold": 2}}},
            "step_reuse.teacache.threshold",
            "0.001 to 1, not 2",
        ),
        (
            {"step_reuse": {"teacache": {"coefficients": [1] * 9}}},
            "step_reuse.teacache.coefficients",
            "at most 8, not 9",
        ),
        (
            {"step_reuse": {"teacache": {"coefficients": [1, float("nan")]}}},
            "step_reuse.teacache.coefficients[1]",
            "a number from -1e+06 to 1e+06",
        ),
        (
            {"solver": {"heun": {}}, "step_reuse": {"teacache": {}}},
            "step_reuse.teacache",
            "heun evaluates more than once a step",
        ),
        ({"solver": {"adaptive": {}}, "step_reuse": {"guidance": {}}}, "step_reuse", "adaptive"),
        ({"solver": {"lcm": {}}, "step_reuse": {"extrapolation": {}}}, "step_reuse.extrapolation", "lcm"),
        ({"solver": {"lcm": {}}, "step_reuse": {"taylorseer": {}}}, "step_reuse.taylorseer", "fresh noise"),
        (
            {"solver": {"heun": {}}, "step_reuse": {"taylorseer": {}}},
            "step_reuse.taylorseer",
            "heun evaluates more than once a step, and it counts in steps; with it the solver is euler or"
            " dpmpp_2m or unipc",
        ),
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
    assert "a negative prompt steers it with a true_cfg_scale above 1" in violations["negative_prompts"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"guidance_scale": 3.5}, "guidance_scale"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
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


CHOSEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "classifier-free": (
        {"guidance_method": {"classifier_free": {}}},
        {"guidance_method": None},
    ),
    "APG as it is": (
        {"guidance_method": {"adaptive_projected": {}}},
        {"guidance_method": AdaptiveProjectedGuidance(0.0, 15.0, -0.5)},
    ),
    "APG": (
        {"guidance_method": {"adaptive_projected": {"eta": 0.3, "norm_threshold": 0, "momentum": 0}}},
        {"guidance_method": AdaptiveProjectedGuidance(0.3, 0.0, 0.0)},
    ),
    "CFG-Zero* as it is": ({"guidance_method": {"zero_star": {}}}, {"guidance_method": ZeroStarGuidance(1)}),
    "CFG-Zero*": (
        {"guidance_method": {"zero_star": {"zero_init_steps": 0}}},
        {"guidance_method": ZeroStarGuidance(0)},
    ),
    "norms as they are": (
        {"guidance_method": {"norm_preserving": {}}},
        {"guidance_method": NormPreservingGuidance(2)},
    ),
    "norms": (
        {"guidance_method": {"norm_preserving": {"token_size": 1}}},
        {"guidance_method": NormPreservingGuidance(1)},
    ),
    "rescale": ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
    "SLG as it is": (
        {"skip_layer_guidance": {"layers": [3, 1]}},
        {"skip_layer_guidance": SkipLayerGuidance((1, 3), 2.8, 0.01, 0.2)},
    ),
    "SLG and PAG": (
        {
            "skip_layer_guidance": {"layers": [2], "scale": 1.1, "start": 0, "stop": 0.3},
            "perturbed_attention_guidance": {"layers": [0], "scale": 0.7, "stop": 0.5},
        },
        {
            "skip_layer_guidance": SkipLayerGuidance((2,), 1.1, 0.0, 0.3),
            "perturbed_attention_guidance": PerturbedAttentionGuidance((0,), 0.7, 0.0, 0.5),
        },
    ),
    "one composition for all prompts": (
        {"compositions": [{"prompts": [{"prompt": "c"}, {"prompt": "d", "weight": -0.3}]}]},
        {"compositions": (Composition(1.0, (WeightedPrompt("c"), WeightedPrompt("d", -0.3))),) * 2},
    ),
    "a composition per prompt": (
        {
            "compositions": [
                {"prompts": [{"prompt": "c", "weight": 0.1}], "prompt_weight": 0.9},
                {"prompts": [{"prompt": "d"}]},
            ]
        },
        {
            "compositions": (
                Composition(0.9, (WeightedPrompt("c", 0.1),)),
                Composition(1.0, (WeightedPrompt("d"),)),
            )
        },
    ),
}


@pytest.mark.parametrize(("fields", "chosen"), CHOSEN.values(), ids=CHOSEN)
def test_guidance_is_as_chosen_and_says_so_again(fields: dict[str, Any], chosen: dict[str, Any]) -> None:
    parameters = parsed(prompts=["a", "b"], **fields)
    assert {name: getattr(parameters, name) for name in chosen} == chosen
    assert parameters_from_message(parameters_to_message(parameters), LIMITS) == parameters


QWEN_IMAGE = replace(LIMITS, default_guidance_method=NormPreservingGuidance(), default_negative_prompt=" ")


@pytest.mark.parametrize(
    ("fields", "method", "negative"),
    [
        ({}, NormPreservingGuidance(), " "),
        ({"guidance_method": {"classifier_free": {}}}, ClassifierFreeGuidance(), " "),
        ({"negative_prompts": [""]}, NormPreservingGuidance(), ""),
    ],
)
def test_a_model_may_have_a_guidance_and_a_negative_prompt_of_its_own(
    fields: dict[str, Any], method: Any, negative: str
) -> None:
    parameters = parsed(QWEN_IMAGE, **fields)
    assert (parameters.guidance_method, parameters.negative_prompts) == (method, (negative,))
    assert parameters_from_message(parameters_to_message(parameters), QWEN_IMAGE) == parameters


def test_an_explicit_schedule_says_the_same_again() -> None:
    schedule = {"explicit": {"scales": [7.1, 0.0, 3.3]}}
    parameters = parsed(num_inference_steps=3, guidance_schedule=schedule)
    assert parameters.guidance_scales() == [7.1, 0.0, 3.3]
    message = parameters_to_message(parameters)
    assert not message.HasField("guidance_scale")
    assert parameters_from_message(message, LIMITS) == parameters


def test_a_model_whose_layers_cannot_be_skipped_is_said_so() -> None:
    message = GenerationParameters(prompts=["a"], skip_layer_guidance={"layers": [0]})
    with pytest.raises(TriptychError, match="skip_layer_guidance: the served model's layers cannot"):
        parameters_from_message(message, replace(LIMITS, num_layers=0))


def test_marks_are_text_unless_weights_are_asked_for() -> None:
    assert parsed(prompts=["(a:2) b"]).weighted("(a:2) b") == WeightedText("(a:2) b")
    parameters = parsed(prompts=["(a:2) b"], prompt_weighting=True)
    assert parameters.weighted("(a:2) b") == WeightedText("a b", (Span(0, 1, 2.0),))
    assert parameters_from_message(parameters_to_message(parameters), LIMITS) == parameters


def test_weights_are_refused_where_the_text_encoder_has_none() -> None:
    message = GenerationParameters(prompts=["a"], prompt_weighting=True)
    with pytest.raises(TriptychError, match="prompt_weighting: is not possible with the served model"):
        parameters_from_message(message, replace(LIMITS, prompt_weighting=False))


@pytest.mark.parametrize("limits", [EMBEDDED, WITHOUT_GUIDANCE], ids=["embedded", "none"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_method", {"adaptive_projected": {}}),
        ("guidance_method", {"zero_star": {}}),
        ("compositions", [{"prompts": [{"prompt": "a dog"}]}]),
        ("guidance_rescale", 0.5),
        ("negative_prompts", ["a dog"]),
    ],
)
def test_what_needs_a_second_branch_is_refused_where_guidance_is_distilled(
    limits: Limits, field: str, value: Any
) -> None:
    assert set(wrong(limits, **{field: value})) == {field}


@pytest.mark.parametrize("limits", [EMBEDDED, WITHOUT_GUIDANCE], ids=["embedded", "none"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_method", {"adaptive_projected": {}}),
        ("compositions", [{"prompts": [{"prompt": "a dog"}]}]),
        ("guidance_rescale", 0.5),
        ("negative_prompts", ["a dog"]),
    ],
)
def test_true_classifier_free_guidance_gives_a_distilled_model_two_branches(
    limits: Limits, field: str, value: Any
) -> None:
    parameters = parsed(limits, true_cfg_scale=4, **{field: value})
    assert parameters.branch_scales(limits.guidance) == [4.0] * 28
    assert parameters_from_message(parameters_to_message(parameters), limits) == parameters


def test_true_classifier_free_guidance_is_not_said_twice() -> None:
    assert "guidance_scale is that" in wrong(true_cfg_scale=4)["true_cfg_scale"]
    assert parsed(true_cfg_scale=1).true_cfg_scale == 1
    assert parsed(EMBEDDED, true_cfg_scale=0.5).true_cfg_scale == 1
    assert set(wrong(EMBEDDED, true_cfg_scale=101)) == {"true_cfg_scale"}


def test_a_distilled_model_may_be_weakened_and_that_rescaled() -> None:
    skip = {"layers": [1, 2]}
    assert parsed(EMBEDDED, skip_layer_guidance=skip, guidance_rescale=0.5).guidance_rescale == 0.5


def test_behind_the_ninth_fault_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets of strangers cost time: of a hundred wrong prompts nine are read."""
    read: list[str] = []

    def refuse(text: str) -> None:
        read.append(text)
        raise ValueError("has a bracket too many")

    monkeypatch.setattr(reading, "read_weighted", refuse)
    message = GenerationParameters(prompts=["(a"] * 100, prompt_weighting=True)
    limits = replace(LIMITS, max_images=100, prompt_weighting=True)
    with pytest.raises(TriptychError) as caught:
        parameters_from_message(message, limits)
    assert len(read) == 9
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "prompts[7]: has a bracket too many; and others" in caught.value.message
    read.clear()
    with pytest.raises(TriptychError, match="must be at most 4, not 100"):
        parameters_from_message(message, replace(limits, max_images=4))
    assert read == [], "they are counted before they are read"
