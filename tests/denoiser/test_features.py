"""Reused features: what a row gives is decided by what is asked, never by what the replica has seen."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.denoiser.small_families import (
    FLUX,
    FLUX2,
    FLUX3_FLOW_MAP,
    KREA2,
    QWEN_IMAGE,
    QWEN_IMAGE21,
    SD3,
    Z_IMAGE,
    Config,
    random_transformer,
)
from triptych.caches import entry_bytes
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.features import FeatureCache, relative_change
from triptych_denoiser.models.transformer import blocks
from triptych_denoiser.predictor import Predictor
from triptych_denoiser.row import FeatureReuse, InputChange, Row

CPU = torch.device("cpu")
LAYERS = 3
FAMILIES: dict[str, Config] = {
    "SD3": {**SD3, "pos_embed_max_size": 8},
    "FLUX": {**FLUX, "num_single_layers": LAYERS - 2},
    "FLUX.2": FLUX2,
    "FLUX.3, a flow map": FLUX3_FLOW_MAP,
    "Krea 2": KREA2,
    "Qwen-Image": QWEN_IMAGE,
    "Qwen-Image 2.1": QWEN_IMAGE21,
    "Z-Image": Z_IMAGE,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    """A small transformer of each family, random weights."""
    return random_transformer(FAMILIES[request.param])


class CountingPredictor(Predictor):
    """Notes how many rows each pass has."""

    def __init__(self, model: Any, max_rows: int = 8, cache_bytes: int = 1 << 20) -> None:
        super().__init__(model, CPU, torch.float32, max_rows, FeatureCache(cache_bytes))
        self.passes: list[int] = []

    def _forward(self, rows: Sequence[Row], **reuse: Any) -> list[Tensor]:
        self.passes.append(len(rows))
        return super()._forward(rows, **reuse)


def row(model: Any, seed: int, sigma: float = 0.5) -> Row:
    inputs, generator = model.inputs, torch.Generator().manual_seed(seed)
    sequence = torch.randn(5, inputs.joint_attention_dim, generator=generator)
    pooled = torch.randn(inputs.pooled_projection_dim, generator=generator)
    latents = torch.randn(inputs.channels, 8, 8, generator=generator)
    scale, target = 3.5 if inputs.guidance else None, sigma / 2 if inputs.target_sigma else None
    return Row(latents, sigma, Conditioning(sequence, pooled, 1), scale, target_sigma=target)


def later(before: Row, change: float, threshold: float = 0.2) -> Row:
    """A row a little further on, which may reuse the features of the one before."""
    latents = before.latents + change * torch.randn(
        before.latents.shape, generator=torch.Generator().manual_seed(9)
    )
    reuse = FeatureReuse(threshold, replace(before, reuse=None))
    return replace(before, latents=latents, sigma=before.sigma - 0.0001, reuse=reuse)


def first(before: Row, threshold: float = 0.2) -> Row:
    """A row whose features a later one may reuse."""
    return replace(before, reuse=FeatureReuse(threshold, None))


def test_the_first_evaluation_is_computed_as_ever(model: Any) -> None:
    predictor = CountingPredictor(model)
    velocities, reused, _ = predictor.predict([first(row(model, 1))])
    assert torch.equal(velocities[0], predictor.predict([row(model, 1)]).velocities[0])
    assert reused == [False]


def test_the_same_evaluation_again_is_reused_without_loss(model: Any) -> None:
    predictor, before = CountingPredictor(model), row(model, 1)
    expected = predictor.predict([first(before)]).velocities
    velocities, reused, _ = predictor.predict([replace(first(before), reuse=FeatureReuse(0.01, before))])
    assert reused == [True]
    torch.testing.assert_close(velocities, expected, rtol=1e-5, atol=1e-5)


def test_little_change_reuses_and_much_computes(model: Any) -> None:
    predictor, before = CountingPredictor(model), row(model, 1)
    predictor.predict([first(before)])
    near, far = later(before, 0.001), later(before, 3.0)
    velocities, reused, _ = predictor.predict([near, far])
    assert reused == [True, False]
    exact = predictor.predict([replace(near, reuse=None), replace(far, reuse=None)]).velocities
    assert not torch.equal(velocities[0], exact[0])
    assert torch.equal(velocities[1], exact[1])
    assert 0 < (velocities[0] - exact[0]).abs().max() < 0.2 * exact[0].abs().max()


def test_the_threshold_is_where_reuse_begins(model: Any) -> None:
    predictor, before = CountingPredictor(model), row(model, 1)
    tokens: list[Tensor] = []

    def noted(before: Tensor, first: Tensor, others: Any, modulated: Any) -> Tensor:
        tokens.append(first - before)
        return others(slice(None))

    near = later(before, 0.05)
    for each in (before, near):
        predictor._forward([each], reuse=noted)  # type: ignore[arg-type]
    change = relative_change(tokens[1], tokens[0])
    assert predictor.predict([later(before, 0.05, change * 1.01)]).reused == [True]
    assert predictor.predict([later(before, 0.05, change * 0.99)]).reused == [False]


def test_losing_the_cache_costs_passes_and_changes_no_bit(model: Any) -> None:
    before = [row(model, 1), row(model, 2)]
    remembering, forgetful, other_replica = (CountingPredictor(model, cache_bytes=n) for n in (1 << 20, 1, 1))
    for predictor in (remembering, forgetful):
        for each in before:
            predictor.predict([first(each)])
    expected = remembering.predict([later(each, 0.001) for each in before])
    assert expected.reused == [True, True]
    for predictor in (forgetful, other_replica):
        velocities, reused, _ = predictor.predict([later(each, 0.001) for each in before])
        assert all(map(torch.equal, velocities, expected.velocities))
        assert reused == expected.reused
    assert remembering.passes == [1, 1, 2]
    assert forgetful.passes == [1, 1, 1, 2]  # the newest entry is always remembered
    assert other_replica.passes == [2, 2]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_a_row_s_bits_do_not_depend_on_its_company(model: Any) -> None:
    plain, ahead = row(model, 3), first(row(model, 4))
    near, far = later(row(model, 1), 0.001), later(row(model, 2), 3.0)
    rows = [near, plain, far, ahead, later(row(model, 5), 0.002)]
    together, reused, _ = CountingPredictor(model).predict(rows)
    assert reused == [True, False, False, False, True]
    for velocity, alone in zip(together, rows, strict=True):
        assert torch.equal(velocity, CountingPredictor(model).predict([alone]).velocities[0])


def all_of(before: Row, change: float) -> Row:
    """A row further on, all of whose blocks are taken to add what they added to the one before."""
    return replace(later(before, change), reuse=FeatureReuse(None, before))


def test_all_blocks_are_reused_whatever_has_changed_and_none_is_computed(model: Any) -> None:
    predictor, before = CountingPredictor(model), row(model, 1)
    expected = predictor.predict([replace(before, reuse=FeatureReuse(None, None))])
    assert expected.reused == [False]
    again, reused, _ = predictor.predict([replace(before, reuse=FeatureReuse(None, before))])
    torch.testing.assert_close(again, expected.velocities, rtol=1e-5, atol=1e-5)
    assert reused == [True]

    computed: list[Any] = []
    for block in blocks(model):
        block.register_forward_pre_hook(lambda block, _: computed.append(block))
    try:
        velocities, reused, _ = predictor.predict([all_of(before, 3.0)])
    finally:
        for block in blocks(model):
            block._forward_pre_hooks.clear()
    assert len(computed) <= len(blocks(model)) - model.inputs.num_layers  # those of text or image alone
    assert reused == [True]
    assert not torch.allclose(velocities[0], again[0], atol=1e-3)


def test_what_all_blocks_added_is_computed_again_where_it_is_forgotten(model: Any) -> None:
    before = row(model, 1)
    far = all_of(before, 0.5)
    remembering, other_replica = CountingPredictor(model), CountingPredictor(model, cache_bytes=1)
    remembering.predict([first(before)])
    expected = remembering.predict([far, all_of(row(model, 2), 0.5)])
    alone = other_replica.predict([far])
    assert torch.equal(alone.velocities[0], expected.velocities[0])
    assert remembering.passes == [1, 1, 2]
    assert other_replica.passes == [1, 1]
    assert remembering.group(far) != remembering.group(later(before, 0.5))


def by_changes(before: Row, change: float, added: float, threshold: float = 1.0) -> Row:
    """A row further on, whose blocks' part is reused if what its input has changed by adds up to little."""
    so_far = InputChange(before, added, (2.0, 0.0))
    return replace(later(before, change), reuse=FeatureReuse(threshold, before, so_far))


