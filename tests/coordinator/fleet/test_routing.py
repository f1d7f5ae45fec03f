"""Which replica takes a call: the expected moment of its answer decides, and being prepared counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_coordinator.fleet.routing import (
    CLEARLY_BUSIER,
    PACE_HALF_LIFE,
    Candidate,
    MeasuredPace,
    believed_paces,
    call_size,
    choose,
    leading,
)

positive = st.floats(0.001, 1000)


def idle(last_chosen: int = 0, prepared: bool = False) -> Candidate:
    return Candidate(0.0, 1.0, prepared, last_chosen)


@given(
    st.lists(st.builds(Candidate, positive, positive, st.just(False), st.integers(0, 9)), min_size=1),
    positive,
)
def test_nobody_is_expected_to_answer_sooner_than_the_one_that_is_chosen(
    candidates: list[Candidate], work: float
) -> None:
    chosen = candidates[choose(candidates, work)]
    assert chosen.seconds(work) == min(one.seconds(work) for one in candidates)


@given(
    st.lists(st.builds(Candidate, positive, positive, st.booleans(), st.integers(0, 9)), min_size=1), positive
)
def test_a_prepared_one_is_chosen_unless_it_is_clearly_busier(
    candidates: list[Candidate], work: float
) -> None:
    chosen = candidates[choose(candidates, work)]
    soonest = min(one.seconds(work) for one in candidates)
    assert chosen.seconds(work) <= CLEARLY_BUSIER * soonest
    free_and_prepared = [one for one in candidates if one.prepared and one.seconds(work) == soonest]
    assert chosen.prepared or not free_and_prepared


@given(st.integers(1, 8), st.lists(st.floats(1, 100), min_size=1, max_size=200))
def test_calls_that_do_not_end_are_spread_evenly(replicas: int, works: list[float]) -> None:
    outstanding, last_chosen = [0.0] * replicas, [0] * replicas
    for number, work in enumerate(works, 1):
        chosen = choose(
            [
                Candidate(*one, False, last)
                for *one, last in zip(outstanding, [1.0] * replicas, last_chosen, strict=True)
            ],
            work,
        )
        outstanding[chosen] += work
        last_chosen[chosen] = number
    assert max(outstanding) - min(outstanding) <= max(works) * (1 + 1e-9)  # floats were added up


@given(st.integers(1, 8), st.integers(1, 100))
def test_calls_one_after_the_other_go_round(replicas: int, calls: int) -> None:
    last_chosen, taken = [0] * replicas, [0] * replicas
    for number in range(1, calls + 1):
        chosen = choose([idle(last) for last in last_chosen], 1.0)
        taken[chosen] += 1
        last_chosen[chosen] = number
    assert max(taken) - min(taken) <= 1


def test_a_replica_that_is_twice_as_fast_takes_twice_the_work() -> None:
    paces, outstanding = (1.0, 2.0), [0.0, 0.0]
    for _ in range(300):
        outstanding[
            choose([Candidate(o, p, False, 0) for o, p in zip(outstanding, paces, strict=True)], 1.0)
        ] += 1
    assert outstanding[0] == pytest.approx(2 * outstanding[1], abs=2)


def test_an_idle_one_that_was_sent_the_conditioning_is_preferred() -> None:
    assert choose([idle(), idle(last_chosen=7, prepared=True)], 1.0) == 1
    assert choose([idle(), Candidate(1.0, 1.0, True, 0)], 1.0) == 0


def test_an_old_measure_of_slowness_is_forgotten_by_halves() -> None:
    assert believed_paces([MeasuredPace(1, 0), MeasuredPace(9, 0), None]) == [1, 9, 1]
    assert believed_paces([MeasuredPace(1, 0), MeasuredPace(9, PACE_HALF_LIFE)]) == [1, 5]
    assert believed_paces([None, None]) == [1, 1]


@pytest.mark.parametrize(
    ("branches", "samples", "replicas", "size"),
    [
        (2, 1, 1, (2, 1)),
        (2, 1, 2, (1, 1)),
        (2, 4, 2, (1, 4)),
        (2, 4, 4, (1, 2)),
        (3, 4, 2, (2, 4)),
        (1, 4, 3, (1, 2)),
        (1, 1, 8, (1, 1)),
        (0, 1, 8, (1, 1)),
    ],
)
def test_branches_are_divided_before_samples(
    branches: int, samples: int, replicas: int, size: tuple[int, int]
) -> None:
    assert call_size(branches, samples, replicas) == size


def test_the_usual_fingerprint_leads_and_a_tie_changes_nothing() -> None:
    assert leading([], "a") is None
    assert leading(["a", "b", "b"], None) == "b"
    assert leading(["a", "b"], "b") == "b"
    assert leading(["a", "b", "a"], "b") == "a"
    assert leading(["a"], "gone") == "a"
