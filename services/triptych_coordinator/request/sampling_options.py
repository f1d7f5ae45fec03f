"""How a request is sampled: solver, sigma schedule and reuse between steps, from the wire and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message

from triptych.v1 import image_generation_pb2 as pb

CheckedNumber = Callable[[str, float, float, float], float]
"""Of a field's path, its value on the wire, the least and the most that is allowed."""


class Range(NamedTuple):
    """What a number is if it is not given, and what it may be. A default of type int makes whole numbers."""

    default: float
    least: float
    most: float


Ranges = Mapping[str, Mapping[str, Range]]
"""Of the parameters of each choice."""

_TOLERANCE = Range(0.01, 0.00001, 1.0)
_SOLVERS: Ranges = {
    "euler": {},
    "heun": {},
    "midpoint": {},
    "dpmpp_2m": {},
    "unipc": {},
    "lcm": {},
    "euler_ancestral": {"eta": Range(1.0, 0, 1)},
    "stochastic_euler": {"noise_fraction": Range(1.0, 0, 1)},
    "adaptive": {"absolute_tolerance": _TOLERANCE, "relative_tolerance": _TOLERANCE},
}
_SIGMA_SCHEDULES: Ranges = {
    "checkpoint": {},
    "linear": {},
    "karras": {"rho": Range(7.0, 1, 100)},
    "exponential": {},
    "beta": {"alpha": Range(0.6, 0.1, 10), "beta": Range(0.6, 0.1, 10)},
}
_REUSES: Ranges = {
    "none": {},
    "guidance": {"every": Range(2, 2, 20)},
    "extrapolation": {"every": Range(2, 2, 20)},
    "features": {"threshold": Range(0.1, 0.001, 1)},
}
_LINEAR_SOLVERS = ("heun", "dpmpp_2m", "unipc")
"""Not made for SD3's own levels, whose last but one is next to 0: Heun's step into it leaves noise in the
picture, and for the others see solvers/multistep.py."""
_NOISY_SOLVERS = ("lcm", "euler_ancestral", "stochastic_euler")


@dataclass(frozen=True)
class Choice:
    """One of a table's functions by name, with its own parameters."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingOptions:
    """A function of SOLVERS, one of SIGMA_SCHEDULES and one of REUSES."""

    solver: Choice = Choice("euler")
    sigma_schedule: Choice = Choice("checkpoint")
    reuse: Choice = Choice("none")


def read_sampling(
    message: pb.GenerationParameters, number: CheckedNumber, wrong: dict[str, str]
) -> SamplingOptions:
    """The options of a request, defaults filled in; `wrong` gets what is wrong by the field's path."""
    solver = _read(message.solver, "solver", "euler", _SOLVERS, number)
    if message.sigma_schedule.HasField("explicit"):
        schedule = _explicit(message.sigma_schedule.explicit, number, wrong)
    else:
        usual = "linear" if solver.name in _LINEAR_SOLVERS else "checkpoint"
        schedule = _read(message.sigma_schedule, "sigma_schedule", usual, _SIGMA_SCHEDULES, number)
    reuse = _read(message.step_reuse, "step_reuse", "none", _REUSES, number)
    if reuse.name != "none" and solver.name == "adaptive":
        wrong["step_reuse"] = "must be none: the adaptive solver measures its errors on fresh velocities"
    elif reuse.name == "extrapolation" and solver.name in _NOISY_SOLVERS:
        wrong["step_reuse.extrapolation"] = (
            f"must not be set: {solver.name} draws fresh noise, behind which velocities do not go on"
        )
    return SamplingOptions(solver, schedule, reuse)


def write_sampling(options: SamplingOptions, message: pb.GenerationParameters) -> None:
    """The inverse of read_sampling."""
    _write(options.solver, message.solver)
    _write(options.sigma_schedule, message.sigma_schedule)
    _write(options.reuse, message.step_reuse)


def explicit_steps(message: pb.GenerationParameters) -> int | None:
    """The number of steps that an explicit list of sigmas makes; None if there is none."""
    if not message.sigma_schedule.HasField("explicit"):
        return None
    sigmas = message.sigma_schedule.explicit.sigmas
    return len(sigmas) - (1 if sigmas and sigmas[-1] == 0 else 0)


def _explicit(schedule: pb.ExplicitSigmas, number: CheckedNumber, wrong: dict[str, str]) -> Choice:
    path = "sigma_schedule.explicit.sigmas"
    sigmas = [number(f"{path}[{i}]", sigma, 0, 1) for i, sigma in enumerate(schedule.sigmas)]
    if not sigmas or sigmas[0] == 0:
        wrong[path] = "must hold at least one level above 0"
    for i in range(1, len(sigmas)):
        if np.float32(sigmas[i]) >= np.float32(sigmas[i - 1]):
            wrong.setdefault(f"{path}[{i}]", f"must be below the level before, {sigmas[i - 1]:g}")
    return Choice("explicit", {"sigmas": (*sigmas, 0.0) if sigmas and sigmas[-1] else tuple(sigmas)})


def _read(message: Message, path: str, usual: str, ranges: Ranges, number: CheckedNumber) -> Choice:
    """What a message with one oneof chooses, `usual` if it chooses nothing."""
    (oneof,) = message.DESCRIPTOR.oneofs
    name = message.WhichOneof(oneof.name) or usual
    chosen = getattr(message, name)
    parameters: dict[str, float] = {}
    for parameter, allowed in ranges[name].items():
        value = allowed.default
        if chosen.HasField(parameter):
            given = getattr(chosen, parameter)
            value = type(value)(number(f"{path}.{name}.{parameter}", given, allowed.least, allowed.most))
        parameters[parameter] = value
    return Choice(name, parameters)


def _write(choice: Choice, message: Message) -> None:
    chosen = getattr(message, choice.name)
    chosen.MergeFrom(type(chosen)(**choice.parameters))
    chosen.SetInParent()
