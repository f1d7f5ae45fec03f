"""Solvers and sigma schedules against diffusers' schedulers, on their own grids, each along its own path."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from tests.coordinator.sampling.flows import SHAPE, Flow, gaussian, solved, waves
from triptych_coordinator.sampling.sigma_schedules import SIGMA_SCHEDULES
from triptych_coordinator.sampling.sigmas import DynamicShift, FlowSchedule, Grid
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.scheduler_config import flow_schedule

SEEDS = (3, 2**32 - 1)
FLOW_GRID: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}
REFERENCES: dict[str, Callable[[], Any]] = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **FLOW_GRID),
    "unipc": lambda: UniPCMultistepScheduler(solver_type="bh2", **FLOW_GRID),
    "stochastic_euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
    "lcm": lambda: FlowMatchLCMScheduler(shift=3.0),
}
NOISY = ("stochastic_euler", "lcm")


def generators() -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]


def reference(
    scheduler: Any, flow: Flow, sources: list[torch.Generator], noisy: bool
) -> tuple[Latents, Latents]:
    """The starting latents and the scheduler's last ones."""
    latents = torch.cat([torch.randn((1, *SHAPE), generator=source) for source in sources])
    start = latents.numpy().copy()
    scheduler.set_begin_index(0)
    options = {"generator": sources} if noisy else {}
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.numpy(), strict=False):
        velocity = torch.from_numpy(flow(latents.numpy(), sigma))
        latents = scheduler.step(velocity, timestep, latents, **options).prev_sample
    return start, latents.numpy()


@pytest.mark.parametrize("flow", [gaussian, waves])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 28, 50])
@pytest.mark.parametrize("solver", REFERENCES)
def test_a_solver_goes_where_diffusers_goes(solver: str, num_steps: int, flow: Flow) -> None:
    scheduler = REFERENCES[solver]()
    scheduler.set_timesteps(num_steps)
    start, expected = reference(scheduler, flow, generators(), solver in NOISY)
    sigmas = np.append(np.unique(scheduler.sigmas.numpy())[:0:-1], np.float32(0))
    assert len(sigmas) == num_steps + 1
    latents, _ = solved(solver, flow, start, sigmas, SEEDS)
    assert np.abs(latents - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 28, 50])
@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_a_sigma_schedule_is_diffusers_own(name: str, num_steps: int, shift: float) -> None:
    if name == "beta":
        pytest.importorskip("scipy")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, **{f"use_{name}_sigmas": True})
    scheduler.set_timesteps(num_steps)
    sigmas = SIGMA_SCHEDULES[name]().levels(FlowSchedule(shift), num_steps, 1)
    assert sigmas == pytest.approx(scheduler.sigmas.numpy(), rel=1e-5)


DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


@pytest.mark.parametrize("terminal", [{}, {"shift_terminal": 0.02}], ids=["as it is", "stretched"])
@pytest.mark.parametrize("image_tokens", [64, 1024, 4096])
@pytest.mark.parametrize("num_steps", [2, 4, 28])  # of one step, stretched, diffusers makes a NaN
@pytest.mark.parametrize("name", ["checkpoint", "linear", "karras", "exponential", "beta"])
def test_a_sigma_schedule_follows_a_shift_that_grows_with_the_picture(
    name: str, num_steps: int, image_tokens: int, terminal: dict[str, float]
) -> None:
    own = flow_schedule(DYNAMIC | terminal, Grid.EVEN)
    assert isinstance(own.shift, DynamicShift)
    used = {f"use_{name}_sigmas": True} if name in ("karras", "exponential", "beta") else {}
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC, **terminal, **used)
    even = np.linspace(1, 1 / num_steps, num_steps).tolist()
    scheduler.set_timesteps(sigmas=even, mu=math.log(own.shift.shift(image_tokens, num_inference_steps=1)))
    sigmas = SIGMA_SCHEDULES[name]().levels(own, num_steps, image_tokens)
    assert sigmas == pytest.approx(scheduler.sigmas.numpy(), rel=1e-5)


@pytest.mark.parametrize("num_steps", [1, 4, 28])
def test_linear_levels_are_what_diffusers_makes_of_even_ones(num_steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps).tolist())
    sigmas = SIGMA_SCHEDULES["linear"]().levels(FlowSchedule(3.0), num_steps, 1)
    assert sigmas == pytest.approx(scheduler.sigmas.numpy(), rel=1e-6)


@pytest.mark.parametrize("num_steps", [4, 28])
def test_linear_levels_are_unipc_s_grid_but_for_a_thousandth_before_the_shift(num_steps: int) -> None:
    scheduler = REFERENCES["unipc"]()
    scheduler.set_timesteps(num_steps)
    sigmas = SIGMA_SCHEDULES["linear"]().levels(FlowSchedule(3.0), num_steps, 1)
    assert sigmas == pytest.approx(scheduler.sigmas.numpy(), abs=3e-3)
