"""The sigma schedules that a request can choose."""

import numpy as np
import pytest

from triptych_coordinator.sampling.sigma_schedules import (
    SIGMA_SCHEDULES,
    ExplicitSigmas,
    LinearSigmas,
    beta_quantile,
)
from triptych_coordinator.sampling.sigmas import FlowSchedule

OWN = FlowSchedule(3.0)
TOKENS = 256
of_n_steps = pytest.mark.parametrize("name", [name for name in SIGMA_SCHEDULES if name != "explicit"])


@of_n_steps
@pytest.mark.parametrize("num_steps", [1, 2, 3, 28, 200])
def test_levels_fall_strictly_from_1_to_0(name: str, num_steps: int) -> None:
    sigmas = SIGMA_SCHEDULES[name]().levels(OWN, num_steps, TOKENS)
    assert sigmas.dtype == np.float32
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas[0] == pytest.approx(1, abs=1e-6)
    assert sigmas[0] <= 1
    assert sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()


def test_linear_levels_are_shifted_once() -> None:
    assert LinearSigmas().levels(FlowSchedule(1.0), 4, TOKENS).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert LinearSigmas().levels(OWN, 4, TOKENS) == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_a_list_is_used_as_it_is() -> None:
    assert (
        ExplicitSigmas((0.9, 0.4)).levels(OWN, 2, TOKENS).tolist()
        == np.array([0.9, 0.4, 0], np.float32).tolist()
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (1.0, 1.0), (0.1, 3.0), (2.0, 0.5), (10.0, 10.0)])
def test_quantiles_are_those_of_scipy(alpha: float, beta: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    probabilities = np.linspace(0, 1, 41)
    ours = [beta_quantile(float(p), alpha, beta) for p in probabilities]
    assert ours == pytest.approx(stats.beta.ppf(probabilities, alpha, beta).tolist(), abs=1e-12)


def test_a_uniform_distribution_s_quantiles_are_the_probabilities() -> None:
    assert [beta_quantile(p / 8, 1, 1) for p in range(9)] == pytest.approx(
        [p / 8 for p in range(9)], abs=1e-12
    )