def test_changes_of_the_input_add_up_until_all_is_computed(model: Any) -> None:
    predictor, before = CountingPredictor(model), row(model, 1)
    predictor.predict([first(before)])
    near = by_changes(before, 0.01, added=0.25)
    (reused,), (decision,), (added,) = predictor.predict([near])
    assert decision
    assert 0.25 < added < 0.5
    expected = predictor.predict([replace(near, reuse=FeatureReuse(None, before))])
    assert torch.equal(reused, expected.velocities[0])

    (computed,), (decision,), (none,) = predictor.predict([by_changes(before, 0.01, 0.25, added)])
    assert not decision  # it is not below
    assert none == 0
    assert torch.equal(computed, predictor.predict([replace(near, reuse=None)]).velocities[0])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_what_the_input_decides_depends_neither_on_the_replica_nor_on_company(model: Any) -> None:
    rows = [by_changes(row(model, seed), 0.01, added) for seed, added in ((1, 0.1), (2, 2.0), (3, 0.2))]
    remembering = CountingPredictor(model)
    remembering.predict([first(row(model, seed)) for seed in (1, 2, 3)])
    together = remembering.predict(rows)
    assert together.reused == [True, False, True]
    for index, each in enumerate(rows):
        velocities, (reused,), (added,) = CountingPredictor(model, max_rows=1, cache_bytes=1).predict([each])
        assert torch.equal(velocities[0], together.velocities[index])
        assert (reused, added) == (together.reused[index], together.sums[index])


