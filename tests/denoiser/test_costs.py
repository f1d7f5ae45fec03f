"""What passes are said to cost."""

from hypothesis import given
from hypothesis import strategies as st

from triptych_denoiser.costs import Costs


def costs_of(*passes: tuple[int, int, float]) -> Costs:
    costs = Costs()
    for tokens, rows, seconds in passes:
        costs.note(tokens, rows, seconds)
    return costs


def test_a_known_pass_costs_what_such_passes_usually_took() -> None:
    costs = costs_of((100, 2, 9.0), (100, 2, 1.0), (100, 2, 1.2))
    assert costs.seconds(100, 2) == 1.2


def test_an_unknown_pass_costs_in_proportion_to_the_nearest() -> None:
    costs = costs_of((100, 2, 1.0), (1000, 2, 30.0))
    assert costs.seconds(100, 4) == 2.0
    assert costs.seconds(2000, 1) == 30.0


def test_what_nobody_has_tried_is_tried() -> None:
    assert Costs().best_rows(100, 5) == 5
    assert costs_of((100, 2, 1.0)).best_rows(100, 5) == 5


def test_fewer_rows_go_together_where_that_is_cheaper() -> None:
    costs = costs_of(*5 * [(100, 1, 1.0), (100, 2, 1.5), (100, 4, 4.0), (200, 1, 0.1)])
    assert costs.best_rows(100, 4) == 2
    assert costs.best_rows(100, 2) == 2
    assert costs.best_rows(100, 1) == 1


def test_one_slow_pass_says_little() -> None:
    costs = costs_of((100, 1, 1.0), (100, 2, 9.0))
    assert costs.best_rows(100, 2) == 2


def test_what_was_dear_is_tried_again() -> None:
    costs = costs_of(*5 * [(100, 1, 1.0), (100, 2, 9.0)])
    assert {costs.best_rows(100, 2) for _ in range(50)} == {1, 2}


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8), st.floats(0.001, 100))), st.integers(1, 8))
def test_a_pass_takes_some_of_those_that_wait(passes: list[tuple[int, int, float]], waiting: int) -> None:
    assert 1 <= costs_of(*passes).best_rows(2, waiting) <= waiting


def test_an_unknown_number_of_rows_costs_in_proportion_to_rows_of_the_same_size() -> None:
    costs = costs_of((100, 1, 1.0), (390, 1, 30.0))
    assert costs.seconds(100, 4) == 4.0


def test_sizes_that_nobody_has_mixed_are_mixed_when_about_each_is_known() -> None:
    assert not Costs().mixing_pays({100: 1, 200: 1})
    assert not costs_of((100, 1, 1.0)).mixing_pays({100: 1, 200: 1})
    assert not costs_of(*3 * [(100, 1, 1.0)], *2 * [(200, 2, 4.0)]).mixing_pays({100: 1, 200: 1})
    costs = costs_of(*3 * [(100, 1, 1.0)], *2 * [(200, 2, 4.0)], (210, 1, 2.0))
    assert costs.mixing_pays({100: 1, 200: 1})
    assert costs.mixing_pays({90: 1, 110: 1, 220: 1})
    assert not costs.mixing_pays({100: 1, 150: 1})


def test_sizes_are_mixed_where_that_is_cheaper_than_passes_of_equal_rows() -> None:
    costs = costs_of(*3 * [(100, 1, 1.0), (100, 2, 1.2), (200, 2, 4.0)])
    for _ in range(5):
        costs.note_mixed({100: 2, 200: 1}, 3.0)  # apart: 1.2 + 2.0
        costs.note_mixed({100: 2, 200: 10}, 22.0)  # apart: 1.2 + 20
    assert costs.mixing_pays({100: 2, 200: 1})
    assert costs.mixing_pays({100: 1, 200: 1})
    assert not costs.mixing_pays({100: 2, 200: 10})


def test_now_and_then_the_other_choice_is_tried() -> None:
    costs = costs_of(*3 * [(100, 1, 1.0), (200, 1, 2.0)])
    assert {costs.mixing_pays({100: 1, 200: 1}) for _ in range(50)} == {True, False}
    for _ in range(5):
        costs.note_mixed({100: 1, 200: 1}, 9.0)
    assert {costs.mixing_pays({100: 1, 200: 1}) for _ in range(50)} == {True, False}


def test_only_the_latest_sizes_are_remembered() -> None:
    costs = costs_of(*((tokens, 1, 1.0) for tokens in range(1, 2000)))
    assert len(costs._passes) == 1000
