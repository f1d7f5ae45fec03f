"""The sampler loop's mathematics, on velocities that can be integrated by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.formulas import classifier_free_guidance
from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.guidance.schedules import (
    ConstantGuidance,
    CosineGuidance,
    IntervalGuidance,
    LinearGuidance,
)
from triptych_coordinator.sampling.loop import sample
from triptych_coordinator.sampling.noise import NoiseStream, randn
from triptych_coordinator.sampling.sigmas import FlowSchedule
from triptych_coordinator.sampling.solvers.runge_kutta import EulerSolver
from triptych_coordinator.sampling.solvers.solution import Latents, Reached, Solution

PROMPT, NEGATIVE = b"\x03", b"\x01"


class AnalyticDenoiser:
    """v = x log(2) k, whose solution is x 2^(-k) from sigma 1 to 0; a digest is the byte k."""

    def __init__(self) -> None:
        self.branches: list[int] = []
        self.guidance: list[float | None] = []

    async def predict(
        self,
        latents: Latents,
        sigma: np.float32,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        self.branches.append(len(branches))
        self.guidance.append(guidance)
        rates = np.array([[digest[0] for digest in branch.digests] for branch in branches], np.float32)
        return rates[..., None, None, None] * np.float32(np.log(2)) * latents


async def sampled(
    latents: Latents, scales: Sequence[float], denoiser: AnalyticDenoiser | None = None
) -> Latents:
    guided = Guided([PROMPT] * len(latents), [NEGATIVE] * len(latents), scales)
    return await last_latents(denoiser or AnalyticDenoiser(), latents, guided)


async def last_latents(denoiser: AnalyticDenoiser, latents: Latents, guided: Guided) -> Latents:
    sigmas = FlowSchedule(3.0).sigmas(len(guided.scales), image_tokens=1)
    solution = EulerSolver().solve(latents, sigmas, NoiseStream(latents.shape[1:], [0] * len(latents)))
    return [step.latents async for step in sample(denoiser, solution, guided)][-1]


def noise(*seeds: int) -> Latents:
    return np.stack([randn((4, 2, 2), seed) for seed in seeds])


async def test_euler_is_of_first_order() -> None:
    exact = noise(1) / 8
    errors = [np.abs(await sampled(noise(1), [1.0] * n) - exact).max() for n in (25, 50, 100)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.3)


async def test_the_loop_tells_each_step_and_the_level_it_reached() -> None:
    sigmas = FlowSchedule(3.0).sigmas(4, image_tokens=1)
    guided = Guided([PROMPT], [NEGATIVE], [1.0] * 4)
    solution = EulerSolver().solve(noise(1), sigmas, NoiseStream((4, 2, 2), [1]))
    told = [(step.number, step.sigma) async for step in sample(AnalyticDenoiser(), solution, guided)]
    assert [step for step, _ in told] == [1, 2, 3, 4]
    assert [sigma for _, sigma in told] == sigmas[1:].tolist()
    assert told[-1][1] == 0


async def test_a_step_tells_the_clean_latents_that_its_velocity_points_to() -> None:
    start, sigmas = noise(1), FlowSchedule(3.0).sigmas(4, image_tokens=1)
    solution = EulerSolver().solve(start, sigmas, NoiseStream((4, 2, 2), [1]))
    steps = [step async for step in sample(AnalyticDenoiser(), solution, Guided([PROMPT], [], [1.0] * 4))]
    velocity = np.float32(3) * np.float32(np.log(2)) * start
    assert np.array_equal(steps[0].clean, start - sigmas[0] * velocity)
    assert np.allclose(steps[-1].clean, steps[-1].latents, atol=1e-6)


async def test_the_solver_goes_on_from_edited_latents() -> None:
    sigmas = FlowSchedule(3.0).sigmas(4, image_tokens=1)
    guided = Guided([PROMPT], [], [1.0] * 4)

    def solution(start: Latents) -> Solution:
        return EulerSolver().solve(start, sigmas, NoiseStream((4, 2, 2), [1]))

    def doubled(reached: Reached) -> Latents:
        return 2 * reached.latents

    plain = [s.latents async for s in sample(AnalyticDenoiser(), solution(noise(1)), guided)]
    edited = [s.latents async for s in sample(AnalyticDenoiser(), solution(noise(1)), guided, doubled)]
    assert all(np.allclose(edited[i], 2 ** (i + 1) * plain[i], rtol=1e-5) for i in range(4))


async def test_a_late_start_is_guided_as_the_steps_it_begins_with() -> None:
    denoiser, sigmas = AnalyticDenoiser(), FlowSchedule(3.0).sigmas(4, image_tokens=1)
    guided = Guided([PROMPT], [NEGATIVE], [1.0, 1.0, 4.0, 1.0])
    solution = EulerSolver().solve(noise(1), sigmas[2:], NoiseStream((4, 2, 2), [1]))
    numbers = [step.number async for step in sample(denoiser, solution, guided, first_step=2)]
    assert (numbers, denoiser.branches) == ([3, 4], [2, 1])


async def test_sigmas_fall_from_one_and_the_last_is_shifted_twice() -> None:
    assert FlowSchedule(3.0).sigmas(4, image_tokens=1) == pytest.approx(
        [1, 0.85769, 0.60215, 0.0089286, 0], abs=1e-5
    )


async def test_cfg_at_one_is_the_conditional_branch() -> None:
    denoiser = AnalyticDenoiser()
    without = await sampled(noise(1), [1.0] * 5, denoiser)
    assert denoiser.branches == [1] * 5
    with_negative = classifier_free_guidance(noise(2), noise(1), 1.0)
    assert np.allclose(with_negative, noise(1), atol=1e-6)
    unguided = Guided([PROMPT], [], [1.0] * 5)
    assert np.array_equal(await last_latents(AnalyticDenoiser(), noise(1), unguided), without)


async def test_guidance_goes_from_the_negative_branch_through_the_prompts() -> None:
    # rates 1 and 3 at scale 2 make rate 5
    guided = await sampled(noise(1), [2.0] * 200)
    assert np.allclose(guided, noise(1) / 32, atol=0.03)


async def test_an_interval_over_all_steps_is_constant_guidance_to_the_bit() -> None:
    interval = IntervalGuidance(0.0, 1.0).over(7, 4.5)
    assert interval == ConstantGuidance().over(7, 4.5)
    assert np.array_equal(await sampled(noise(1), interval), await sampled(noise(1), [4.5] * 7))


async def test_steps_outside_the_interval_do_not_compute_the_negative_branch() -> None:
    denoiser = AnalyticDenoiser()
    scales = IntervalGuidance(0.2, 0.7).over(10, 4.0)
    await sampled(noise(1), scales, denoiser)
    assert denoiser.branches == [1, 1, 2, 2, 2, 2, 2, 1, 1, 1]


async def test_an_embedded_scale_goes_to_the_model_and_needs_one_branch() -> None:
    denoiser = AnalyticDenoiser()
    scales = IntervalGuidance(0.25, 1.0).over(4, 3.5)
    embedded = await last_latents(denoiser, noise(1), Guided([PROMPT], [], [1.0] * 4, input_scales=scales))
    assert denoiser.branches == [1] * 4
    assert denoiser.guidance == [1.0, 3.5, 3.5, 3.5]
    # this model ignores the scale, so nothing else may have used it
    assert np.array_equal(embedded, await sampled(noise(1), [1.0] * 4))


async def test_branches_are_joined_beside_an_embedded_scale() -> None:
    denoiser = AnalyticDenoiser()
    both = Guided([PROMPT], [NEGATIVE], [4.0] * 4, input_scales=[3.5] * 4)
    guided = await last_latents(denoiser, noise(1), both)
    assert denoiser.branches == [2] * 4
    assert denoiser.guidance == [3.5] * 4
    assert np.array_equal(guided, await sampled(noise(1), [4.0] * 4))


async def test_a_model_without_embedded_guidance_is_sent_no_scale() -> None:
    denoiser = AnalyticDenoiser()
    await sampled(noise(1), [4.0, 1.0], denoiser)
    assert denoiser.guidance == [None, None]


async def test_a_picture_of_a_batch_is_the_one_its_seed_gives_alone() -> None:
    batch = await sampled(noise(1, 2, 3), [4.0] * 6)
    for k, seed in enumerate((1, 2, 3)):
        assert np.array_equal(batch[k : k + 1], await sampled(noise(seed), [4.0] * 6))


def test_schedules_start_at_the_scale_and_end_where_they_say() -> None:
    linear = LinearGuidance(1.0).over(5, 9.0)
    cosine = CosineGuidance(1.0).over(5, 9.0)
    assert linear == [9.0, 7.0, 5.0, 3.0, 1.0]
    assert cosine == pytest.approx([9.0, 5 + 2 * 2**1.5 / 2, 5.0, 5 - 2 * 2**1.5 / 2, 1.0])
    assert cosine[-1] == 1.0


@pytest.mark.parametrize("kind", [LinearGuidance, CosineGuidance])
def test_a_schedule_of_one_step_is_the_scale(kind: type[LinearGuidance | CosineGuidance]) -> None:
    assert kind(1.0).over(1, 9.0) == [9.0]
