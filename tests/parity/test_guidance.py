"""Guidance is that of diffusers' guiders, step after step, on velocities of several images."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance import layers, methods
from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.guidance.schedules import IntervalGuidance

STEPS = 30
SHAPE = (3, 16, 12, 10)
PROMPT, NEGATIVE = [b"p"] * 3, [b"n"] * 3


def velocities(step: int) -> dict[str, NDArray[np.float32]]:
    """Branches that resemble each other, as a model's do, of images that differ in contrast."""
    rng = np.random.default_rng(step)
    shared = rng.standard_normal(SHAPE, np.float32)
    contrasts = np.array([0.3, 1.0, 3.0], np.float32)[:, None, None, None]
    names = ("pred_cond", "pred_uncond", "pred_cond_skip")
    return {name: contrasts * (shared + 0.3 * rng.standard_normal(SHAPE, np.float32)) for name in names}


def name(branch: Branch) -> str:
    """What diffusers' guiders call a branch."""
    if branch.skipped_layers or branch.perturbed_layers:
        return "pred_cond_skip"
    return "pred_cond" if branch.digests == PROMPT else "pred_uncond"


def assert_same_steps(plan: Guided, guider: Any) -> None:
    memory = None
    for step in range(STEPS):
        guider.set_state(step, STEPS, torch.tensor(0))
        guider.prepare_inputs({})  # makes the memory at step 0
        given, names = velocities(step), [name(branch) for branch in plan.branches(step)]
        assert len(names) == (guider.num_conditions if step >= plan.method.first_guided_step else 0)
        taken = {key: torch.from_numpy(given[key]) for key in inspect.signature(guider.forward).parameters}
        expected = guider.forward(**taken).pred.numpy()
        stacked = np.stack([given[key] for key in names]) if names else np.empty((0, *SHAPE), np.float32)
        velocity, memory = plan.velocity(step, stacked, memory)
        assert np.abs(velocity - expected).max() <= 1e-5 * np.abs(expected).max()


def plan(scale: float = 5.0, **options: Any) -> Guided:
    return Guided(PROMPT, NEGATIVE, [scale] * STEPS, **options)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scale", [1.0, 5.0, 12.5])
def test_classifier_free_guidance(scale: float, rescale: float) -> None:
    guider = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale)
    assert_same_steps(plan(scale, rescale=rescale), guider)


def test_an_interval_of_guidance() -> None:
    scales = IntervalGuidance(0.15, 0.65).over(STEPS, 6.0)
    guider = ClassifierFreeGuidance(guidance_scale=6.0, start=0.15, stop=0.65)
    assert_same_steps(Guided(PROMPT, NEGATIVE, scales), guider)


@pytest.mark.parametrize("momentum", [None, -0.5, 0.3])
@pytest.mark.parametrize("threshold", [0.0, 5.0, 15.0])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_adaptive_projected_guidance(eta: float, threshold: float, momentum: float | None) -> None:
    guider = AdaptiveProjectedGuidance(
        guidance_scale=5.0,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        guidance_rescale=0.2,
    )
    method = methods.AdaptiveProjectedGuidance(eta, threshold, momentum or 0.0)
    assert_same_steps(plan(method=method, rescale=0.2), guider)


@pytest.mark.parametrize("zero_init_steps", [0, 1, 3])
def test_zero_star(zero_init_steps: int) -> None:
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=5.0, zero_init_steps=zero_init_steps)
    assert_same_steps(plan(method=methods.ZeroStarGuidance(zero_init_steps)), guider)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_skip_layer_guidance(rescale: float) -> None:
    guider = SkipLayerGuidance(
        guidance_scale=5.0,
        skip_layer_guidance_layers=[1],
        skip_layer_guidance_start=0.1,
        skip_layer_guidance_stop=0.5,
        guidance_rescale=rescale,
    )
    weakened = layers.SkipLayerGuidance((1,), 2.8, 0.1, 0.5)
    assert_same_steps(plan(rescale=rescale, layer_guidances=[weakened]), guider)


def test_perturbed_attention_guidance() -> None:
    """diffusers' guider leaves out the step at `start` itself."""
    guider = PerturbedAttentionGuidance(
        guidance_scale=5.0,
        perturbed_guidance_layers=[1],
        perturbed_guidance_scale=1.7,
        perturbed_guidance_start=0.1,
        perturbed_guidance_stop=0.5,
    )
    weakened = layers.PerturbedAttentionGuidance((1,), 1.7, 4 / STEPS, 0.5)
    assert_same_steps(plan(layer_guidances=[weakened]), guider)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_norm_preserving_guidance(scale: float) -> None:
    """As QwenImagePipeline's loop has it: on tokens of 2 x 2 pixels of latents."""
    rows, channels, height, width = SHAPE
    given = velocities(0)
    packed = {
        name: QwenImagePipeline._pack_latents(torch.from_numpy(given[name]), rows, channels, height, width)
        for name in ("pred_cond", "pred_uncond")
    }
    prompt, negative = packed["pred_cond"], packed["pred_uncond"]
    joined = negative + scale * (prompt - negative)
    joined = joined * (prompt.norm(dim=-1, keepdim=True) / joined.norm(dim=-1, keepdim=True))
    expected = QwenImagePipeline._unpack_latents(joined, 8 * height, 8 * width, 8)[:, :, 0].numpy()

    stacked = np.stack([given[name] for name in ("pred_uncond", "pred_cond")][scale <= 1 :])
    velocity, _ = plan(scale, method=methods.NormPreservingGuidance()).velocity(0, stacked)
    assert np.abs(velocity - expected).max() <= 1e-5 * np.abs(expected).max()
