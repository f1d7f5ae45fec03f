"""What counts as a right picture, and how sure a score is."""

import numpy as np
import pytest

from benchmarks.adherence import Sample, draw_samples, position_prompt, scores
from benchmarks.detector import Detection
from benchmarks.scoring import judge, relation_of, score_images, wilson_interval
from training.scenes import SPRITE_SIZES, PlacedObject, Scene, Sprites, is_heldout, render

SINGLE = Scene((PlacedObject("zebra", 96, 16, 16),), None, "red")
PAIR = Scene((PlacedObject("zebra", 64, 0, 32), PlacedObject("tent", 64, 64, 32)), "left of", "blue")


def found(name: str, left: float, top: float) -> Detection:
    return Detection(name, left, top, 60, 0.9)


def test_all_that_was_asked_for_is_a_right_picture() -> None:
    verdict = judge(PAIR, [found("tent", 66, 34), found("zebra", 2, 30)], "blue")
    assert verdict.everything


def test_swapped_objects_are_there_but_out_of_place() -> None:
    verdict = judge(PAIR, [found("tent", 2, 34), found("zebra", 66, 34)], "blue")
    assert verdict.objects
    assert not verdict.position


def test_one_of_two_is_not_both() -> None:
    verdict = judge(PAIR, [found("zebra", 2, 34)], "blue")
    assert verdict.any_object
    assert not verdict.objects


def test_an_uninvited_or_doubled_object_is_wrong() -> None:
    zebra = found("zebra", 16, 16)
    assert not judge(SINGLE, [zebra, found("tent", 66, 66)], "red").objects
    assert not judge(SINGLE, [zebra, found("zebra", 66, 66)], "red").objects


def test_another_background_spoils_everything_but_not_the_object() -> None:
    verdict = judge(SINGLE, [found("zebra", 16, 16)], "pink")
    assert verdict.objects
    assert not verdict.everything


@pytest.mark.parametrize(
    ("second", "relation"),
    [((90, 40), "left of"), ((0, 60), "right of"), ((50, 120), "above"), ((40, 2), "below")],
)
def test_the_longer_distance_decides_the_relation(second: tuple[float, float], relation: str) -> None:
    assert relation_of((50, 50), second) == relation


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (50, 50, (0.9286, 1.0)), (81, 263, (0.2553, 0.3662))],
)
def test_wilson_intervals_as_published(successes: int, trials: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=1e-3)


def test_no_trials_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(0, 0)


def test_scores_are_per_category() -> None:
    samples = [Sample("one", SINGLE, "", 0), Sample("one", SINGLE, "", 1), Sample("two", PAIR, "", 2)]
    table = scores(samples, [True, False, True])
    assert table["one"]["score"] == 0.5
    assert (table["two"]["right"], table["two"]["total"]) == (1, 1)


def test_every_prompt_names_a_combination_that_training_never_saw() -> None:
    for sample in draw_samples(20, seed=3):
        names = [placed.name for placed in sample.scene.objects]
        assert is_heldout(*names, *([] if len(names) > 1 else [sample.scene.background]))


def test_the_same_seed_draws_the_same_prompts_and_each_picture_has_its_own() -> None:
    samples = draw_samples(3, seed=10)
    assert samples == draw_samples(3, seed=10)
    assert [sample.seed for sample in samples] == list(range(10, 10 + len(samples)))


def test_a_position_prompt_leaves_the_background_out() -> None:
    assert position_prompt(PAIR) == "a zebra to the left of a tent"


def test_rendered_scenes_score_one_and_swapped_pictures_zero() -> None:
    sprites = Sprites(
        {(name, size): _sprite(name, size) for name in ("zebra", "tent") for size in SPRITE_SIZES.values()}
    )
    images = np.stack([render(SINGLE, sprites), render(PAIR, sprites)])
    right = score_images(images, [SINGLE, PAIR], sprites)
    assert set(right.values()) == {1.0}
    wrong = score_images(images[::-1], [SINGLE, PAIR], sprites)
    assert wrong["single_all"] == wrong["pair_objects"] == wrong["background"] == 0
    assert set(score_images(images[:1], [SINGLE], sprites)) == {"single_object", "single_all", "background"}


def _sprite(name: str, size: int) -> np.ndarray:
    """A yellow disc for a zebra, a white square for a tent."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    inside = np.hypot(x, y) < 0.45 if name == "zebra" else (abs(x) < 0.4) & (abs(y) < 0.4)
    colour = (250, 220, 60) if name == "zebra" else (240, 240, 250)
    alpha = inside.astype(np.float32)[..., None]
    return np.concatenate([alpha * np.float32(colour), alpha], axis=2)
