"""Latents that grow: what becomes of picture and noise, which steps have which size, whose noise it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from triptych_coordinator.sampling.noise import NoiseStream
from triptych_coordinator.sampling.progressive_resolution import (
    ProgressiveResolution,
    Spectrum,
    grown,
    of_spectrum,
    spectrum,
)
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents, Reached, answer, begin

SHAPE = (3, 8, 12)
LEVELS = np.array([1, 0.9, 0.8, 0.6, 0.4, 0.2, 0], np.float32)


def noise(*seeds: int, shape: tuple[int, ...] = SHAPE) -> Latents:
    return NoiseStream(shape, seeds)()


def coarse_picture() -> Spectrum:
    """A picture without details that half the size does not have."""
    coefficients = spectrum(noise(5)) * 2
    coefficients[..., 4:, :] = coefficients[..., :, 6:] = 0
    return coefficients


def at_size(picture: Spectrum, height: int, width: int) -> Latents:
    scale = np.sqrt(picture.shape[2] * picture.shape[3] / (height * width))
    return of_spectrum(picture[..., :height, :width] / scale)


def to_the_picture(latents: Latents, sigma: Any) -> NDArray[np.float32]:
    """The velocity of the flow whose only picture is coarse_picture, at any size."""
    return (latents - at_size(coarse_picture(), *latents.shape[2:])) / np.float32(sigma)


def followed(
    choice: ProgressiveResolution,
    latents: Latents,
    solver: str = "euler",
    velocity: Callable[[Latents, Any], NDArray[np.float32]] = to_the_picture,
    multiple: int = 2,
    fresh: NoiseStream | None = None,
) -> tuple[list[tuple[tuple[int, ...], float]], list[Reached]]:
    """Size and noise level of every evaluation, and every step."""
    draws = fresh or NoiseStream(latents.shape[1:], [0] * len(latents))
    solution = choice.solve(SOLVERS[solver](), latents, LEVELS, draws, multiple)
    evaluations, steps, asked = [], [], begin(solution)
    while asked is not None:
        if isinstance(asked, Evaluate):
            evaluations.append((asked.latents.shape[2:], float(np.ravel(asked.sigma)[0])))
            asked = answer(solution, velocity(asked.latents, asked.sigma))
        else:
            steps.append(asked)
            asked = answer(solution, asked.latents)
    return evaluations, steps


def test_a_spectrum_has_the_mean_first_and_comes_back() -> None:
    latents = noise(1, 2)
    coefficients = spectrum(latents)
    assert np.allclose(coefficients[..., 0, 0], latents.mean(axis=(2, 3)) * np.sqrt(8 * 12), atol=1e-6)
    assert np.allclose(np.square(coefficients).sum(), np.square(latents).sum(dtype=np.float64))
    assert np.allclose(of_spectrum(coefficients), latents, atol=1e-6)


@given(sigma=st.floats(0.01, 1))
def test_what_grows_is_the_same_picture_under_noise_of_the_new_size(sigma: float) -> None:
    picture, of_noise = coarse_picture(), spectrum(noise(1))
    small = (1 - sigma) * at_size(picture, 4, 6) + sigma * of_spectrum(of_noise[..., :4, :6])
    latents, level = grown(small.astype(np.float32), np.float32(sigma), of_noise)
    assert float(level) == pytest.approx(2 * sigma / (1 + sigma), rel=1e-6)
    expected = (1 - level) * of_spectrum(picture) + level * noise(1)
    assert np.allclose(latents, expected, atol=1e-5)


def test_steps_below_a_level_are_of_the_full_size_and_one_begins_higher() -> None:
    evaluations, steps = followed(ProgressiveResolution((0.7,)), noise(1))
    grown_level = 2 * 0.6 / 1.6
    assert [size for size, _ in evaluations] == [(4, 6)] * 3 + [(8, 12)] * 3
    assert [sigma for _, sigma in evaluations] == pytest.approx([1, 0.9, 0.8, grown_level, 0.4, 0.2])
    assert [float(step.sigma) for step in steps] == pytest.approx(LEVELS[1:].tolist())
    assert np.allclose(steps[-1].latents, of_spectrum(coarse_picture()), atol=1e-5)


@pytest.mark.parametrize(
    ("sigmas", "sizes"),
    [
        ((0.8, 0.3), [(2, 4)] * 2 + [(4, 6)] * 3 + [(8, 12)]),
        ((0.9, 0.8, 0.7), [(2, 2), (2, 4), (4, 6), *[(8, 12)] * 3]),
        ((0.01,), [(4, 6)] * 5 + [(8, 12)]),
        ((1.0,), [(8, 12)] * 6),
        ((1.0, 0.5), [(4, 6)] * 4 + [(8, 12)] * 2),
        ((0.65, 0.6), [(2, 4)] * 3 + [(8, 12)] * 3),
    ],
)
def test_sizes_are_halves_rounded_to_what_the_transformer_takes(
    sigmas: tuple[float, ...], sizes: list[tuple[int, int]]
) -> None:
    evaluations, steps = followed(ProgressiveResolution(sigmas), noise(1))
    assert [size for size, _ in evaluations] == sizes
    assert len(steps) == 6
    assert steps[-1].latents.shape == (1, *SHAPE)


def test_the_noise_is_that_of_the_seed_coarse_at_first_and_fine_where_it_grows() -> None:
    seen: list[Latents] = []

    def still(latents: Latents, sigma: Any) -> NDArray[np.float32]:
        seen.append(latents)
        return np.zeros_like(latents)

    followed(ProgressiveResolution((0.5,)), noise(7), velocity=still)
    full, factor = spectrum(noise(7)), 2 / 1.4
    assert np.allclose(spectrum(seen[0]), full[..., :4, :6], atol=1e-5)
    grown_spectrum = spectrum(seen[4])
    assert np.allclose(grown_spectrum[..., :4, :6], factor * full[..., :4, :6], atol=1e-5)
    assert np.allclose(grown_spectrum[..., 4:, :], factor * 0.4 * full[..., 4:, :], atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_grows_and_an_image_of_a_batch_is_to_the_bit_what_it_is_alone(solver: str) -> None:
    def bent(latents: Latents, sigma: Any) -> NDArray[np.float32]:
        return np.asarray(np.sin(2 * latents + 3 * sigma) - latents, np.float32)

    choice = ProgressiveResolution((0.85, 0.5))

    def last(*seeds: int) -> Latents:
        fresh = NoiseStream(SHAPE, seeds)
        _, steps = followed(choice, fresh(), solver, bent, fresh=fresh)
        return steps[-1].latents

    both = last(1, 2)
    assert both.shape == (2, *SHAPE)
    for k, seed in enumerate((1, 2)):
        assert np.array_equal(both[k], last(seed)[0])
