"""The noise levels of a generation: the checkpoint's own schedule, from scheduler/scheduler_config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.errors import StartError

_CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
_TRAIN_TIMESTEPS = 1000  # the transformers take the timestep 1000 sigma
_UNSUPPORTED = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


@dataclass(frozen=True)
class FlowSchedule:
    """The static-shift schedule of flow matching, sigma' = s sigma / (1 + (s - 1) sigma)."""

    shift: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FlowSchedule":
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
        shift = config.get("shift", 1.0)
        if not (isinstance(shift, int | float) and 0 < shift < float("inf")):
            raise StartError(f"shift is {shift} in the scheduler config, but must be a positive number")
        return cls(float(shift))

    def sigmas(self, num_inference_steps: int) -> NDArray[np.float32]:
        """The levels that the solver visits, from 1 down to 0.

        As diffusers' FlowMatchEulerDiscreteScheduler.set_timesteps: evenly spaced between the largest and the
        smallest level of training, which are already shifted, then shifted again. So the smallest is
        shifted twice: a quirk that checkpoints are used with, hence kept.

        Returns:
            float32, [num_inference_steps + 1].
        """
        largest, smallest = (
            _shifted(np.float32(t / _TRAIN_TIMESTEPS), np.float32(self.shift)) for t in (1000.0, 1.0)
        )
        levels = np.linspace(
            float(largest) * _TRAIN_TIMESTEPS, float(smallest) * _TRAIN_TIMESTEPS, num_inference_steps
        )
        levels = self.shifted(levels / _TRAIN_TIMESTEPS)
        return np.append(levels, 0.0).astype(np.float32)

    def shifted(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels of an unshifted schedule, each moved by the checkpoint's shift."""
        moved: NDArray[np.float64] = _shifted(levels, self.shift)
        return moved


def _shifted(sigma: Any, shift: Any) -> Any:
    return shift * sigma / (1 + (shift - 1) * sigma)
