"""What every solver keeps to: its order, its cost, its noise, one image's independence of the others."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.coordinator.sampling.flows import (
    MEAN,
    SHAPE,
    STD,
    curved,
    curved_path,
    gaussian,
    gaussian_path,
    solved,
    waves,
)
from triptych_coordinator.sampling.noise import NoiseStream, randn
from triptych_coordinator.sampling.sigma_schedules import SIGMA_SCHEDULES
from triptych_coordinator.sampling.sigmas import FlowSchedule
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.sampling.solvers.solution import Evaluate, Latents, Reached

OWN = FlowSchedule(3.0)
STOCHASTIC: Mapping[str, Mapping[str, float]] = {
    "lcm": {},
    "stochastic_euler": {"noise_fraction": 0.6},
    "euler_ancestral": {"eta": 0.7},
}
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def noise(*seeds: int) -> Latents:
    return np.stack([randn(SHAPE, seed) for seed in seeds])


def root_mean_square(errors: Latents) -> float:
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def even(first: float, last: float, num_steps: int) -> NDArray[np.float32]:
    return np.linspace(first, last, num_steps + 1).astype(np.float32)


@pytest.mark.parametrize(
    ("solver", "order", "parameters"),
    [
        ("euler", 1, {}),
        ("heun", 2, {}),
        ("midpoint", 2, {}),
        ("dpmpp_2m", 2, {}),
        ("unipc", 3, {}),
        ("adaptive", 3, {"absolute_tolerance": 1, "relative_tolerance": 1}),  # a step for each level
    ],
)
def test_the_error_falls_as_the_order_says(solver: str, order: int, parameters: Mapping[str, float]) -> None:
    exact = curved_path(noise(1), 0.9, 0.1)
    errors = []
    for num_steps in (16, 32):
        latents, _ = solved(solver, curved, noise(1), even(0.9, 0.1, num_steps), **parameters)
        errors.append(root_mean_square(latents - exact))
    assert order - 0.2 < math.log2(errors[0] / errors[1]) < order + 0.2, errors


def test_higher_orders_are_closer_from_noise_to_picture() -> None:
    sigmas = SIGMA_SCHEDULES["linear"]().levels(OWN, 16, 1)
    exact = gaussian_path(noise(1), 0)
    errors = {
        solver: float(np.abs(solved(solver, gaussian, noise(1), sigmas)[0] - exact).max())
        for solver in ("euler", "heun", "midpoint", "dpmpp_2m", "unipc", "adaptive")
    }
    assert all(errors[solver] < errors["euler"] / 2 for solver in errors if solver != "euler"), errors


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def test_solvers_over_lambda_want_the_linear_levels(solver: str) -> None:
    exact = gaussian_path(noise(1), 0)
    linear, own = (
        float(
            np.abs(
                solved(solver, gaussian, noise(1), SIGMA_SCHEDULES[name]().levels(OWN, 16, 1))[0] - exact
            ).max()
        )
        for name in ("linear", "checkpoint")
    )
    assert linear < own / 2


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [
        ("euler", 7),
        ("heun", 13),
        ("midpoint", 14),
        ("dpmpp_2m", 7),
        ("unipc", 7),
        ("lcm", 7),
        ("euler_ancestral", 7),
        ("stochastic_euler", 7),
    ],
)
def test_a_solver_costs_what_it_says(solver: str, evaluations: int) -> None:
    assert solved(solver, waves, noise(1), OWN.sigmas(7, 1))[1] == evaluations


@every_solver
@pytest.mark.parametrize("schedule", ["checkpoint", "linear", "karras", "beta"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 9])
def test_no_grid_gives_infinite_numbers(solver: str, schedule: str, num_steps: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        latents, _ = solved(solver, waves, noise(1), SIGMA_SCHEDULES[schedule]().levels(OWN, num_steps, 1))
    assert np.isfinite(latents).all()


@every_solver
def test_an_image_of_a_batch_is_to_the_bit_what_it_is_alone(solver: str) -> None:
    seeds, sigmas = (1, 2, 3), OWN.sigmas(5, 1)
    latents = noise(*seeds) * np.array([1, 3, 0.1], np.float32).reshape(-1, 1, 1, 1)
    parameters = STOCHASTIC.get(solver, {})
    batch, _ = solved(solver, waves, latents, sigmas, seeds, **parameters)
    for k, seed in enumerate(seeds):
        alone, _ = solved(solver, waves, latents[k : k + 1], sigmas, (seed,), **parameters)
        assert np.array_equal(batch[k], alone[0])


@every_solver
def test_the_seed_alone_decides(solver: str) -> None:
    first, second, other = (
        solved(solver, waves, noise(1), OWN.sigmas(5, 1), (seed,))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert np.array_equal(first, other) == (solver not in STOCHASTIC)


@every_solver
def test_a_solver_goes_on_from_edited_latents(solver: str) -> None:
    solution = SOLVERS[solver]().solve(noise(1), OWN.sigmas(3, 1), NoiseStream(SHAPE, [1]))
    asked: Any = next(solution)
    edits = 0
    while edits < 2:
        if isinstance(asked, Reached):
            edited = asked.latents + 1
            edits += 1
            asked = solution.send(edited)
            assert isinstance(asked, Evaluate)
            assert np.array_equal(asked.latents, edited)
        else:
            asked = solution.send(waves(asked.latents, asked.sigma))


@pytest.mark.parametrize(
    ("solver", "parameters"), [("stochastic_euler", {"noise_fraction": 0}), ("euler_ancestral", {"eta": 0})]
)
def test_without_noise_a_stochastic_solver_is_euler(solver: str, parameters: Mapping[str, float]) -> None:
    sigmas = OWN.sigmas(9, 1)
    euler, _ = solved("euler", waves, noise(1), sigmas)
    assert np.allclose(solved(solver, waves, noise(1), sigmas, **parameters)[0], euler, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "parameters"),
    [("stochastic_euler", {"noise_fraction": 0.2}), ("euler_ancestral", {"eta": 0.7})],
)
def test_fresh_noise_keeps_the_distribution(solver: str, parameters: Mapping[str, float]) -> None:
    latents = randn((1, 4, 64, 64), 5)
    pictures, _ = solved(solver, gaussian, latents, even(1, 0, 100), (5,), **parameters)
    assert float(pictures.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(pictures.std()) == pytest.approx(STD, rel=0.03)


def test_much_fresh_noise_at_every_step_narrows_the_distribution() -> None:
    latents = randn((1, 4, 64, 64), 5)
    spread = [
        float(solved("stochastic_euler", gaussian, latents, even(1, 0, 100), (5,), noise_fraction=f)[0].std())
        for f in (0.2, 0.6, 1)
    ]
    assert STD > spread[0] > spread[1] > spread[2]


def test_lcm_is_stochastic_euler_with_nothing_but_fresh_noise() -> None:
    sigmas = OWN.sigmas(4, 1)
    lcm, _ = solved("lcm", waves, noise(1), sigmas, (1,))
    assert np.array_equal(lcm, solved("stochastic_euler", waves, noise(1), sigmas, (1,), noise_fraction=1)[0])


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc", "stochastic_euler", "euler_ancestral", "lcm"])
def test_one_step_is_euler_s(solver: str) -> None:
    sigmas = OWN.sigmas(1, 1)
    euler, _ = solved("euler", waves, noise(1), sigmas)
    assert np.allclose(solved(solver, waves, noise(1), sigmas)[0], euler, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_smaller_tolerance_is_closer_and_costs_more(num_steps: int) -> None:
    exact, sigmas = gaussian_path(noise(1), 0), even(1, 0, num_steps)
    errors, costs = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        latents, evaluations = solved(
            "adaptive", gaussian, noise(1), sigmas, absolute_tolerance=tolerance, relative_tolerance=tolerance
        )
        errors.append(root_mean_square(latents - exact))
        costs.append(evaluations)
        assert errors[-1] < 3 * tolerance
    assert errors[0] >= errors[2] > errors[3]
    assert errors[1] > errors[3]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1] < 200


def test_velocities_without_order_cannot_keep_the_adaptive_solver_busy_for_ever() -> None:
    rng = np.random.default_rng(0)
    latents, evaluations = solved(
        "adaptive",
        lambda x, sigma: rng.standard_normal(x.shape, np.float32) * 100,
        noise(1),
        even(1, 0, 2),
        absolute_tolerance=1e-5,
        relative_tolerance=1e-5,
    )
    assert np.isfinite(latents).all()
    assert evaluations < 3 * 300


@pytest.mark.parametrize("solver", [name for name, known in SOLVERS.items() if known.samples_flow_maps])
def test_mean_velocities_to_the_named_levels_lead_there(solver: str) -> None:
    """Of a flow whose way is known: with eta 0, and at LCM's last step, the end is exact in few steps."""
    chosen = SOLVERS[solver](**({"eta": 0.0} if solver == "euler_ancestral" else {}))
    sigmas = even(1, 0, 3)[-2:] if solver == "lcm" else even(1, 0, 3)
    solution = chosen.solve(noise(1), sigmas, NoiseStream(SHAPE, [1]))
    begin = latents = noise(1)
    asked = next(solution, None)
    while asked is not None:
        if isinstance(asked, Evaluate):
            assert asked.target is not None
            reached = curved_path(asked.latents, float(asked.sigma), float(asked.target))
            answer = (reached - asked.latents) / (asked.target - asked.sigma)
        else:
            answer = latents = asked.latents
        try:
            asked = solution.send(answer)
        except StopIteration:
            asked = None
    expected = curved_path(begin, float(sigmas[0]), 0.0)
    assert root_mean_square(latents - expected) <= 1e-5


def test_other_solvers_name_no_level() -> None:
    for name, kind in SOLVERS.items():
        asked = next(kind().solve(noise(1), even(1, 0, 3), NoiseStream(SHAPE, [1])))
        assert isinstance(asked, Evaluate)
        assert kind.samples_flow_maps == (asked.target is not None) or name == "stochastic_euler"
