"""Guidance: identities, which branches a step needs, and that no picture's company changes its bits."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.formulas import (
    adaptive_projected_guidance,
    classifier_free_guidance,
    composed,
    norm_preserving_guidance,
    rescaled,
    zero_star_guidance,
)
from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.layers import (
    Branch,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.guidance.methods import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    NormPreservingGuidance,
    ZeroStarGuidance,
)
from triptych_coordinator.sampling.guidance.schedules import ExplicitGuidance

PROMPT, NEGATIVE, OTHER = [b"p"] * 3, [b"n"] * 3, [b"o"] * 3
SLG = SkipLayerGuidance((2, 3), scale=2.8, start=0.01, stop=0.5)
PAG = PerturbedAttentionGuidance((1,), scale=0.7)

Velocities = NDArray[np.float32]


def velocities(branches: int, samples: int = 3, seed: int = 0) -> Velocities:
    return np.random.default_rng(seed).standard_normal((branches, samples, 4, 6, 5), np.float32)


def guided(scales: list[float], **options: Any) -> Guided:
    return Guided(PROMPT, NEGATIVE, scales, **options)


@pytest.mark.parametrize(
    "method",
    [
        ClassifierFreeGuidance(),
        AdaptiveProjectedGuidance(),
        ZeroStarGuidance(0),
        NormPreservingGuidance(),
    ],
)
def test_at_scale_one_every_method_is_the_conditional_branch(method: Any) -> None:
    plan = guided([1.0], method=method, rescale=0.7)
    assert plan.branches(0) == [Branch(PROMPT)]
    (positive,) = given = velocities(1)
    assert np.array_equal(plan.velocity(0, given)[0], positive)


def test_apg_that_changes_nothing_is_classifier_free_guidance() -> None:
    negative, positive = velocities(2)
    projected, _ = adaptive_projected_guidance(negative, positive, 4.0, None, 1.0, 0.0, 0.0)
    assert np.allclose(projected, classifier_free_guidance(negative, positive, 4.0), atol=1e-5)


def test_apg_with_eta_zero_moves_across_the_prompts_velocity() -> None:
    negative, positive = velocities(2)
    projected, _ = adaptive_projected_guidance(negative, positive, 4.0, None, 0.0, 0.0, 0.0)
    for image, from_image, along in zip(projected, negative, positive, strict=True):
        move = (image - from_image).astype(float)
        assert abs(np.sum(move * along)) < 1e-4 * np.sqrt(np.sum(move**2) * np.sum(along**2))


def test_apg_shortens_each_pictures_difference_to_the_threshold() -> None:
    negative, positive = velocities(2)
    positive[0] = negative[0] + 0.001
    projected, _ = adaptive_projected_guidance(negative, positive, 1.0, None, 1.0, 2.0, 0.0)
    norms = [np.linalg.norm(move) for move in projected - negative]
    assert norms == pytest.approx([0.001 * np.sqrt(120), 2.0, 2.0], rel=1e-4)


def test_apgs_memory_is_the_sum_of_differences_and_is_not_shortened() -> None:
    plan = guided([4.0] * 3, method=AdaptiveProjectedGuidance(eta=1.0, norm_threshold=0.5, momentum=-0.5))
    memory, expected = None, np.zeros((3, 4, 6, 5), np.float32)
    for step in range(3):
        negative, positive = given = velocities(2, seed=step)
        _, memory = plan.velocity(step, given, memory)
        expected = positive - negative - np.float32(0.5) * expected
    assert memory is not None
    assert np.allclose(memory, expected, atol=1e-6)


def test_a_step_without_guidance_leaves_the_memory_as_it_is() -> None:
    plan = guided([1.0], method=AdaptiveProjectedGuidance())
    memory = velocities(1)[0]
    assert plan.velocity(0, velocities(1), memory)[1] is memory


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_token_keeps_the_norm_that_it_has_by_the_prompt(size: int) -> None:
    negative, positive = velocities(2)  # of 6 x 5 pixels: tokens at the edges are smaller
    positive[0, :, :2, :2] = negative[0, :, :2, :2] = 0
    joined = norm_preserving_guidance(negative, positive, 4.0, size)
    for top, left in ((top, left) for top in range(0, 6, size) for left in range(0, 5, size)):
        token = (slice(None), slice(None), slice(top, top + size), slice(left, left + size))
        norms = [np.sqrt((each[token].astype(float) ** 2).sum(axis=(1, 2, 3))) for each in (joined, positive)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    guided = classifier_free_guidance(negative, positive, 4.0)
    alike = (joined[1] * guided[1])[np.abs(guided[1]) > 1e-3]
    assert (alike > 0).all()


def test_zero_star_forgets_how_large_the_negative_velocity_is() -> None:
    negative, positive = velocities(2)
    once = zero_star_guidance(negative, positive, 3.0)
    assert np.allclose(zero_star_guidance(5 * negative, positive, 3.0), once, atol=1e-5)


def test_zero_star_needs_no_branch_in_its_first_steps_and_stays() -> None:
    plan = guided([4.0] * 4, method=ZeroStarGuidance(2), layer_guidances=[PAG], rescale=0.5)
    assert [len(plan.branches(step)) for step in range(4)] == [0, 0, 3, 3]
    velocity, _ = plan.velocity(1, np.empty((0, 3, 4, 6, 5), np.float32))
    assert velocity.shape == (3, 4, 6, 5)
    assert not velocity.any()


def test_rescale_one_gives_every_picture_the_contrast_of_its_prompt() -> None:
    negative, positive = velocities(2)
    positive *= np.array([1, 2, 3], np.float32)[:, None, None, None]
    strong = classifier_free_guidance(negative, positive, 7.0)
    contrasts = [image.std() for image in rescaled(strong, positive, 1.0)]
    assert contrasts == pytest.approx([image.std() for image in positive], rel=1e-5)
    assert np.array_equal(rescaled(strong, positive, 0.0), strong)
    assert np.array_equal(rescaled(np.zeros_like(strong), positive, 1.0), np.zeros_like(strong))


def test_weakened_branches_are_computed_only_where_they_act() -> None:
    plan = guided(
        [5.0, 5.0, 1.0, 1.0], layer_guidances=[SLG, PerturbedAttentionGuidance((1,), 3.0, 0.25, 0.75)]
    )
    skipped, perturbed = Branch(PROMPT, skipped_layers=(2, 3)), Branch(PROMPT, perturbed_layers=(1,))
    assert [plan.branches(step) for step in range(4)] == [
        [Branch(NEGATIVE), Branch(PROMPT)],
        [Branch(NEGATIVE), Branch(PROMPT), skipped, perturbed],
        [Branch(PROMPT), perturbed],
        [Branch(PROMPT)],
    ]


def test_a_weakened_branch_of_scale_zero_is_not_computed() -> None:
    layers = [SkipLayerGuidance((1,), 0.0, 0.0, 1.0), PerturbedAttentionGuidance((1,), 0.0)]
    assert guided([1.0] * 9, layer_guidances=layers).branches(4) == [Branch(PROMPT)]


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(4, []), (28, [1, 2, 3, 4, 5]), (100, list(range(2, 20)))]
)
def test_skip_layer_guidance_acts_at_the_steps_of_diffusers_pipeline(
    num_steps: int, expected: list[int]
) -> None:
    guidance = SkipLayerGuidance((7, 8, 9))
    assert [step for step in range(num_steps) if guidance.active(step, num_steps)] == expected


def test_a_weakened_branch_equal_to_the_prompts_changes_nothing() -> None:
    plan = guided([3.0] * 4, layer_guidances=[SLG, PAG])
    negative, positive = velocities(2)
    velocity, _ = plan.velocity(1, np.stack([negative, positive, positive, positive]))
    assert np.array_equal(velocity, classifier_free_guidance(negative, positive, 3.0))


def test_a_prompt_composed_with_itself_is_the_prompt() -> None:
    negative, positive = velocities(2)
    halves = composed(negative, [positive, positive], np.full((2, 3), 0.5, np.float32))
    assert np.allclose(halves, positive, atol=1e-6)


def test_composed_prompts_are_guided_by_scale_times_weight_each() -> None:
    plan = guided([4.0], additional=[OTHER], weights=[[1.0, 0.5, 2.0], [-0.5, 0.5, 0.0]])
    assert plan.branches(0) == [Branch(NEGATIVE), Branch(PROMPT), Branch(OTHER)]
    u, first, second = given = velocities(3)
    velocity, _ = plan.velocity(0, given)
    for k, (one, two) in enumerate([(1.0, -0.5), (0.5, 0.5), (2.0, 0.0)]):
        expected = u[k] + 4 * one * (first[k] - u[k]) + 4 * two * (second[k] - u[k])
        assert np.allclose(velocity[k], expected, atol=1e-4)


def test_composed_prompts_need_the_negative_branch_at_scale_one_too() -> None:
    plan = guided([1.0], additional=[OTHER], weights=[[1.0] * 3, [0.5] * 3])
    assert plan.branches(0)[0] == Branch(NEGATIVE)
    u, first, second = given = velocities(3)
    assert np.allclose(plan.velocity(0, given)[0], first + 0.5 * (second - u), atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        ClassifierFreeGuidance(),
        AdaptiveProjectedGuidance(0.3, 2.0, -0.5),
        ZeroStarGuidance(0),
        NormPreservingGuidance(),
    ],
)
def test_a_picture_of_a_batch_has_the_bits_it_has_alone(method: Any) -> None:
    weights = [[1.0, 0.7, 0.2], [0.4, -0.2, 0.1]]

    def run(samples: slice) -> Velocities:
        plan = Guided(
            PROMPT[samples],
            NEGATIVE[samples],
            [4.0, 4.0],
            method=method,
            rescale=0.7,
            additional=[OTHER[samples]],
            weights=[weight[samples] for weight in weights],
            layer_guidances=[PAG],
        )
        _, memory = plan.velocity(0, velocities(4, seed=1)[:, samples])
        return plan.velocity(1, velocities(4, seed=2)[:, samples], memory)[0]

    batch = run(slice(0, 3))
    assert all(np.array_equal(batch[k : k + 1], run(slice(k, k + 1))) for k in range(3))


def test_an_explicit_schedule_is_its_list() -> None:
    assert ExplicitGuidance((7.0, 1.0, 3.0)).over(3, 9.0) == [7.0, 1.0, 3.0]
