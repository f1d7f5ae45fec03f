"""How the benchmark of saved work compares pictures."""

import math

import numpy as np
import pytest

from benchmarks.quality.saved_work import Measured, report
from training.psnr import psnr


def test_psnr_is_of_the_largest_value_and_the_mean_squared_error() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black + 1, black) == pytest.approx(48.13, abs=0.01)


def test_a_choice_is_told_by_its_medians_and_its_worst_picture() -> None:
    measured = {"half": Measured([20, 30, 40], [0.5, 0.4, 9], [0.5, 0.4, 0.6], [40.0, 20.0, math.inf])}
    (line,) = report(measured)
    assert line == {
        "choice": "half",
        "rows": 30,
        "seconds": 0.5,
        "seconds_ratio": 0.5,
        "psnr": 40.0,
        "worst_psnr": 20.0,
    }
