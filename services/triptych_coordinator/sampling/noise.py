"""Gaussian noise in numpy: the bits of torch.randn with a CPU generator, without torch.

torch fills float32 tensors of 16 elements or more with a vectorised Box-Muller transform whose logarithm,
sine and cosine are the Cephes float32 polynomials, compiled to fused multiply-adds
(aten/src/ATen/native/cpu: normal_fill in DistributionTemplates.h, log256_ps and sincos256_ps in
avx_mathfun.h). That is what torch does on x86-64 CPUs with AVX2, AVX-512 ones included; its other builds
differ in the last bits. Here every machine gives the AVX2 numbers.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]

_BLOCK = 16
_TWO_PI = np.float32(2 * math.pi)
_FOUR_OVER_PI = np.float32(1.27323954473516)
_SQRT_HALF = np.float32(0.707106781186547524)
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_MINUS_QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)


def randn(shape: tuple[int, ...], seed: int) -> Float32:
    """Standard normal noise, equal to torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).

    Args:
        shape: of the result.
        seed: 0 to 2**64 - 1; torch's CPU generator uses its low 32 bits.

    Returns:
        float32, of `shape`.
    """
    return _draw(_twister(seed), shape)


class NoiseStream:
    """Draws one after the other for a batch, each image's from its own seed, as torch's generators go on."""

    def __init__(self, shape: tuple[int, ...], seeds: Sequence[int]) -> None:
        """`shape` is one image's latents: at least 16 numbers (below, torch keeps one for the next draw)."""
        self._shape = shape
        self._twisters = [_twister(seed) for seed in seeds]

    def __call__(self) -> Float32:
        """The next draw: float32 [seeds, *shape]."""
        return np.stack([_draw(twister, self._shape) for twister in self._twisters])


def interpolated(a: Float32, b: Float32, strength: float) -> Float32:
    """The spherical interpolation of two noises, sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b.

    w is the angle between them (Shoemake, 1985). What is made of Gaussian noise in this way is as long as
    noise is. Where they point the same way, a straight line takes its place. At 0 and 1, a and b to the bit.
    """
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    lengths = math.sqrt(np.square(wide_a).sum() * np.square(wide_b).sum())
    angle = math.acos(min(1.0, max(-1.0, float((wide_a * wide_b).sum()) / lengths)))
    if math.sin(angle) < 1e-4:
        return np.float32(1 - strength) * a + np.float32(strength) * b
    of_a, of_b = (math.sin(part * angle) / math.sin(angle) for part in (1 - strength, strength))
    return np.float32(of_a) * a + np.float32(of_b) * b


class VariedNoise:
    """Draws between those of two seeds per picture: strength 0 is the one, 1 the other, to the bit."""

    def __init__(self, one: NoiseStream, other: NoiseStream, strengths: Sequence[float]) -> None:
        """A strength per picture, from 0 to 1."""
        self._one, self._other = one, other
        self._strengths = strengths

    def __call__(self) -> Float32:
        """The next draw: float32 [seeds, *shape]."""
        pairs = zip(self._one(), self._other(), self._strengths, strict=True)
        return np.stack([interpolated(*pair) for pair in pairs])


def _twister(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed & 0xFFFFFFFF)  # the Mersenne twister of torch, seeded the same way


def _draw(generator: np.random.RandomState, shape: tuple[int, ...]) -> Float32:
    count = math.prod(shape)
    noise = _fill(generator, count) if count >= _BLOCK else _few(generator, count)
    return noise.reshape(shape)


def _fill(generator: np.random.RandomState, count: int) -> Float32:
    """normal_fill: blocks of 16; if count is no multiple of 16, the last 16 values are drawn again."""
    noise = np.empty(count, np.float32)
    whole = count - count % _BLOCK
    uniforms = _uniforms(generator, count)
    noise[:whole] = _box_muller(uniforms[:whole])
    if whole < count:
        noise[-_BLOCK:] = _box_muller(_uniforms(generator, _BLOCK))
    return noise


