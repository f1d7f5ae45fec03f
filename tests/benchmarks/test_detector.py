"""The detector finds coloured shapes where they are, through blur and noise, and nothing else."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.detector import Detector, ground_colour
from tests.benchmarks.shapes import BACKGROUNDS, picture, sprites


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(sprites(), BACKGROUNDS, sizes=(48,))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", sprites())
def test_every_shape_is_found_where_it_is_on_every_background(
    detector: Detector, name: str, background: str
) -> None:
    image = picture(background, (name, 20, 60))
    (found,) = detector.detect(image)
    assert found.name == name
    assert found.score > 0.95
    assert (found.left, found.top, found.size) == pytest.approx((20, 60, 48), abs=2.1)
    assert detector.background(image) == background


def test_two_shapes_side_by_side_are_two_detections(detector: Detector) -> None:
    found = detector.detect(picture("white", ("disc", 4, 40), ("square", 72, 40)))
    assert {(detection.name, detection.left) for detection in found} == {("disc", 4), ("square", 72)}


def test_blur_and_noise_change_nothing(detector: Detector) -> None:
    soft = Image.fromarray(picture("blue", ("cross", 30, 30))).filter(ImageFilter.GaussianBlur(1))
    noisy = np.asarray(soft) + np.random.default_rng(0).normal(0, 8, (128, 128, 3))
    found = detector.detect(noisy.clip(0, 255).astype(np.uint8))
    assert [detection.name for detection in found] == ["cross"]


def test_an_empty_picture_has_no_objects(detector: Detector) -> None:
    assert detector.detect(picture("yellow")) == []


def test_a_soft_blot_of_an_objects_colour_is_no_object(detector: Detector) -> None:
    blot = Image.fromarray(picture("white", ("disc", 40, 40))).filter(ImageFilter.GaussianBlur(14))
    assert detector.detect(np.asarray(blot)) == []


def test_the_ground_is_read_past_objects_at_the_border() -> None:
    image = picture("blue", ("square", 0, 0), ("disc", 80, 0))
    assert ground_colour(image) * 255 == pytest.approx(BACKGROUNDS["blue"], abs=1)


def test_a_picture_of_another_size_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="128"):
        detector.detect(np.zeros((64, 64, 3), np.uint8))
