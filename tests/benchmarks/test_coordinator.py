"""What the benchmark of the coordinator makes of two runs, by hand."""

import pytest

from benchmarks.speed.coordinator import Run, cost


def test_a_step_and_a_picture_have_their_own_cost() -> None:
    """10 pictures of 4 steps took 10 x (40 + 4 x 2) ms of a processor, of 40 steps 10 x (40 + 40 x 2)."""
    one = cost(Run(10, 4, 1.0, 0.48), Run(10, 40, 2.0, 1.2))
    assert one.step_milliseconds == pytest.approx(2.0)
    assert one.picture_milliseconds == pytest.approx(40.0)
    assert one.steps_per_second == pytest.approx(200.0)
    assert one.gpus(50, steps=20) == pytest.approx(50 / (2 + 40 / 20))
