"""The checkpoint's schedule of noise levels, from its scheduler/scheduler_config.json."""

import math
from collections.abc import Mapping
from typing import Any

from triptych.errors import StartError
from triptych.families.family import MuName
from triptych_coordinator.sampling.sigmas import (
    TRAIN_TIMESTEPS,
    DynamicShift,
    EmpiricalShift,
    FixedMu,
    FlowSchedule,
    Grid,
    Shift,
)

_CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
_UNSUPPORTED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


def flow_schedule(
    config: Mapping[str, Any], grid: Grid = Grid.TRAINING, mu: MuName | float = "by tokens"
) -> FlowSchedule:
    """Reads a diffusers scheduler_config.json. `mu` is that of a dynamic shift, or how its pipeline makes it.

    Raises:
        StartError: the scheduler is another one, or has options that are not built.
    """
    name = config.get("_class_name", _CLASS_NAME)
    if name != _CLASS_NAME:
        raise StartError(f"the checkpoint's scheduler is {name}, but only {_CLASS_NAME} is supported")
    used = [option for option in _UNSUPPORTED if config.get(option)]
    if used:
        raise StartError(f"the checkpoint's scheduler config sets {', '.join(used)}, which is not supported")
    steps = config.get("num_train_timesteps", TRAIN_TIMESTEPS)
    if steps != TRAIN_TIMESTEPS:
        raise StartError(
            f"num_train_timesteps is {steps} in the scheduler config, but only 1000 is supported"
        )
    return FlowSchedule(_shift(config, mu), _terminal(config), grid)


def _dynamic_shift(config: Mapping[str, Any]) -> DynamicShift:
    """Reads the keys of a scheduler_config.json. Raises StartError for values that give no schedule."""
    numbers = {
        name: _number(config, name, getattr(DynamicShift, name))
        for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    }
    if numbers["base_image_seq_len"] == numbers["max_image_seq_len"]:
        raise StartError(
            "base_image_seq_len and max_image_seq_len are both"
            f" {numbers['base_image_seq_len']:g} in the scheduler config, but must differ"
        )
    dynamic = DynamicShift(**numbers, time_shift_type=_time_shift_type(config))
    smallest = dynamic.shift(image_tokens=1, num_inference_steps=1)
    if smallest <= 0:
        raise StartError(f"the scheduler config shifts small pictures by {smallest:g}, below 0")
    return dynamic


def _time_shift_type(config: Mapping[str, Any]) -> str:
    kind = config.get("time_shift_type", DynamicShift.time_shift_type)
    if kind not in ("exponential", "linear"):
        raise StartError(
            f"time_shift_type is {kind!r} in the scheduler config, but must be 'exponential' or 'linear'"
        )
    return str(kind)


def _shift(config: Mapping[str, Any], mu: MuName | float) -> Shift:
    if config.get("use_dynamic_shifting"):
        if isinstance(mu, float):
            return FixedMu(mu, _time_shift_type(config))
        return _dynamic_shift(config) if mu == "by tokens" else EmpiricalShift(_time_shift_type(config))
    shift = _number(config, "shift", 1.0)
    if shift <= 0:
        raise StartError(f"shift is {shift:g} in the scheduler config, but must be a positive number")
    return shift


def _terminal(config: Mapping[str, Any]) -> float | None:
    if not config.get("shift_terminal"):
        return None
    terminal = _number(config, "shift_terminal", 0.0)
    if not 0 < terminal < 1:
        raise StartError(
            f"shift_terminal is {terminal:g} in the scheduler config, but must be between 0 and 1"
        )
    return terminal


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    number = config.get(name, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise StartError(f"{name} is {number!r} in the scheduler config, but must be a number")
    return float(number)
