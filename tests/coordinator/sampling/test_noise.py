"""The noise, against numbers that torch 2.13 gave on an x86-64 CPU with AVX2."""

import hashlib

import numpy as np
import pytest

from triptych_coordinator.sampling.noise import _fma, randn

# torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed)), little-endian float32 in hexadecimal
TORCH = [
    (0, 1, "5c3fc53f"),
    (
        1,
        15,
        "604e293f47aa883e4ba17c3da70e1f3f3860e7be0b1e2abe14eac2bf136cc33eae8883bf3a2410bf276d64bfbd976ebdaa3348be"
        "eb3377bfd246d83e",
    ),
    (
        0,
        16,
        "851b90bf8a8093bfd64b80be5d25debe1545593f8327313f6dcca1bec15f07c03801a53ef4b4a1bfff30b33ebbc39d3e776ff53d"
        "936b9e3f8ef28e3f7c367dbe",
    ),
    (
        2**64 - 1,
        17,
        "da832ac0e36760bf69b1d2bf50cb09bfc4c89c3eec16d93e7601883e0e8e49c03c0036c0010ca8bf8f3aaebe8deaa6be08d9f2bc"
        "0635c43eead024bedee3fb3fcaebcf3f",
    ),
]
TORCH_SHA256 = [
    (7, 262144, "238674e7b4b169a08b5539db70d4729af70a811df5f1542b86c1e0c4864c5878"),
    (123456789, 65541, "917349ea9dd3dc768e0e51bb205a74650e58deb9f769474e0b5a89884c0d5093"),
]


@pytest.mark.parametrize(("seed", "count", "bits"), TORCH)
def test_noise_has_the_bits_of_torch(seed: int, count: int, bits: str) -> None:
    assert randn((count,), seed).astype("<f4").tobytes().hex() == bits


@pytest.mark.parametrize(("seed", "count", "sha256"), TORCH_SHA256)
def test_much_noise_has_the_bits_of_torch(seed: int, count: int, sha256: str) -> None:
    assert hashlib.sha256(randn((count,), seed).astype("<f4").tobytes()).hexdigest() == sha256


def test_noise_has_the_shape_asked_for_and_depends_on_the_low_32_bits_of_the_seed() -> None:
    noise = randn((4, 6, 5), 11)
    assert noise.shape == (4, 6, 5)
    assert noise.dtype == np.float32
    assert np.array_equal(noise.reshape(-1), randn((120,), 11 + 2**32))
    assert not np.array_equal(noise, randn((4, 6, 5), 12))


def test_fused_multiply_add_rounds_once() -> None:
    # a b + c lies just below the middle of two float32; rounded to float64 first, it lies in the middle
    a, b, c = np.float32([1 + 2**-23]), np.float32([2**-24 * (1 - 2**-23)]), np.float32([1 + 2**-23])
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert twice == np.float32(1 + 2**-22)
    assert _fma(a, b, c) == c