def _few(generator: np.random.RandomState, count: int) -> Float32:
    """normal_distribution<double>, which torch uses below 16 elements: a cosine and a sine from two draws."""
    noise: list[float] = []
    while len(noise) < count:
        u1, u2 = _uniform_double(generator), _uniform_double(generator)
        radius = math.sqrt(-2.0 * math.log1p(-u2))
        theta = 2.0 * math.pi * u1
        noise += [radius * math.cos(theta), radius * math.sin(theta)]
    return np.array(noise[:count], np.float32)


def _words(generator: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    return generator.randint(0, 1 << 32, count, dtype=np.uint32)


def _uniforms(generator: np.random.RandomState, count: int) -> Float32:
    """count numbers in [0, 1) of 24 bits."""
    return (_words(generator, count) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)


def _uniform_double(generator: np.random.RandomState) -> float:
    """A number in [0, 1) of 53 bits."""
    high, low = (int(word) for word in _words(generator, 2))
    return float((high << 32 | low) & (1 << 53) - 1) * 2.0**-53


def _box_muller(uniforms: Float32) -> Float32:
    """Blocks of 16 uniforms to blocks of 16 normals: 8 radii and 8 angles to 8 cosines and 8 sines."""
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - blocks[:, 0]))
    sine, cosine = _sincos(_TWO_PI * blocks[:, 1])
    normals = np.stack([radius * cosine, radius * sine], axis=1)
    return normals.reshape(-1) + np.float32(0)  # torch adds a mean of 0, which turns -0 into 0


def _log(x: Float32) -> Float32:
    """log256_ps for x in (0, 1]: the mantissa's polynomial plus exponent times ln 2."""
    bits = x.view(np.int32)
    exponent = ((bits >> 23) - 126).astype(np.float32)
    mantissa = (bits & 0x007FFFFF | 0x3F000000).view(np.float32)  # in [0.5, 1)
    low = mantissa < _SQRT_HALF
    exponent = exponent - low.astype(np.float32)
    m = mantissa - np.float32(1) + np.where(low, mantissa, np.float32(0))
    z = m * m
    y = _polynomial(_LOG, m)
    y = _fma(y * m, z, exponent * _LN2_LOW)
    y = _fma(z, np.float32(-0.5), y)
    return _fma(exponent, _LN2_HIGH, m + y)


def _sincos(x: Float32) -> tuple[Float32, Float32]:
    """sincos256_ps for x >= 0: multiples of pi/4 come off in three parts, then two polynomials take turns."""
    octant = ((x * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float32)
    for part in _MINUS_QUARTER_PI:
        x = _fma(y, np.float32(part), x)
    z = x * x
    cosine = _fma(_polynomial(_COSINE, z) * z, z, z * np.float32(-0.5)) + np.float32(1)
    sine = _fma(_polynomial(_SINE, z) * z, x, x)
    straight = octant & 2 == 0
    sin = np.where(straight, sine, cosine)
    cos = np.where(straight, cosine, sine)
    return np.where(octant & 4, -sin, sin), np.where((octant - 2) & 4, cos, -cos)


def _polynomial(coefficients: tuple[float, ...], x: Float32) -> Float32:
    """Horner's scheme, the highest power first."""
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = _fma(y, x, np.float32(coefficient))
    return y


def _fma(a: Float32 | np.float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    """a * b + c in float32 with a single rounding.

    The product of two float32 is exact in float64, so only the sum is rounded, to 53 bits, before the
    rounding to 24. The two roundings differ from one where the first lands exactly half-way between two
    float32: there the sum is moved one float64 towards the part that the first rounding lost.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    halfway = total.view(np.int64) & 0x1FFFFFFF == 0x10000000
    if halfway.any():
        p, s = product[halfway], total[halfway]
        addend = np.broadcast_to(np.float64(c), total.shape)[halfway]
        lost = _two_sum_error(p, addend, s)
        total[halfway] = np.where(lost == 0, s, np.nextafter(s, np.copysign(np.inf, lost)))
    return total.astype(np.float32)


def _two_sum_error(
    a: NDArray[np.float64], b: NDArray[np.float64], total: NDArray[np.float64]
) -> NDArray[np.float64]:
    """a + b - total, exactly (Knuth's TwoSum)."""
    b_rounded = total - a
    return (a - (total - b_rounded)) + (b - b_rounded)
