"""The noise levels of a generation: the checkpoint's own schedule."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

TRAIN_TIMESTEPS = 1000  # the transformers take the timestep 1000 sigma


class Grid(StrEnum):
    """The levels of n steps before they are shifted."""

    TRAINING = "training"
    """Evenly from the largest to the smallest level of training."""
    EVEN = "even"
    """1, (n - 1) / n, ..., 1 / n."""
    EVEN_BY_TORCH = "even by torch"
    """The same, rounded as torch.linspace rounds."""


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

    def shift(self, image_tokens: int, num_inference_steps: int) -> float:
        """The shift of a picture that is `image_tokens` tokens, at any steps: e^mu, or mu if linear."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = image_tokens * slope + (self.base_shift - slope * self.base_image_seq_len)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


@dataclass(frozen=True)
class EmpiricalShift:
    """A shift that grows with the picture and falls with the number of steps.

    Source: compute_empirical_mu in diffusers' Flux2KleinPipeline: lines over the tokens that were fitted for
    10 and for 200 steps, and between them a line over the steps; for large pictures that for 200 alone.
    """

    time_shift_type: str = "exponential"

    def shift(self, image_tokens: int, num_inference_steps: int) -> float:
        """The shift of a picture that is `image_tokens` tokens: e^mu, or mu if linear."""
        mu = self._mu(image_tokens, num_inference_steps)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu

    def _mu(self, image_tokens: int, num_inference_steps: int) -> float:
        for_200_steps = 0.00016927 * image_tokens + 0.45666666
        if image_tokens > 4300:
            return for_200_steps
        for_10_steps = 8.73809524e-05 * image_tokens + 1.89833333
        slope = (for_200_steps - for_10_steps) / 190.0
        return slope * num_inference_steps + (for_200_steps - 200.0 * slope)


@dataclass(frozen=True)
class FixedMu:
    """A shift that is the same for every picture, as a mu: e^mu, or mu if linear."""

    mu: float
    time_shift_type: str = "exponential"

    def shift(self, image_tokens: int, num_inference_steps: int) -> float:
        """The shift of any picture."""
        return math.exp(self.mu) if self.time_shift_type == "exponential" else self.mu


Shift: TypeAlias = float | DynamicShift | EmpiricalShift | FixedMu
"""s, or what gives it for a picture's tokens and a number of steps."""


@dataclass(frozen=True)
class FlowSchedule:
    """The shifted schedule of flow matching, sigma' = s sigma / (1 + (s - 1) sigma).

    shift: s, or what gives it for a picture's size and the number of steps.
    terminal: the last level before 0, to which the shifted ones are stretched; None for no stretching.
    grid: the levels before they are shifted.
    distilled: those of a model that was distilled to just so many steps, instead of the grid's; () for none.
    """

    shift: Shift = 1.0
    terminal: float | None = None
    grid: Grid = Grid.TRAINING
    distilled: tuple[float, ...] = ()

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
        if not isinstance(self.shift, float | int):
            shift = self.shift.shift(image_tokens, len(levels))
            levels = shift / (shift + (1 / levels - 1))  # the same formula, rounded as diffusers does
        else:
            levels = _shifted(levels, self.shift)
        if self.terminal is not None and levels[-1] < 1:
            levels = 1 - (1 - levels) / ((1 - levels[-1]) / (1 - self.terminal))
        return np.append(levels, 0.0).astype(np.float32)

    def _grid(self, num_steps: int) -> NDArray[Any]:
        if num_steps == len(self.distilled):
            return np.array(self.distilled, np.float32)
        if self.grid is Grid.EVEN:
            return np.linspace(1, 1 / num_steps, num_steps).astype(np.float32)
        if self.grid is Grid.EVEN_BY_TORCH:
            return _even_by_torch(num_steps)
        shift = self.shift if isinstance(self.shift, float | int) else 1.0
        largest, smallest = (
            float(_shifted(np.float32(t / TRAIN_TIMESTEPS), np.float32(shift))) for t in (1000.0, 1.0)
        )
        return np.linspace(largest * TRAIN_TIMESTEPS, smallest * TRAIN_TIMESTEPS, num_steps) / TRAIN_TIMESTEPS


def _even_by_torch(num_steps: int) -> NDArray[np.float32]:
    """torch.linspace(1, 1 / n, n) to the bit: float32, from both ends to the middle by fused multiply-add."""
    last, intervals = np.float32(1 / num_steps), max(num_steps - 1, 1)
    step = float((last - np.float32(1)) / np.float32(intervals))
    i = np.arange(num_steps)
    from_first, from_last = 1 + step * i, float(last) - step * (num_steps - 1 - i)
    return np.where(i < num_steps // 2, from_first, from_last).astype(np.float32)


def _shifted(sigma: Any, shift: Any) -> Any:
    return shift * sigma / (1 + (shift - 1) * sigma)
