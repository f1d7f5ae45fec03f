"""Reuse between steps: what it saves, where it is exact, and that a batch changes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.loop import sample
from triptych_coordinator.sampling.noise import NoiseStream, randn
from triptych_coordinator.sampling.reuse.branches import GuidanceReuse
from triptych_coordinator.sampling.reuse.extrapolation import (
    TaylorSeer,
    VelocityExtrapolation,
    WithTaylorSeer,
)
from triptych_coordinator.sampling.reuse.features import LayerReuse, MagCache, WithFeatureReuse, WithMagCache
from triptych_coordinator.sampling.reuse.input_changes import TeaCache, WithTeaCache
from triptych_coordinator.sampling.reuse.step_reuse import FeatureReuse, NoReuse, Reusing, StepReuse
from triptych_coordinator.sampling.sigmas import FlowSchedule
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.sampling.solvers.solution import Latents

PROMPT, NEGATIVE = b"\x03", b"\x01"


class ParallelBranches:
    """v = x + digest (1 + slope sigma): the branches' difference is as far from constant as `slope` says."""

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = np.float32(slope)
        self.branches: list[int] = []

    async def predict(
        self,
        latents: Latents,
        sigma: Any,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        self.branches.append(len(branches))
        digests = np.array([[digest[0] for digest in branch.digests] for branch in branches], np.float32)
        return latents + digests[..., None, None, None] * (1 + self.slope * sigma)


class StraightVelocities:
    """v = digest sigma, whatever the latents."""

    def __init__(self) -> None:
        self.branches: list[int] = []

    async def predict(
        self,
        latents: Latents,
        sigma: Any,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        self.branches.append(len(branches))
        digests = np.array([[digest[0] for digest in branch.digests] for branch in branches], np.float32)
        return digests[..., None, None, None] * sigma * np.ones_like(latents)


def noise(*seeds: int) -> Latents:
    return np.stack([randn((4, 2, 2), seed) for seed in seeds])


async def sampled(
    denoiser: Any, reuse: StepReuse, latents: Latents, scales: Sequence[float], solver: str = "euler"
) -> tuple[Latents, int]:
    guided = Guided([PROMPT] * len(latents), [NEGATIVE] * len(latents), scales)
    sigmas = FlowSchedule(3.0).sigmas(len(scales), 1)
    solution = SOLVERS[solver]().solve(latents, sigmas, NoiseStream((4, 2, 2), range(len(latents))))
    velocities = reuse.over(denoiser, Branch(guided.positive), range(len(scales)))
    last = [step.latents async for step in sample(velocities, solution, guided)][-1]
    return last, velocities.reused_rows


async def test_the_negative_branch_is_computed_at_every_kth_evaluation() -> None:
    denoiser = ParallelBranches(0.5)
    _, saved = await sampled(denoiser, GuidanceReuse(3), noise(1, 2), [4.0] * 7)
    assert denoiser.branches == [2, 1, 1, 2, 1, 1, 2]
    assert saved == 4 * 2


async def test_a_difference_that_does_not_change_is_reused_without_loss() -> None:
    fresh, _ = await sampled(ParallelBranches(), NoReuse(), noise(1), [4.0] * 6)
    reused, saved = await sampled(ParallelBranches(), GuidanceReuse(2), noise(1), [4.0] * 6)
    assert saved == 3
    assert np.allclose(reused, fresh, rtol=1e-5)


async def test_where_guidance_is_off_nothing_is_reused() -> None:
    denoiser = ParallelBranches()
    scales = [1.0, 4.0, 4.0, 1.0, 4.0, 1.0]
    _, saved = await sampled(denoiser, GuidanceReuse(2), noise(1), scales)
    assert denoiser.branches == [1, 2, 1, 1, 2, 1]
    assert saved == 1


@pytest.mark.parametrize(("every", "calls"), [(2, 5), (3, 4), (20, 2)])
async def test_after_two_evaluations_every_kth_is_computed(every: int, calls: int) -> None:
    denoiser = StraightVelocities()
    _, saved = await sampled(denoiser, VelocityExtrapolation(every), noise(1), [4.0] * 8)
    assert len(denoiser.branches) == calls
    assert saved == 2 * (8 - calls)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "dpmpp_2m", "unipc"])
