"""Reused features are those of diffusers' first block cache, step for step."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

from tests.parity.test_flux_transformer import SMALL, expected_velocity, inputs, ours, reference
from tests.parity.transformers import relative_error
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.features import FeatureCache
from triptych_denoiser.predictor import Predictor
from triptych_denoiser.row import FeatureReuse, Row

reference_library: Any = diffusers  # most of it has no types


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.5])
def test_velocities_are_those_of_diffusers_first_block_cache(threshold: float) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 1, 8, 8)
    predictor = Predictor(ours(theirs), torch.device("cpu"), torch.float32, 4, FeatureCache(1 << 20))
    apply_first_block_cache(theirs, FirstBlockCacheConfig(threshold))
    conditioning = Conditioning(given["sequence"][0], given["pooled"][0], 1)
    latents, before, decisions = given["latents"], None, []
    for sigma in torch.linspace(0.5, 0.49, 10):
        with theirs.cache_context("cond"):
            expected = expected_velocity(theirs, given | {"latents": latents, "sigma": sigma[None]})
        row = Row(latents[0], float(sigma), conditioning)
        velocities, (reused,), _ = predictor.predict(
            [Row(*(latents[0], float(sigma), conditioning), reuse=FeatureReuse(threshold, before))]
        )
        before = before if reused else row
        decisions.append(reused)
        assert relative_error(velocities[0][None], expected) <= 1e-5
        latents = latents - 0.01 * expected
    assert not decisions[0]
    assert 0 < sum(decisions) < 10
