"""Steps whose layers MagCache skips, and what they give, are those of diffusers' MagCache."""

import pytest
import torch
from diffusers.hooks import MagCacheConfig, apply_mag_cache
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

from tests.parity import test_flux_transformer as flux
from tests.parity import test_sd3_transformer as sd3
from tests.parity.transformers import relative_error
from triptych.families import mag_ratios
from triptych_coordinator.sampling.reuse.features import MagCache
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.features import FeatureCache
from triptych_denoiser.predictor import Predictor
from triptych_denoiser.row import FeatureReuse, Row


def test_the_ratios_of_flux_are_those_that_diffusers_has() -> None:
    assert torch.equal(torch.tensor(mag_ratios.FLUX_1_DEV), FLUX_MAG_RATIOS)


def parameters(choice: MagCache, steps: int) -> MagCacheConfig:
    return MagCacheConfig(
        threshold=choice.threshold,
        max_skip_steps=choice.max_skip_steps,
        retention_ratio=choice.retention_ratio,
        num_inference_steps=steps,
        mag_ratios=list(choice.mag_ratios),
    )


@pytest.mark.parametrize(
    ("choice", "steps", "skipped"),
    [
        (MagCache(mag_ratios=mag_ratios.FLUX_1_DEV), 28, 14),
        (MagCache(0.24, 5, 0.1, mag_ratios.FLUX_1_DEV), 20, 14),
        (MagCache(0.3, 2, 0.0, mag_ratios.QWEN_IMAGE), 12, 7),
    ],
)
def test_velocities_of_flux_are_those_of_diffusers_mag_cache(
    choice: MagCache, steps: int, skipped: int
) -> None:
    theirs, given = flux.reference(flux.SMALL), flux.inputs(flux.SMALL, 1, 8, 8)
    predictor = Predictor(flux.ours(theirs), torch.device("cpu"), torch.float32, 4, FeatureCache(1 << 20))
    apply_mag_cache(theirs, parameters(choice, steps))
    conditioning = Conditioning(given["sequence"][0], given["pooled"][0], 1)
    latents, before, decisions = given["latents"], None, []
    for step, sigma in enumerate(torch.linspace(1, 0.02, steps)):
        with theirs.cache_context("cond"):
            expected = flux.expected_velocity(theirs, given | {"latents": latents, "sigma": sigma[None]})
        before = before if step in choice.skipped(range(steps)) else None
        row = Row(latents[0], float(sigma), conditioning)
        reuse = FeatureReuse(None, before)
        velocities, (reused,), _ = predictor.predict(
            [Row(latents[0], float(sigma), conditioning, reuse=reuse)]
        )
        before = before if reused else row
        decisions.append(reused)
        assert relative_error(velocities[0][None], expected) <= 1e-5
        latents = latents - 0.02 * expected
    assert sum(decisions) == skipped


def test_velocities_of_sd3_are_those_of_diffusers_mag_cache() -> None:
    theirs, given = sd3.reference(sd3.SMALL), sd3.inputs(sd3.SMALL, 1, 8, 8)
    predictor = Predictor(sd3.ours(theirs), torch.device("cpu"), torch.float32, 4, FeatureCache(1 << 20))
    choice = MagCache(0.2, 3, 0.2, mag_ratios.FLUX_1_DEV)
    apply_mag_cache(theirs, parameters(choice, 10))
    conditioning = Conditioning(given["sequence"][0], given["pooled"][0], 1)
    latents, before = given["latents"], None
    for step, sigma in enumerate(torch.linspace(1, 0.1, 10)):
        expected = sd3.expected_velocity(theirs, given | {"latents": latents, "sigma": sigma[None]})
        row = Row(latents[0], float(sigma), conditioning)
        before = before if step in choice.skipped(range(10)) else None
        reuse = FeatureReuse(None, before)
        velocities, (reused,), _ = predictor.predict(
            [Row(latents[0], float(sigma), conditioning, reuse=reuse)]
        )
        before = before if reused else row
        assert relative_error(velocities[0][None], expected) <= 1e-5
        latents = latents - 0.1 * expected