async def test_velocities_on_a_straight_line_are_extrapolated_without_loss(solver: str) -> None:
    fresh, _ = await sampled(StraightVelocities(), NoReuse(), noise(1), [4.0] * 8, solver)
    choice = VelocityExtrapolation(3)
    reused, saved = await sampled(StraightVelocities(), choice, noise(1), [4.0] * 8, solver)
    assert saved > 0
    assert np.allclose(reused, fresh, atol=1e-4)


async def test_other_branches_start_the_line_anew() -> None:
    denoiser = StraightVelocities()
    scales = [4.0, 4.0, 4.0, 1.0, 1.0, 1.0]
    fresh, _ = await sampled(StraightVelocities(), NoReuse(), noise(1), scales)
    reused, saved = await sampled(denoiser, VelocityExtrapolation(2), noise(1), scales)
    assert denoiser.branches == [2, 2, 1, 1]
    assert saved == 2 + 1
    assert np.allclose(reused, fresh, atol=1e-4)


async def test_behind_the_warm_up_one_step_is_continued_and_then_every_kth_is_computed() -> None:
    denoiser = ParallelBranches(0.5)
    _, saved = await sampled(denoiser, TaylorSeer(4, 2, 3), noise(1, 2), [4.0] * 12)
    assert denoiser.branches == [2] * 5  # 0, 1, 2, 4 and 8
    assert saved == 2 * 2 * (12 - 5)


@pytest.mark.parametrize(("order", "exact"), [(0, False), (1, True), (2, True)])
async def test_taylorseer_follows_a_line_over_the_steps_from_the_first_order_on(
    order: int, exact: bool
) -> None:
    denoiser, latents = StraightVelocities(), noise(1)
    velocities = WithTaylorSeer(denoiser, TaylorSeer(3, order, 2))
    for sigma in np.linspace(1, 0.2, 9, dtype=np.float32):
        predicted = await velocities.predict(latents, sigma, [Branch([PROMPT])], None)
    assert velocities.reused_rows == 5
    assert np.allclose(predicted, PROMPT[0] * sigma, atol=1e-5) == exact


async def test_branches_that_come_later_have_a_warm_up_of_their_own() -> None:
    denoiser = ParallelBranches(0.5)
    scales = [4.0] * 4 + [1.0] * 5
    _, saved = await sampled(denoiser, TaylorSeer(5, 1, 3), noise(1), scales)
    assert denoiser.branches == [2, 2, 2, 1, 1, 1, 1]
    assert saved == 2 + 1


@pytest.mark.parametrize("choice", [GuidanceReuse(2), VelocityExtrapolation(2), TaylorSeer(2, 2, 1)])
async def test_an_image_of_a_batch_is_to_the_bit_what_it_is_alone(choice: StepReuse) -> None:
    batch, _ = await sampled(ParallelBranches(0.5), choice, noise(1, 2), [4.0] * 6)
    for k, seed in enumerate((1, 2)):
        alone, _ = await sampled(ParallelBranches(0.5), choice, noise(seed), [4.0] * 6)
        assert np.array_equal(batch[k], alone[0])


