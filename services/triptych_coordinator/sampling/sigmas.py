"""The noise levels of a generation: the checkpoint's own schedule, from scheduler/scheduler_config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import StartError

_CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
_TRAIN_TIMESTEPS = 1000  # the transformers take the timestep 1000 sigma
_UNSUPPORTED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


class Grid(StrEnum):
    """The levels of n steps before they are shifted."""

    TRAINING = "evenly from the largest to the smallest level of training"
    EVEN = "1, (n - 1) / n, ..., 1 / n"
    EVEN_BY_TORCH = "the same, rounded as torch.linspace rounds"


@dataclass(frozen=True)
class DynamicShift:
    """A shift that grows with the picture: mu is a straight line over the number of its tokens.

    Source: calculate_shift in diffusers' FluxPipeline, with the names of scheduler_config.json.
    """

    base_image_seq_len: float = 256
    max_image_seq_len: float = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    time_shift_type: str = "exponential"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "DynamicShift":
        """Reads the keys of a scheduler_config.json. Raises StartError for values that give no schedule."""
        numbers = {
            name: _number(config, name, getattr(cls, name))
            for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        }
        kind = config.get("time_shift_type", cls.time_shift_type)
        if kind not in ("exponential", "linear"):
            raise StartError(
                f"time_shift_type is {kind!r} in the scheduler config, but must be 'exponential' or 'linear'"
            )
        if numbers["base_image_seq_len"] == numbers["max_image_seq_len"]:
            raise StartError(
                "base_image_seq_len and max_image_seq_len are both"
                f" {numbers['base_image_seq_len']:g} in the scheduler config, but must differ"
            )
        dynamic = cls(**numbers, time_shift_type=kind)
        if dynamic.shift(1) <= 0:
            raise StartError(f"the scheduler config shifts small pictures by {dynamic.shift(1):g}, below 0")
        return dynamic

    def shift(self, image_tokens: int) -> float:
        """The shift of a picture that is `image_tokens` tokens: e^mu, or mu if linear."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = image_tokens * slope + (self.base_shift - slope * self.base_image_seq_len)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


@dataclass(frozen=True)
class FlowSchedule:
    """The shifted schedule of flow matching, sigma' = s sigma / (1 + (s - 1) sigma).

    shift: s, or what gives it for a picture's size.
    terminal: the last level before 0, to which the shifted ones are stretched; None for no stretching.
    grid: the levels before they are shifted.
    """

    shift: float | DynamicShift = 1.0
    terminal: float | None = None
    grid: Grid = Grid.TRAINING

    @classmethod
    def from_config(cls, config: Mapping[str, Any], grid: Grid = Grid.TRAINING) -> "FlowSchedule":
        """Reads a diffusers scheduler_config.json.

        Raises:
            StartError: the scheduler is another one, or has options that are not built.
        """
        name = config.get("_class_name", _CLASS_NAME)
        if name != _CLASS_NAME:
            raise StartError(f"the checkpoint's scheduler is {name}, but only {_CLASS_NAME} is supported")
        used = [option for option in _UNSUPPORTED if config.get(option)]
        if used:
            raise StartError(
                f"the checkpoint's scheduler config sets {', '.join(used)}, which is not supported"
            )
        steps = config.get("num_train_timesteps", _TRAIN_TIMESTEPS)
        if steps != _TRAIN_TIMESTEPS:
            raise StartError(
                f"num_train_timesteps is {steps} in the scheduler config, but only 1000 is supported"
            )
        return cls(_shift(config), _terminal(config), grid)

    def sigmas(self, num_inference_steps: int, image_tokens: int) -> NDArray[np.float32]:
        """The levels that the solver visits, from 1 down to 0, for a picture of `image_tokens` tokens.

        As diffusers' FlowMatchEulerDiscreteScheduler.set_timesteps: the grid, shifted, then stretched. The
        levels of training are shifted already where the shift is a number, so the smallest of them is
        shifted twice: a quirk that checkpoints are used with, hence kept.

        Returns:
            float32, [num_inference_steps + 1].
        """
        return self.shifted(self._grid(num_inference_steps), image_tokens)

    def shifted(self, levels: NDArray[Any], image_tokens: int) -> NDArray[np.float32]:
        """Levels of an unshifted schedule, [n] and above 0, shifted and stretched, then 0: [n + 1]."""
        if isinstance(self.shift, DynamicShift):
            shift = self.shift.shift(image_tokens)
            levels = shift / (shift + (1 / levels - 1))  # the same formula, rounded as diffusers does
        else:
            levels = _shifted(levels, self.shift)
        if self.terminal is not None and levels[-1] < 1:
            levels = 1 - (1 - levels) / ((1 - levels[-1]) / (1 - self.terminal))
        return np.append(levels, 0.0).astype(np.float32)

    def _grid(self, num_steps: int) -> NDArray[Any]:
        if self.grid is Grid.EVEN:
            return np.linspace(1, 1 / num_steps, num_steps).astype(np.float32)
        if self.grid is Grid.EVEN_BY_TORCH:
            return _even_by_torch(num_steps)
        shift = 1.0 if isinstance(self.shift, DynamicShift) else self.shift
        largest, smallest = (
            float(_shifted(np.float32(t / _TRAIN_TIMESTEPS), np.float32(shift))) for t in (1000.0, 1.0)
        )
        return (
            np.linspace(largest * _TRAIN_TIMESTEPS, smallest * _TRAIN_TIMESTEPS, num_steps) / _TRAIN_TIMESTEPS
        )


def _even_by_torch(num_steps: int) -> NDArray[np.float32]:
    """torch.linspace(1, 1 / n, n) to the bit: float32, from both ends to the middle by fused multiply-add."""
    last, intervals = np.float32(1 / num_steps), max(num_steps - 1, 1)
    step = float((last - np.float32(1)) / np.float32(intervals))
    i = np.arange(num_steps)
    from_first, from_last = 1 + step * i, float(last) - step * (num_steps - 1 - i)
    return np.where(i < num_steps // 2, from_first, from_last).astype(np.float32)


def _shift(config: Mapping[str, Any]) -> float | DynamicShift:
    if config.get("use_dynamic_shifting"):
        return DynamicShift.from_config(config)
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


def _shifted(sigma: Any, shift: Any) -> Any:
    return shift * sigma / (1 + (shift - 1) * sigma)
