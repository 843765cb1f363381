"""What rounds of times say, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest

from wmlc.bench import intervals
from wmlc.records import Speedup
from wmlc.stats import student_t


def test_identical_samples_are_exactly_as_fast():
    launches = [[np.array([1.0, 3.0, 2.0]), np.array([5.0, 4.0])], [np.array([7.0])]]
    assert intervals.speedup(launches, launches, seed=0) == Speedup(median=1, low=1, high=1, n=3, launches=2)


def test_a_constant_ratio_is_found_whatever_the_machine_does_between_rounds():
    mood_R = np.random.default_rng(0).lognormal(0, 1, 40)
    found = intervals.paired_ratio([3 * mood_R], [2 * mood_R], seed=0)
    assert (found.median, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_holds_the_median_narrows_with_launches_and_is_reproducible():
    def found(launches: int) -> Speedup:
        draw = np.random.default_rng(1)
        above = [draw.lognormal(0.5 + draw.normal(0, 0.05), 0.1, 40) for _ in range(launches)]
        return intervals.paired_ratio(above, [np.ones(40)] * launches, seed=0)

    few, many = found(4), found(64)
    for each in (few, many):
        assert each.low < each.median < each.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert many.low < np.exp(0.5) < many.high
    assert found(4) == few and (few.n, few.launches) == (160, 4)


def test_an_interval_of_launches_is_wider_than_their_rounds_say():
    draw = np.random.default_rng(0)
    launches = [draw.normal(level, 0.01, 50) for level in (0.0, 0.1, 0.2, 0.3)]
    low, high = intervals.median_interval(launches, seed=0)
    alone = intervals.median_interval([np.concatenate(launches)], seed=0)
    assert high - low > 1.2 * (alone[1] - alone[0])


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042)])
def test_students_t_is_the_tables(freedom, t):
    assert student_t(freedom) == pytest.approx(t, rel=2e-3)


@pytest.mark.parametrize(("launches", "rounds"), [(2, 9), (5, 8), (12, 4)])
def test_the_same_blocks_drawn_again_have_the_same_median(launches, rounds, monkeypatch):
    draw = np.random.default_rng(0)
    values = [draw.normal(size=rounds + place % 2) for place in range(launches)]
    found = intervals.median_interval(values, seed=1)
    monkeypatch.setattr(intervals, "FEW_BLOCKS", 0)
    assert intervals.median_interval(values, seed=1) == found


@pytest.mark.parametrize("mood", [0.0, 0.7])
def test_intervals_of_eight_launches_cover_the_truth_as_often_as_they_say(mood):
    """Also where a launch takes over a share `mood` of what disturbed the one before."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(200):
        launches, level = [], draw.normal(0, 0.015)
        for _ in range(8):
            level = mood * level + np.sqrt(1 - mood**2) * draw.normal(0, 0.015)
            launches.append(np.exp(level + draw.normal(0, 0.03, 20)))
        found = intervals.paired_ratio(launches, [np.ones(20)] * 8, seed=0)
        covered += found.low <= 1 <= found.high
    assert (0.9 if mood == 0 else 0.75) <= covered / 200 <= 0.99


def test_blocks_hold_every_round_once():
    launches = [np.full(3, float(place)) for place in range(9)]
    for count, blocks in ((1, 3), (2, 2), (5, 5), (6, 3), (9, 4)):
        found = intervals._blocks(launches[:count])
        assert len(found) == blocks
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(launches[:count]))


def test_a_burst_is_its_median_whatever_its_slowest_call_took():
    (medians_R,) = intervals.burst_medians([[np.array([1.0, 1.0, 9.0]), np.array([4.0, 2.0])]])
    assert medians_R.tolist() == [1.0, 3.0]


def test_the_interval_of_two_launches_is_that_of_two_numbers():
    """Their mean has the standard error ½, and Student's t with one degree of freedom is 12.706."""
    low, high = intervals.median_interval([np.zeros(3), np.ones(3)], seed=0)
    assert (low + high) / 2 == 0.5
    assert (high - low) / 2 == pytest.approx(12.706 / 2, rel=0.05)