def test_references_are_computed_in_passes_of_the_usual_size(model: Any) -> None:
    predictor = CountingPredictor(model, max_rows=2)
    rows = [later(row(model, seed), 0.001) for seed in (1, 2)]
    predictor.predict(rows)
    predictor.predict(rows)
    assert predictor.passes == [2, 2, 2]


def test_rows_that_do_not_reuse_are_not_remembered(model: Any) -> None:
    predictor, plain = CountingPredictor(model), row(model, 3)
    predictor.predict([plain, first(row(model, 1))])
    predictor.passes.clear()
    predictor.predict([later(plain, 0.001)])
    assert predictor.passes == [1, 1]


def test_the_cache_is_bounded_in_bytes(model: Any) -> None:
    predictor = CountingPredictor(model, cache_bytes=100_000)
    for seed in range(40):
        predictor.predict([first(row(model, seed))])
    cache = predictor.features
    assert cache._bytes <= 100_000
    assert cache._bytes == sum(entry_bytes(*entry) for entry in cache._entries.items())
    assert len(cache._entries) < 40


def test_features_hold_no_conditioning_that_its_own_cache_forgot(model: Any) -> None:
    predictor, first = CountingPredictor(model), row(model, 1)
    predictor.predict([replace(first, reuse=FeatureReuse(0.2, None))])
    forgotten = weakref.ref(first.conditioning)
    del first
    gc.collect()
    assert forgotten() is None
