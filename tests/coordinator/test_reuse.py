"""Reuse between steps: what it saves, where it is exact, and that a batch changes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych_coordinator.guidance import Branch, Guided
from triptych_coordinator.noise import NoiseStream, randn
from triptych_coordinator.reuse import reusing
from triptych_coordinator.sampler import sample
from triptych_coordinator.sampling_options import Choice
from triptych_coordinator.sigmas import FlowSchedule
from triptych_coordinator.solvers import SOLVERS, Latents

PROMPT, NEGATIVE = b"\x03", b"\x01"
GUIDANCE, EXTRAPOLATION = "guidance", "extrapolation"


class ParallelBranches:
    """v = x + digest (1 + slope sigma): the branches' difference is as far from constant as `slope` says."""

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = np.float32(slope)
        self.branches: list[int] = []

    async def predict(
        self, latents: Latents, sigma: Any, branches: Sequence[Branch], guidance: float | None
    ) -> NDArray[np.float32]:
        self.branches.append(len(branches))
        digests = np.array([[digest[0] for digest in branch.digests] for branch in branches], np.float32)
        return latents + digests[..., None, None, None] * (1 + self.slope * sigma)


class StraightVelocities:
    """v = digest sigma, whatever the latents."""

    def __init__(self) -> None:
        self.branches: list[int] = []

    async def predict(
        self, latents: Latents, sigma: Any, branches: Sequence[Branch], guidance: float | None
    ) -> NDArray[np.float32]:
        self.branches.append(len(branches))
        digests = np.array([[digest[0] for digest in branch.digests] for branch in branches], np.float32)
        return digests[..., None, None, None] * sigma * np.ones_like(latents)


def noise(*seeds: int) -> Latents:
    return np.stack([randn((4, 2, 2), seed) for seed in seeds])


async def sampled(
    denoiser: Any, reuse: Choice, latents: Latents, scales: Sequence[float], solver: str = "euler"
) -> tuple[Latents, int]:
    guided = Guided([PROMPT] * len(latents), [NEGATIVE] * len(latents), scales)
    sigmas = FlowSchedule(3.0).sigmas(len(scales), 1)
    solution = SOLVERS[solver](latents, sigmas, NoiseStream((4, 2, 2), range(len(latents))))
    velocities = reusing(denoiser, Branch(guided.positive), reuse)
    last = [reached.latents async for _, reached in sample(velocities, solution, guided)][-1]
    return last, velocities.reused_rows


async def test_the_negative_branch_is_computed_at_every_kth_evaluation() -> None:
    denoiser = ParallelBranches(0.5)
    _, saved = await sampled(denoiser, Choice(GUIDANCE, {"every": 3}), noise(1, 2), [4.0] * 7)
    assert denoiser.branches == [2, 1, 1, 2, 1, 1, 2]
    assert saved == 4 * 2


async def test_a_difference_that_does_not_change_is_reused_without_loss() -> None:
    fresh, _ = await sampled(ParallelBranches(), Choice("none"), noise(1), [4.0] * 6)
    reused, saved = await sampled(ParallelBranches(), Choice(GUIDANCE, {"every": 2}), noise(1), [4.0] * 6)
    assert saved == 3
    assert np.allclose(reused, fresh, rtol=1e-5)


async def test_where_guidance_is_off_nothing_is_reused() -> None:
    denoiser = ParallelBranches()
    scales = [1.0, 4.0, 4.0, 1.0, 4.0, 1.0]
    _, saved = await sampled(denoiser, Choice(GUIDANCE, {"every": 2}), noise(1), scales)
    assert denoiser.branches == [1, 2, 1, 1, 2, 1]
    assert saved == 1


@pytest.mark.parametrize(("every", "calls"), [(2, 5), (3, 4), (20, 2)])
async def test_after_two_evaluations_every_kth_is_computed(every: int, calls: int) -> None:
    denoiser = StraightVelocities()
    _, saved = await sampled(denoiser, Choice(EXTRAPOLATION, {"every": every}), noise(1), [4.0] * 8)
    assert len(denoiser.branches) == calls
    assert saved == 2 * (8 - calls)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "dpmpp_2m", "unipc"])
async def test_velocities_on_a_straight_line_are_extrapolated_without_loss(solver: str) -> None:
    fresh, _ = await sampled(StraightVelocities(), Choice("none"), noise(1), [4.0] * 8, solver)
    choice = Choice(EXTRAPOLATION, {"every": 3})
    reused, saved = await sampled(StraightVelocities(), choice, noise(1), [4.0] * 8, solver)
    assert saved > 0
    assert np.allclose(reused, fresh, atol=1e-4)


async def test_other_branches_start_the_line_anew() -> None:
    denoiser = StraightVelocities()
    scales = [4.0, 4.0, 4.0, 1.0, 1.0, 1.0]
    fresh, _ = await sampled(StraightVelocities(), Choice("none"), noise(1), scales)
    reused, saved = await sampled(denoiser, Choice(EXTRAPOLATION, {"every": 2}), noise(1), scales)
    assert denoiser.branches == [2, 2, 1, 1]
    assert saved == 2 + 1
    assert np.allclose(reused, fresh, atol=1e-4)


@pytest.mark.parametrize("name", [GUIDANCE, EXTRAPOLATION])
async def test_an_image_of_a_batch_is_to_the_bit_what_it_is_alone(name: str) -> None:
    choice = Choice(name, {"every": 2})
    batch, _ = await sampled(ParallelBranches(0.5), choice, noise(1, 2), [4.0] * 6)
    for k, seed in enumerate((1, 2)):
        alone, _ = await sampled(ParallelBranches(0.5), choice, noise(seed), [4.0] * 6)
        assert np.array_equal(batch[k], alone[0])
