"""The noise levels and Euler's step against diffusers' FlowMatchEulerDiscreteScheduler, to the bit."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from triptych_coordinator.noise import NoiseStream
from triptych_coordinator.sigmas import FlowSchedule
from triptych_coordinator.solvers import euler


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.7, 3.0, 6.3])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 4, 7, 28, 50, 200])
def test_the_sigmas_are_those_of_diffusers(shift: float, num_inference_steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_inference_steps)
    sigmas = FlowSchedule.from_config(dict(scheduler.config)).sigmas(num_inference_steps)
    assert sigmas.dtype == np.float32
    assert np.array_equal(sigmas, scheduler.sigmas.numpy())


def test_euler_steps_are_those_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, 6, 5), np.float32)
    reference, sigmas = torch.from_numpy(latents), FlowSchedule(3.0).sigmas(5)
    solution = euler(latents, sigmas, NoiseStream((4, 6, 5), [0, 1]))
    next(solution)
    for timestep in scheduler.timesteps:
        velocity = rng.standard_normal(latents.shape, np.float32)
        reached = solution.send(velocity)
        reference = scheduler.step(torch.from_numpy(velocity), timestep, reference).prev_sample
        assert np.array_equal(reached.latents, reference.numpy())
        if timestep != scheduler.timesteps[-1]:
            solution.send(reached.latents)
