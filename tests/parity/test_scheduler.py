"""The noise levels and Euler's step against diffusers' pipelines and FlowMatchEulerDiscreteScheduler."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

from triptych_coordinator.sampling.noise import NoiseStream
from triptych_coordinator.sampling.sigmas import FlowSchedule, Grid
from triptych_coordinator.sampling.solvers.runge_kutta import EulerSolver
from triptych_coordinator.scheduler_config import flow_schedule

reference_library: Any = diffusers  # most of it has no types

STEPS = pytest.mark.parametrize("num_inference_steps", [1, 2, 4, 7, 8, 28, 50, 200])
SHIFT = pytest.mark.parametrize("shift", [0.5, 1.0, 1.7, 3.0, 6.3])
IMAGE_TOKENS = (1, 16, 24, 1024, 4096, 9216)


def scheduler_of(**config: Any) -> Any:
    return reference_library.FlowMatchEulerDiscreteScheduler(**config)


def mu(scheduler: Any, image_tokens: int) -> float:
    """As every pipeline computes it."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return float(calculate_shift(image_tokens, *(scheduler.config[name] for name in names)))


def assert_equal(ours: np.ndarray, scheduler: Any) -> None:
    assert ours.dtype == np.float32
    assert np.array_equal(ours, scheduler.sigmas.numpy())


@SHIFT
@STEPS
def test_the_sigmas_of_training_are_those_of_diffusers(shift: float, num_inference_steps: int) -> None:
    scheduler = scheduler_of(shift=shift)
    scheduler.set_timesteps(num_inference_steps)
    schedule = flow_schedule(dict(scheduler.config))
    assert_equal(schedule.sigmas(num_inference_steps, image_tokens=1), scheduler)


@SHIFT
@STEPS
def test_even_sigmas_are_those_of_diffusers(shift: float, num_inference_steps: int) -> None:
    scheduler = scheduler_of(shift=shift)
    schedule = flow_schedule(dict(scheduler.config), Grid.EVEN)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_inference_steps, num_inference_steps))
    assert_equal(schedule.sigmas(num_inference_steps, image_tokens=1), scheduler)


@SHIFT
def test_even_sigmas_by_torch_are_those_of_diffusers(shift: float) -> None:
    scheduler = scheduler_of(shift=shift)
    schedule = flow_schedule(dict(scheduler.config), Grid.EVEN_BY_TORCH)
    for num_inference_steps in range(1, 201):
        scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(num_inference_steps))
        assert_equal(schedule.sigmas(num_inference_steps, image_tokens=1), scheduler)


@pytest.mark.parametrize("grid", [Grid.TRAINING, Grid.EVEN])
@pytest.mark.parametrize("time_shift_type", ["exponential", "linear"])
@pytest.mark.parametrize(
    "config",
    [{}, {"base_image_seq_len": 16, "max_image_seq_len": 256, "base_shift": 0.2, "max_shift": 2.5}],
    ids=["FLUX's", "other"],
)
@STEPS
def test_dynamic_sigmas_are_those_of_diffusers(
    grid: Grid, time_shift_type: str, config: dict[str, float], num_inference_steps: int
) -> None:
    scheduler = scheduler_of(use_dynamic_shifting=True, shift=3.0, time_shift_type=time_shift_type, **config)
    schedule = flow_schedule(dict(scheduler.config), grid)
    even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    for image_tokens in IMAGE_TOKENS:
        sigmas = even if grid is Grid.EVEN else None
        scheduler.set_timesteps(num_inference_steps, sigmas=sigmas, mu=mu(scheduler, image_tokens))
        assert_equal(schedule.sigmas(num_inference_steps, image_tokens), scheduler)


@pytest.mark.parametrize("time_shift_type", ["exponential", "linear"])
@STEPS
def test_sigmas_by_tokens_and_steps_are_those_of_diffusers(
    time_shift_type: str, num_inference_steps: int
) -> None:
    scheduler = scheduler_of(use_dynamic_shifting=True, shift=3.0, time_shift_type=time_shift_type)
    schedule = flow_schedule(dict(scheduler.config), Grid.EVEN, "by tokens and steps")
    even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    for image_tokens in (*IMAGE_TOKENS, 4300, 4301):
        scheduler.set_timesteps(sigmas=even, mu=compute_empirical_mu(image_tokens, num_inference_steps))
        assert_equal(schedule.sigmas(num_inference_steps, image_tokens), scheduler)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("terminal", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("num_inference_steps", [2, 7, 28])
def test_stretched_sigmas_are_those_of_diffusers(
    dynamic: bool, terminal: float, num_inference_steps: int
) -> None:
    scheduler = scheduler_of(use_dynamic_shifting=dynamic, shift=3.0, shift_terminal=terminal)
    schedule = flow_schedule(dict(scheduler.config), Grid.EVEN)
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu(scheduler, 1024))
    assert_equal(schedule.sigmas(num_inference_steps, 1024), scheduler)


def test_euler_steps_are_those_of_diffusers() -> None:
    scheduler = scheduler_of(shift=3.0)
    scheduler.set_timesteps(5)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, 6, 5), np.float32)
    reference, sigmas = torch.from_numpy(latents), FlowSchedule(3.0).sigmas(5, image_tokens=6)
    solution = EulerSolver().solve(latents, sigmas, NoiseStream((4, 6, 5), [0, 1]))
    next(solution)
    for timestep in scheduler.timesteps:
        velocity = rng.standard_normal(latents.shape, np.float32)
        reached = solution.send(velocity)
        reference = scheduler.step(torch.from_numpy(velocity), timestep, reference).prev_sample
        assert np.array_equal(reached.latents, reference.numpy())
        if timestep != scheduler.timesteps[-1]:
            solution.send(reached.latents)
