"""The schedules that checkpoints ask for, and those that cannot be followed."""

from typing import Any

import pytest

from triptych.errors import StartError
from triptych_coordinator.sampling.sigmas import FlowSchedule, Grid
from triptych_coordinator.scheduler_config import flow_schedule


@pytest.mark.parametrize(
    "option",
    [
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "invert_sigmas",
        "stochastic_sampling",
    ],
)
def test_an_unsupported_scheduler_option_is_refused(option: str) -> None:
    assert flow_schedule({"shift": 3.0, option: False}) == FlowSchedule(3.0)
    with pytest.raises(StartError, match=option):
        flow_schedule({"shift": 3.0, option: True})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ({"shift_terminal": 1.5}, "shift_terminal is 1.5"),
        ({"shift_terminal": "late"}, "shift_terminal is 'late'"),
        ({"shift": float("inf")}, "shift"),
        ({"use_dynamic_shifting": True, "time_shift_type": "cubic"}, "'exponential' or 'linear'"),
        ({"use_dynamic_shifting": True, "base_shift": None}, "base_shift is None"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "both 256"),
        (
            {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": -1},
            "small pictures by -1",
        ),
        ({"num_train_timesteps": 500}, "500"),
        ({"shift": 0}, "shift"),
        ({"shift": float("nan")}, "shift"),
        ({"shift": "much"}, "shift"),
    ],
)
def test_a_scheduler_that_cannot_be_followed_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(StartError, match=says):
        flow_schedule(config)


def test_one_step_has_nothing_to_stretch() -> None:
    schedule = flow_schedule({"shift": 3.0, "shift_terminal": 0.1})
    assert schedule.sigmas(1, image_tokens=16).tolist() == [1, 0]
    assert schedule.sigmas(5, image_tokens=16)[-2:].tolist() == pytest.approx([0.1, 0])


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_larger_pictures_stay_longer_at_high_noise(kind: str) -> None:
    schedule = flow_schedule({"use_dynamic_shifting": True, "time_shift_type": kind}, Grid.EVEN)
    small, large = schedule.sigmas(8, image_tokens=256), schedule.sigmas(8, image_tokens=4096)
    assert (large[1:-1] > small[1:-1]).all()
