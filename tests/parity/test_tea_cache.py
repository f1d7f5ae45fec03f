"""Steps that TeaCache leaves out, and what they give, are those of its authors' script."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity import test_flux_transformer as flux
from tests.parity import test_sd3_transformer as sd3
from tests.parity.transformers import relative_error
from triptych.families import teacache
from triptych_coordinator.sampling.reuse.input_changes import IDENTITY
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.features import FeatureCache
from triptych_denoiser.predictor import Predictor
from triptych_denoiser.row import FeatureReuse, InputChange, Row

STEPS = 10
Coefficients = tuple[float, ...]


class TheirTeaCache:
    """What teacache_forward of TeaCache4FLUX/teacache_flux.py does around the blocks of a diffusers model.

    Where it does not compute, blocks return what they are given, the last of them with the residual.
    """

    def __init__(self, transformer: Any, threshold: float, coefficients: Coefficients) -> None:
        self.rel_l1_thresh = threshold
        self.rescale_func = np.poly1d(coefficients)
        self.computed: list[bool] = []
        self.accumulated_rel_l1_distance = 0.0
        self.previous_modulated_input = self.previous_residual = torch.empty(0)
        self.norm1 = transformer.transformer_blocks[0].norm1
        blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", [])]
        for block in blocks:
            block.forward = self.around(block.forward, block is blocks[0], block is blocks[-1])

    def around(self, forward: Callable[..., Any], first: bool, last: bool) -> Callable[..., Any]:
        def block(hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, **others: Any) -> Any:
            if first:
                self.decide(self.norm1(hidden_states, emb=temb)[0])
                self.ori_hidden_states = hidden_states
            if not self.computed[-1]:
                return encoder_hidden_states, hidden_states + (self.previous_residual if last else 0)
            given = {"encoder_hidden_states": encoder_hidden_states, "temb": temb, **others}
            text, image = forward(hidden_states=hidden_states, **given)
            if last:
                self.previous_residual = image - self.ori_hidden_states
            return text, image

        return block

    def decide(self, modulated_inp: Tensor) -> None:
        if len(self.computed) in (0, STEPS - 1):
            should_calc = True
            self.accumulated_rel_l1_distance = 0
        else:
            previous = self.previous_modulated_input
            change = ((modulated_inp - previous).abs().mean() / previous.abs().mean()).cpu().item()
            self.accumulated_rel_l1_distance += self.rescale_func(change)
            if self.accumulated_rel_l1_distance < self.rel_l1_thresh:
                should_calc = False
            else:
                should_calc = True
                self.accumulated_rel_l1_distance = 0
        self.previous_modulated_input = modulated_inp
        self.computed.append(should_calc)


@pytest.mark.parametrize(
    ("threshold", "coefficients", "skipped"),
    [(0.6, teacache.FLUX_1_DEV, 6), (0.3, teacache.FLUX_1_DEV, 4), (0.1, IDENTITY, 2)],
)
def test_velocities_of_flux_are_those_of_teacache(
    threshold: float, coefficients: Coefficients, skipped: int
) -> None:
    assert compared(flux, threshold, coefficients) == skipped


def test_velocities_of_sd3_are_those_of_teacache() -> None:
    assert compared(sd3, 0.1, IDENTITY) == 2


def compared(family: Any, threshold: float, coefficients: Coefficients) -> int:
    """How many steps both leave out, the same ones, with the same velocities."""
    theirs, given = family.reference(family.SMALL), family.inputs(family.SMALL, 1, 8, 8)
    predictor = Predictor(family.ours(theirs), torch.device("cpu"), torch.float32, 4, FeatureCache(1 << 20))
    hooked = TheirTeaCache(theirs, threshold, coefficients)
    conditioning = Conditioning(given["sequence"][0], given["pooled"][0], 1)
    latents, whole, before, sum_before, decisions = given["latents"], None, None, 0.0, []
    for step, sigma in enumerate(torch.linspace(0.5, 0.49, STEPS)):
        expected = family.expected_velocity(theirs, given | {"latents": latents, "sigma": sigma[None]})
        row = Row(latents[0], float(sigma), conditioning)
        reuse = FeatureReuse(None, None)
        if before is not None and step < STEPS - 1:
            reuse = FeatureReuse(threshold, whole, InputChange(before, sum_before, coefficients))
        velocities, (reused,), (sum_before,) = predictor.predict(
            [Row(latents[0], float(sigma), conditioning, reuse=reuse)]
        )
        whole, before = whole if reused else row, row
        decisions.append(reused)
        assert relative_error(velocities[0][None], expected) <= 1e-5
        latents = latents - 0.01 * expected
    assert [not reused for reused in decisions] == hooked.computed
    return sum(decisions)