class FewChanges(ParallelBranches):
    """Says that features were reused where a sample moved little, and notes of which evaluation."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.sums = 0.0
        self.reuses: list[list[FeatureReuse]] = []

    async def predict_reusing(
        self,
        latents: Latents,
        sigma: Any,
        branches: Sequence[Branch],
        guidance: float | None,
        reuses: Sequence[FeatureReuse],
        target: np.float32 | None = None,
    ) -> Reusing:
        self.reuses.append(list(reuses))
        velocities = await self.predict(latents, sigma, branches, guidance)
        reused = np.array(
            [
                np.abs(latents - reuse.earlier.latents).mean(axis=(1, 2, 3)) <= (reuse.threshold or np.inf)
                if reuse.earlier
                else np.zeros(len(latents), np.bool_)
                for reuse in reuses
            ]
        )
        velocities[reused] *= np.float32(0.9)
        return Reusing(velocities, reused, np.where(reused, self.sums, 0).astype(np.float32))


async def test_a_row_is_compared_with_its_own_last_whole_evaluation() -> None:
    denoiser, latents = FewChanges(), noise(1, 2)
    velocities = WithFeatureReuse(denoiser, threshold=0.5)
    moves = np.array([[0, 0], [0.3, 0.6], [0.6, 0.7]], np.float32)
    for sigma, move in zip((1.0, 0.9, 0.8), moves, strict=True):
        moved = latents + move[:, None, None, None]
        await velocities.predict(moved, np.float32(sigma), [Branch([PROMPT] * 2)], 3.5, np.float32(sigma / 2))
    first, second, third = [[reuse.earlier for reuse in reuses] for reuses in denoiser.reuses]
    assert first == [None]
    assert second[0] is not None
    assert third[0] is not None
    assert second[0].sigmas.tolist() == [1, 1]
    assert third[0].sigmas.tolist() == [1, np.float32(0.9)]
    assert np.array_equal(third[0].latents[0], latents[0])
    assert np.array_equal(third[0].latents[1], latents[1] + np.float32(0.6))
    assert third[0].guidance_scales == [3.5, 3.5]
    assert third[0].targets == [0.5, np.float32(0.45)]
    assert velocities.reused_rows == 2


async def test_a_branch_that_was_not_needed_for_a_while_has_kept_its_evaluation() -> None:
    denoiser, latents = FewChanges(), noise(1)
    velocities = WithFeatureReuse(denoiser, threshold=0.5)
    both = [Branch([NEGATIVE]), Branch([PROMPT])]
    for sigma, branches in ((1.0, both), (0.9, both[1:]), (0.8, both)):
        await velocities.predict(latents, np.float32(sigma), branches, None)
    last = [reuse.earlier for reuse in denoiser.reuses[-1]]
    assert [earlier.sigmas.tolist() for earlier in last if earlier] == [[1], [1]]
    assert [list(earlier.guidance_scales) for earlier in last if earlier] == [[], []]


async def test_features_of_an_image_of_a_batch_are_those_of_it_alone() -> None:
    choice = LayerReuse(2.0)
    batch, saved = await sampled(FewChanges(), choice, noise(1, 2, 3), [4.0] * 8)
    alone = [await sampled(FewChanges(), choice, noise(seed), [4.0] * 8) for seed in (1, 2, 3)]
    assert 0 < saved == sum(rows for _, rows in alone)
    for image, (latents, _) in zip(batch, alone, strict=True):
        assert np.array_equal(image, latents[0])


def test_magcache_skips_as_long_as_ratios_are_near_one() -> None:
    even = MagCache(0.06, 3, 0.2, (1.0,) * 10)
    assert even.skipped(range(10)) == {2, 3, 4, 6, 7, 8}  # at most three in a row, none of the first two
    growing = MagCache(0.06, 3, 0.0, (1.04,))
    assert growing.skipped(range(6)) == {1, 3, 5}  # 0.04, then 0.04 + 0.0816
    assert MagCache(0.06, 3, 0.0, (1.1,)).skipped(range(6)) == set()


def test_magcache_takes_ratios_by_the_share_of_the_way() -> None:
    choice = MagCache(0.05, 20, 0.0, (1.0, 1.2, 1.0, 1.0, 1.0))
    assert choice.skipped(range(5)) == {2, 3, 4}
    assert choice.skipped(range(9)) == {1, 3, 4, 5, 6, 7, 8}
    assert choice.skipped(range(4, 9)) == {5, 6, 7, 8}  # a picture's way begins late
    assert choice.skipped(range(1)) == set()


async def test_a_skipped_step_names_the_last_computed_one_and_others_are_computed_whole() -> None:
    denoiser, latents = FewChanges(), noise(1, 2)
    velocities = WithMagCache(denoiser, {5, 6}, first_step=4)
    both = [Branch([NEGATIVE] * 2), Branch([PROMPT] * 2)]
    asked = [(1.0, both[1:]), (0.8, both), (0.6, both), (0.4, both), (0.2, both)]
    for sigma, branches in asked:
        await velocities.predict(latents, np.float32(sigma), branches, None)
    assert all(reuse.threshold is None for reuses in denoiser.reuses for reuse in reuses)
    named = [[r.earlier and float(r.earlier.sigmas[0]) for r in reuses] for reuses in denoiser.reuses]
    assert named == [[None], [None, 1], [pytest.approx(0.8), 1], [None, None], [None, None]]
    assert velocities.reused_rows == (1 + 2) * 2


async def test_latents_of_another_size_are_computed_whole() -> None:
    denoiser, branches = FewChanges(), [Branch([PROMPT])]
    velocities = WithMagCache(denoiser, {1}, first_step=0)
    await velocities.predict(noise(1), np.float32(1), branches, None)
    await velocities.predict(np.ones((1, 4, 4, 4), np.float32), np.float32(0.5), branches, None)
    assert [reuse.earlier for reuses in denoiser.reuses for reuse in reuses] == [None, None]


async def test_teacache_names_the_step_before_the_last_computed_one_and_the_sum() -> None:
    denoiser, latents = FewChanges(), noise(1, 2)
    velocities = WithTeaCache(denoiser, TeaCache(0.5, (2.0, 0.0)), steps=5)
    moves = np.array([[0, 0], [0.3, 0.6], [0.4, 0.7], [0.4, 0.7], [0.4, 0.7]], np.float32)
    for step, (sigma, move) in enumerate(zip((1.0, 0.8, 0.6, 0.4, 0.2), moves, strict=True)):
        denoiser.sums = 0.25 * step
        moved = latents + move[:, None, None, None]
        await velocities.predict(moved, np.float32(sigma), [Branch([PROMPT] * 2)], None)
    first, second, third, _, last = (reuses[0] for reuses in denoiser.reuses)
    assert first == last == FeatureReuse(None, None)
    assert second.earlier is not None
    assert second.change is not None
    assert second.threshold == 0.5
    assert second.change.coefficients == (2.0, 0.0)
    assert second.change.sums.tolist() == [0, 0]
    assert second.earlier.sigmas.tolist() == second.change.before.sigmas.tolist() == [1, 1]
    assert third.earlier is not None
    assert third.change is not None
    assert third.change.sums.tolist() == [0.25, 0]
    assert third.earlier.sigmas.tolist() == [1, np.float32(0.8)]
    assert third.change.before.sigmas.tolist() == [np.float32(0.8)] * 2
    assert velocities.reused_rows == 1 + 2 + 2


async def test_teacache_computes_a_branch_that_is_new_or_of_another_size() -> None:
    denoiser, both = FewChanges(), [Branch([NEGATIVE]), Branch([PROMPT])]
    velocities = WithTeaCache(denoiser, TeaCache(), steps=9)
    await velocities.predict(noise(1), np.float32(1), both[1:], None)
    await velocities.predict(noise(1), np.float32(0.9), both, None)
    await velocities.predict(np.ones((1, 4, 4, 4), np.float32), np.float32(0.8), both, None)
    assert [[reuse.earlier is None for reuse in reuses] for reuses in denoiser.reuses] == [
        [True],
        [True, False],
        [True, True],
    ]
