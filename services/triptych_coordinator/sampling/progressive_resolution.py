"""Progressive resolution: the first steps at a smaller size, then with latents that have grown.

Noise hides the details of a picture until late, so a model that sees them too soon computes little but noise
(Xiao et al., 2026, Spectral Progressive Diffusion, arXiv 2605.18736, section 3; SGLang's "dct_rewind").
Latents grow in their frequencies: an orthonormal cosine transform keeps white noise white, so what is missing
above the old frequencies is noise of the new size.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.ranges import Range
from triptych_coordinator.sampling.solvers.solution import (
    Evaluate,
    Latents,
    Noise,
    Reached,
    Solution,
    Solver,
    answer,
    begin,
)

Spectrum = NDArray[np.float64]
"""Coefficients of cosines, [B, C, h, w], the lowest frequencies first.

Of 64 bits: where machines' libraries round differently, next to no float32 shows it.
"""
MAX_GROWTHS = 3


@dataclass(frozen=True)
class ProgressiveResolution:
    """Height and width double with the first step that begins at or below each of the levels."""

    sigmas: tuple[Annotated[float, Range(0.01, 1)], ...]

    def violations(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the list: a field's path and what it must be."""
        if not 1 <= len(self.sigmas) <= MAX_GROWTHS:
            yield "sigmas", f"must hold 1 to {MAX_GROWTHS} levels, not {len(self.sigmas)}"
        for index, (before, sigma) in enumerate(pairwise(self.sigmas), 1):
            if sigma >= before:
                yield f"sigmas[{index}]", f"must be below the level before, {before:g}"

    def solve(
        self, solver: Solver, latents: Latents, sigmas: NDArray[np.float32], noise: Noise, multiple: int
    ) -> Solution:
        """As solver.solve, for latents that are noise alone. Every size is solved by itself.

        `multiple`: what height and width must be multiples of.
        """
        full = spectrum(latents)
        sizes = _sizes(latents.shape[2], latents.shape[3], len(self.sigmas), multiple)
        steps = [0, *self._growing_steps(sigmas), len(sigmas) - 1]
        stages = [(*size, *ends) for size, ends in zip(sizes, pairwise(steps), strict=True)]
        stages = [stage for stage in stages if stage[2] < stage[3]]
        height, width, *_ = stages[0]
        latents = of_spectrum(full[..., :height, :width])
        for height, width, first, last in stages:
            levels = sigmas[first : last + 1].copy()
            if first > 0:
                latents, levels[0] = grown(latents, levels[0], full[..., :height, :width])

            def small_noise(height: int = height, width: int = width) -> Latents:
                return of_spectrum(spectrum(noise())[..., :height, :width])

            latents = yield from _end_of(solver.solve(latents, levels, small_noise))

    def _growing_steps(self, sigmas: NDArray[np.float32]) -> list[int]:
        """Which step is the first at each size but the smallest; the last step at the latest."""
        starts, last = sigmas[:-1], len(sigmas) - 2
        return [int(np.argmax(starts <= np.float32(s))) if starts[-1] <= s else last for s in self.sigmas]


def grown(latents: Latents, sigma: np.float32, noise: Spectrum) -> tuple[Latents, np.float32]:
    """Latents [B, C, h, w] at the noise level sigma at the size of `noise`, and their level there.

    Coefficients of the same picture grow with its size, those of noise do not: at s times the size, low
    frequencies are (1 - sigma) / s of the picture and sigma of noise. That is (1 - sigma') and sigma' at
    sigma' = s sigma / (1 + (s - 1) sigma), the shift of a noise level with the resolution (Esser et al.,
    2024, section 5.3.2), when all is multiplied with s / (1 + (s - 1) sigma).

    noise: of the new size, [B, C, H, W]; its low frequencies are not used.
    """
    (height, width), (new_height, new_width) = latents.shape[2:], noise.shape[2:]
    coefficients = float(sigma) * noise
    coefficients[..., :height, :width] = spectrum(latents)
    scale = np.sqrt(new_height * new_width / (height * width))
    factor = scale / (1 + (scale - 1) * float(sigma))
    return of_spectrum(factor * coefficients), np.float32(factor * sigma)


def spectrum(latents: Latents) -> Spectrum:
    """The orthonormal DCT-II of each channel of latents [B, C, h, w]."""
    coefficients: Spectrum = _cosines(latents.shape[2]) @ latents @ _cosines(latents.shape[3]).T
    return coefficients


def of_spectrum(coefficients: Spectrum) -> Latents:
    """The inverse of `spectrum`, float32."""
    cosines = _cosines(coefficients.shape[2]), _cosines(coefficients.shape[3])
    latents: Latents = (cosines[0].T @ coefficients @ cosines[1]).astype(np.float32)
    return latents


def _cosines(size: int) -> NDArray[np.float64]:
    """A cosine per row, [size, size]: the orthonormal basis of the DCT-II."""
    frequency, place = np.arange(size)[:, None], np.arange(size)
    angles = np.pi * frequency * (2 * place + 1) / (2 * size)
    cosines: NDArray[np.float64] = np.sqrt(2 / size) * np.cos(angles)
    cosines[0] *= np.sqrt(0.5)
    return cosines


def _sizes(height: int, width: int, growths: int, multiple: int) -> list[tuple[int, int]]:
    """Heights and widths before each growth, and behind the last: halves, rounded to the multiple."""
    smaller = [
        tuple(max(round(side / 2**halvings / multiple), 1) * multiple for side in (height, width))
        for halvings in range(growths, 0, -1)
    ]
    return [*((h, w) for h, w in smaller), (height, width)]


def _end_of(solution: Solution) -> Generator[Evaluate | Reached, Latents, Latents]:
    """Passes on what a solution asks; returns the latents that it ends with."""
    asked, latents = begin(solution), np.empty(0, np.float32)
    while asked is not None:
        answered = yield asked
        if isinstance(asked, Reached):
            latents = answered
        asked = answer(solution, answered)
    return latents
