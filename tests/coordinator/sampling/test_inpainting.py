"""The mathematics of editing, by hand."""

import numpy as np
import pytest

from triptych_coordinator.request.edits import Margins
from triptych_coordinator.sampling.inpainting import (
    Inpainting,
    Preserved,
    feathered,
    first_step,
    latent_mask,
    noised,
)
from triptych_coordinator.sampling.noise import NoiseStream, VariedNoise, interpolated, randn
from triptych_coordinator.sampling.solvers.solution import Latents, Reached

SHAPE = (4, 6, 5)


def noise(*seeds: int) -> Latents:
    return np.stack([randn(SHAPE, seed) for seed in seeds])


@pytest.mark.parametrize(
    ("strength", "first"), [(1.0, 0), (0.6, 4), (0.5, 5), (0.34, 6), (0.3, 7), (0.01, 9), (0.95, 0)]
)
def test_of_ten_steps_the_last_are_taken(strength: float, first: int) -> None:
    assert first_step(10, strength) == first


def test_noise_alone_is_left_at_sigma_one_and_the_picture_at_zero() -> None:
    clean, drawn = noise(1), noise(2)
    assert np.array_equal(noised(clean, drawn, np.float32(1)), drawn)
    assert np.array_equal(noised(clean, drawn, np.float32(0)), clean)
    assert noised(clean, drawn, np.float32(0.3)).dtype == np.float32


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_gives_the_picture() -> None:
    clean, drawn, reached = noise(1), noise(2), Reached(noise(3), np.float32(0.4))
    ones, zeros = np.ones(SHAPE[1:], np.float32), np.zeros(SHAPE[1:], np.float32)
    assert np.array_equal(Inpainting(ones, clean, drawn)(reached), reached.latents)
    kept = Inpainting(zeros, clean, drawn)
    assert np.array_equal(kept(reached), noised(clean, drawn, reached.sigma))
    assert np.array_equal(kept(Reached(noise(3), np.float32(0))), clean)


def test_a_grey_mask_blends() -> None:
    clean, reached = noise(1), Reached(noise(3), np.float32(0))
    grey = np.full(SHAPE[1:], 0.25, np.float32)
    edited = Inpainting(grey, clean, noise(2))(reached)
    assert np.allclose(edited, 0.75 * clean + 0.25 * reached.latents, atol=1e-6)


def test_a_latent_pixel_takes_the_largest_number_of_a_mask() -> None:
    mask = np.zeros((32, 24), np.float32)
    mask[8, 16], mask[1, 1], mask[31, 23], mask[30, 22] = 1, 0.5, 0.25, 0.75
    expected = np.zeros((4, 3))
    expected[1, 2], expected[0, 0], expected[3, 2] = 1, 0.5, 0.75
    assert np.array_equal(latent_mask(mask, Margins(), 8), expected)


def test_as_diffusers_does_it_a_latent_pixel_takes_the_mask_at_its_upper_left_corner() -> None:
    mask = np.zeros((32, 24), np.float32)
    mask[8, 16], mask[1, 1] = 1, 1
    assert np.argwhere(latent_mask(mask, Margins(), 8, as_diffusers=True)).tolist() == [[1, 2]]


def test_a_feathered_mask_rises_inside_alone_and_a_thin_stroke_is_whole_in_its_middle() -> None:
    mask = np.zeros((20, 30), bool)
    mask[:, 2:4], mask[:, 8:12], mask[:, 20:] = True, True, True
    rows = feathered(mask, 4)
    assert (rows == rows[0]).all()
    assert rows[0].tolist() == [
        0, 0, 1, 1, 0, 0, 0, 0, 0.5, 1, 1, 0.5, *[0] * 8, 0.25, 0.5, 0.75, *[1] * 7,
    ]  # fmt: skip
    assert np.array_equal(feathered(mask.T, 4), rows.T)
    assert feathered(np.ones((5, 5), bool), 4).min() == 1
    assert feathered(np.zeros((5, 5), bool), 4).max() == 0


def test_what_is_preserved_keeps_its_bits_and_the_rest_is_as_it_was_made() -> None:
    given, made = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    share = np.zeros((4, 6), np.float32)
    share[:, 3], share[:, 4:] = 0.25, 1
    both = Preserved(given, share)(made)
    assert both.dtype == np.uint8
    assert np.array_equal(both[:, :3], given[:, :3])
    assert np.array_equal(both[:, 4:], made[:, 4:])
    assert np.array_equal(both[:, 3], np.rint(0.75 * given[:, 3] + 0.25 * made[:, 3]))


def test_what_a_margin_reaches_into_is_made_anew() -> None:
    mask = np.zeros((32, 40), np.float32)
    assert latent_mask(mask, Margins(left=9, bottom=8), 8).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1],
    ]


def test_an_interpolation_begins_at_the_one_noise_and_ends_at_the_other_to_the_bit() -> None:
    a, b = noise(1)[0], noise(2)[0]
    assert np.array_equal(interpolated(a, b, 0.0), a)
    assert np.array_equal(interpolated(a, b, 1.0), b)


def test_an_interpolation_is_as_long_as_noise_is_and_turns_evenly() -> None:
    a, b = (each / np.linalg.norm(each) for each in (noise(1)[0], noise(2)[0]))
    angle = np.arccos((a * b).sum())
    for strength in (0.2, 0.5, 0.9):
        between = interpolated(a, b, strength)
        assert np.linalg.norm(between) == pytest.approx(1, abs=1e-6)
        assert np.arccos((a * between).sum()) == pytest.approx(strength * angle, abs=1e-5)


def test_noise_that_points_the_same_way_is_joined_by_a_line() -> None:
    a = noise(1)[0]
    assert np.allclose(interpolated(a, a, 0.3), a, atol=1e-6)


def test_every_draw_of_a_picture_varies_by_its_own_strength() -> None:
    varied = VariedNoise(NoiseStream(SHAPE, [1, 2]), NoiseStream(SHAPE, [7, 8]), [0.0, 1.0])
    one, other = NoiseStream(SHAPE, [1, 2]), NoiseStream(SHAPE, [7, 8])
    for _ in range(2):
        drawn, first, second = varied(), one(), other()
        assert np.array_equal(drawn[0], first[0])
        assert np.array_equal(drawn[1], second[1])


def test_however_little_is_made_anew_a_step_is_taken() -> None:
    assert first_step(28, 5e-17) == 27
    assert first_step(1, 0.001) == 0
