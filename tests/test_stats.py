"""Numbers about numbers: spreads, intervals and fronts by hand, and against tables."""

from __future__ import annotations

import pytest

from wmlc.stats import pareto_front, spread, student_t, top1_difference, top1_interval


def test_a_spread_is_mean_and_deviation_of_what_is_known() -> None:
    assert (spread([1.0, None, 3.0]).mean, spread([1.0, None, 3.0]).n) == (2.0, 2)
    assert spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).sd == pytest.approx((32 / 7) ** 0.5)
    assert spread([5.0]).sd is None and spread([None]).mean is None
    assert spread([1.0, None]).values == [1.0, None]


def test_a_front_holds_what_no_other_point_beats() -> None:
    points = [(1.0, 70.0), (2.0, 69.0), (2.0, 75.0), (3.0, 75.0), (4.0, 80.0)]
    front = [(1.0, 70.0), (2.0, 75.0), (4.0, 80.0)]
    assert pareto_front(points, lambda p: p[0], lambda p: p[1]) == front
    assert pareto_front(reversed(points), lambda p: p[0], lambda p: p[1]) == front
    assert pareto_front([], lambda p: p, lambda p: p) == []


def test_points_alike_are_all_on_the_front() -> None:
    points = [("a", 1.0, 70.0), ("b", 1.0, 70.0), ("c", 1.0, 69.0)]
    assert [name for name, *_ in pareto_front(points, lambda p: p[1], lambda p: p[2])] == ["a", "b"]


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, rel=1.1e-3)


def test_wilsons_interval_holds_at_the_ends() -> None:
    low, high = top1_interval(100.0, 100)
    assert (low, high) == (pytest.approx(96.30, abs=0.01), pytest.approx(100.0))
    assert top1_interval(0.0, 100) == (pytest.approx(0.0, abs=1e-9), pytest.approx(100 - low))
    low, high = top1_interval(75.0, 10_000)
    assert high - low == pytest.approx(2 * 1.96 * 0.433, rel=1e-3)


def test_newcombes_interval_of_a_difference_by_hand() -> None:
    # Wilson's are 59.58 … 98.21 of 9 in 10, and 10.78 … 60.32 of 3 in 10
    assert top1_difference(90, 30, 10) == pytest.approx((17.05, 80.90), abs=0.01)
    assert top1_difference(30, 90, 10) == pytest.approx((-80.90, -17.05), abs=0.01)
