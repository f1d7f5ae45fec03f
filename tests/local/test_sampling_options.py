"""What --solver, --sigma-schedule and --step-reuse understand, and that their help says so."""

from typing import Any

import pytest
from google.protobuf.message import Message

from triptych.v1 import sampling_pb2
from triptych_local.options import (
    REUSES,
    SIGMA_SCHEDULES,
    SOLVERS,
    read_sigma_schedule,
    read_solver,
    read_step_reuse,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heun", sampling_pb2.Solver(heun=sampling_pb2.HeunSolver())),
        ("dpmpp-2m", sampling_pb2.Solver(dpmpp_2m=sampling_pb2.DpmSolverMultistep())),
        (
            " euler-ancestral:0.5 ",
            sampling_pb2.Solver(euler_ancestral=sampling_pb2.EulerAncestralSolver(eta=0.5)),
        ),
        (
            "adaptive:0.1:0.02",
            sampling_pb2.Solver(
                adaptive=sampling_pb2.AdaptiveSolver(absolute_tolerance=0.1, relative_tolerance=0.02)
            ),
        ),
    ],
)
def test_a_solver_is_a_name_and_its_numbers(text: str, expected: sampling_pb2.Solver) -> None:
    assert read_solver(text) == expected


def test_a_sigma_schedule_may_be_a_list() -> None:
    assert list(read_sigma_schedule("explicit:1,0.5,0.25").explicit.sigmas) == [1, 0.5, 0.25]
    assert read_sigma_schedule("beta:0.5:0.75") == sampling_pb2.SigmaSchedule(
        beta=sampling_pb2.BetaSigmas(alpha=0.5, beta=0.75)
    )
    assert read_sigma_schedule("linear").WhichOneof("schedule") == "linear"


def test_reuse_takes_a_whole_number() -> None:
    assert read_step_reuse("extrapolation:3").extrapolation.every == 3
    assert not read_step_reuse("guidance").guidance.HasField("every")


@pytest.mark.parametrize("text", ["", "kind", "euler:1", "adaptive:1", "lcm:", "euler-ancestral:a", "EULER"])
def test_what_is_no_solver_is_told_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no solver: it is euler, heun, .* or adaptive"):
        read_solver(text)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (sampling_pb2.Solver, SOLVERS),
        (sampling_pb2.SigmaSchedule, SIGMA_SCHEDULES),
        (sampling_pb2.StepReuse, REUSES),
    ],
)
def test_the_help_names_every_choice_with_its_numbers(message: type[Message], words: str) -> None:
    named = [word.split(":")[0] for word in words.replace(" or ", ", ").replace("[", "").split(", ")]
    assert named == [field.name.replace("_", "-") for field in message.DESCRIPTOR.fields]
    numbers: list[Any] = [field.message_type.fields for field in message.DESCRIPTOR.fields]
    assert words.count(":") == sum(map(len, numbers))
