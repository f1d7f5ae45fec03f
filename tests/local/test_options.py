"""What the words of the command line mean, and that every parameter has an option that says its form."""

from typing import Any

import pytest
from google.protobuf.message import Message

from triptych.v1 import editing_pb2, guidance_pb2, sampling_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.guidance_pb2 import GuidanceMethod, GuidanceSchedule, SkipLayerGuidance
from triptych.v1.sampling_pb2 import SigmaSchedule, Solver, StepReuse
from triptych_local.messages import form, read_message
from triptych_local.request import ELSEWHERE, Request, read_compositions, read_parameter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heun", Solver(heun=sampling_pb2.HeunSolver())),
        ("dpmpp-2m", Solver(dpmpp_2m=sampling_pb2.DpmSolverMultistep())),
        (" euler-ancestral:0.5 ", Solver(euler_ancestral=sampling_pb2.EulerAncestralSolver(eta=0.5))),
        (
            "adaptive:0.1:0.02",
            Solver(adaptive=sampling_pb2.AdaptiveSolver(absolute_tolerance=0.1, relative_tolerance=0.02)),
        ),
        ("explicit:1,0.5,0.25", SigmaSchedule(explicit=sampling_pb2.ExplicitSigmas(sigmas=[1, 0.5, 0.25]))),
        ("beta:0.5:0.75", SigmaSchedule(beta=sampling_pb2.BetaSigmas(alpha=0.5, beta=0.75))),
        ("linear", SigmaSchedule(linear=sampling_pb2.LinearSigmas())),
        ("extrapolation:3", StepReuse(extrapolation=sampling_pb2.VelocityExtrapolation(every=3))),
        ("guidance", StepReuse(guidance=sampling_pb2.GuidanceReuse())),
        ("linear:1", GuidanceSchedule(linear=guidance_pb2.LinearGuidance(end_scale=1))),
        ("interval:0:0.8", GuidanceSchedule(interval=guidance_pb2.IntervalGuidance(start=0, stop=0.8))),
        ("list:7,5.5,1", GuidanceSchedule(explicit=guidance_pb2.ExplicitGuidance(scales=[7, 5.5, 1]))),
        ("list:7", GuidanceSchedule(explicit=guidance_pb2.ExplicitGuidance(scales=[7]))),
        ("cfg", GuidanceMethod(classifier_free=guidance_pb2.ClassifierFreeGuidance())),
        ("apg", GuidanceMethod(adaptive_projected=guidance_pb2.AdaptiveProjectedGuidance())),
        (
            "apg:0.5:15:-0.25",
            GuidanceMethod(
                adaptive_projected=guidance_pb2.AdaptiveProjectedGuidance(
                    eta=0.5, norm_threshold=15, momentum=-0.25
                )
            ),
        ),
        ("zero-star", GuidanceMethod(zero_star=guidance_pb2.ZeroStarGuidance())),
        ("zero-star:2", GuidanceMethod(zero_star=guidance_pb2.ZeroStarGuidance(zero_init_steps=2))),
        ("7,8, 9", SkipLayerGuidance(layers=[7, 8, 9])),
        ("7:3", SkipLayerGuidance(layers=[7], scale=3)),
        ("7:3:0.5:1", SkipLayerGuidance(layers=[7], scale=3, start=0.5, stop=1)),
        ("64:0:32:0", editing_pb2.Margins(left=64, right=32)),
        ("9:0.25", editing_pb2.Variation(seeds=[9], strengths=[0.25])),
    ],
)
def test_a_message_is_a_name_and_its_numbers(text: str, expected: Message) -> None:
    assert read_message(text, type(expected)) == expected


@pytest.mark.parametrize("text", ["", "kind", "euler:1", "adaptive:1", "lcm:", "euler-ancestral:a", "EULER"])
def test_what_is_no_solver_is_told_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no solver: it is euler, heun, .* or adaptive"):
        read_message(text, Solver)


@pytest.mark.parametrize("text", ["", "cfg:1", "apg:x:1:2", "zero-star:1.5", "zero-star:1:2"])
def test_other_methods_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no guidance method"):
        read_message(text, GuidanceMethod)


@pytest.mark.parametrize("text", ["", "a", "7:", "7:1:2", "7,"])
def test_other_layers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="are no layers"):
        read_message(text, SkipLayerGuidance)


@pytest.mark.parametrize("message", [Solver, SigmaSchedule, StepReuse, GuidanceSchedule, GuidanceMethod])
def test_the_help_names_every_choice_with_its_numbers(message: type[Message]) -> None:
    words = form(message.DESCRIPTOR)
    named = [word.split(":")[0] for word in words.replace(" or ", ", ").replace("[", "").split(", ")]
    assert len(named) == len(message.DESCRIPTOR.fields)
    numbers: list[Any] = [field.message_type.fields for field in message.DESCRIPTOR.fields]
    assert words.count(":") == sum(map(len, numbers))


def test_every_parameter_has_an_option_that_says_what_it_is() -> None:
    for field in GenerationParameters.DESCRIPTOR.fields:
        if field.name not in ELSEWHERE:
            assert Request.model_fields[field.name].description, field.name


def test_a_composed_prompts_weight_is_its_last_number() -> None:
    assert read_compositions(["a hat:-0.5", "at 10:30: fog", "ratio 3:2 "]) == [
        guidance_pb2.Composition(
            prompts=[
                guidance_pb2.WeightedPrompt(prompt="a hat", weight=-0.5),
                guidance_pb2.WeightedPrompt(prompt="at 10:30: fog"),
                guidance_pb2.WeightedPrompt(prompt="ratio 3", weight=2),
            ]
        )
    ]


@pytest.mark.parametrize("name", ["steps", "num-inference-steps"])
def test_a_parameter_has_its_name_and_a_short_word(name: str) -> None:
    assert read_parameter(name, "20") == {"num_inference_steps": 20}
