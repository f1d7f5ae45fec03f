"""Steps that TaylorSeer continues are those of diffusers' TaylorSeer cache in its lite mode."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
from numpy.typing import NDArray

from tests.parity.test_flux_transformer import SMALL, expected_velocity, inputs, ours, reference
from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.reuse.extrapolation import TaylorSeer, WithTaylorSeer
from triptych_denoiser.models.flux import FluxTransformer

STEPS = 14


class OfTheTransformer:
    """The velocities of our transformer; counts how often it is asked."""

    def __init__(self, model: FluxTransformer, given: dict[str, Any]) -> None:
        self.model, self.given = model, given
        self.calls = 0

    @torch.inference_mode()
    async def predict(
        self,
        latents: NDArray[np.float32],
        sigma: Any,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        self.calls += 1
        now = {"latents": torch.from_numpy(latents), "sigma": torch.tensor([float(sigma)])}
        velocity: NDArray[np.float32] = self.model(**self.given | now).numpy()
        return velocity[None]


@pytest.mark.parametrize(
    ("every", "order", "warmup_steps", "computed"), [(5, 1, 3, 5), (3, 2, 4, 7), (2, 3, 1, 7), (4, 0, 2, 5)]
)
async def test_steps_are_those_of_diffusers_taylorseer_cache(
    every: int, order: int, warmup_steps: int, computed: int
) -> None:
    theirs, given = reference(SMALL), inputs(SMALL, 1, 8, 8)
    denoiser = OfTheTransformer(ours(theirs), given)
    velocities = WithTaylorSeer(denoiser, TaylorSeer(every, order, warmup_steps))
    apply_taylorseer_cache(
        theirs,
        TaylorSeerCacheConfig(
            cache_interval=every,
            disable_cache_before_step=warmup_steps,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        ),
    )
    their_latents, our_latents = given["latents"], given["latents"].numpy()
    for sigma in np.linspace(1, 0.05, STEPS, dtype=np.float32):
        now = {"latents": their_latents, "sigma": torch.tensor([float(sigma)])}
        with theirs.cache_context("cond"):
            their_latents = their_latents - 0.05 * expected_velocity(theirs, given | now)
        predicted = await velocities.predict(our_latents, sigma, [Branch([b"prompt"])], None)
        our_latents = our_latents - np.float32(0.05) * predicted[0]
        largest = their_latents.abs().max()
        assert (torch.from_numpy(our_latents) - their_latents).abs().max() <= 1e-5 * largest
    assert denoiser.calls == computed
    assert velocities.reused_rows == STEPS - computed
