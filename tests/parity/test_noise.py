"""The noise against torch's CPU generator, to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych_coordinator.sampling.noise import NoiseStream, randn

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch's builds without AVX2 make other noise",
)


def same_bits(shape: tuple[int, ...], seed: int) -> bool:
    reference = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    return np.array_equal(randn(shape, seed).view(np.int32), reference.view(np.int32))


@settings(deadline=None, max_examples=200)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_any_size_and_seed(count: int, seed: int) -> None:
    assert same_bits((count,), seed)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 262144, 262147, 1_000_003])
def test_sizes_at_the_edges(count: int) -> None:
    assert same_bits((count,), 5)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_seeds_at_the_edges(seed: int) -> None:
    assert same_bits((2, 16, 24, 18), seed)


def test_a_stream_goes_on_as_torchs_generators_do() -> None:
    seeds, shape = (3, 2**40 + 7), (4, 5, 7)
    stream = NoiseStream(shape, seeds)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for _ in range(3):
        expected = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        assert np.array_equal(stream(), expected.numpy())
