"""Processor sharing, against cases that one can work out by hand."""

import pytest

from benchmarks.speed.fair_sharing import fair_sharing


def test_a_request_alone_takes_its_time() -> None:
    assert fair_sharing([1.0, 10.0], lambda n: 0.5) == pytest.approx([2.0, 2.0])


def test_two_at_once_take_twice_as_long() -> None:
    assert fair_sharing([0.0, 0.0], lambda n: 1.0) == pytest.approx([2.0, 2.0])


def test_two_at_once_take_as_long_as_one_where_company_is_free() -> None:
    assert fair_sharing([0.0, 0.0], lambda n: float(n)) == pytest.approx([1.0, 1.0])


def test_a_request_that_comes_half_way_slows_the_first_down() -> None:
    """The first is half done at 0.5; its other half takes twice as long, then the second is alone."""
    assert fair_sharing([0.0, 0.5], lambda n: 1.0) == pytest.approx([1.5, 1.5])


def test_nobody_waits_where_nobody_arrives() -> None:
    assert fair_sharing([], lambda n: 1.0) == []


def test_a_small_request_passes_a_large_one() -> None:
    """Both have half of it until the small one is done."""
    assert fair_sharing([0.0, 1.0], lambda n: 1.0, [3.0, 0.5]) == pytest.approx([3.5, 1.0])
