"""What a latency table says between and at its points. No network; takes no second."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from resizables import chain, conv_shape, empty_table

from wmlc.latency_model import LatencyModel, Surface
from wmlc.records import LatencyTable, Point, ShapeTimes

PLACES = tuple(itertools.product((4, 8, 12, 16), (2, 4, 8)))


def points(ms_of: Callable[[int, int], float], places: Sequence[tuple[int, int]] = PLACES) -> list[Point]:
    """A layer's points, whose milliseconds are what a function says of its channels in and out."""
    return [Point(into, out, ms_of(into, out), ms_of(into, out), ms_of(into, out), 3) for into, out in places]


def staircase(into: int, out: int) -> float:
    """Kernels that work in blocks of eight channels."""
    return 0.02 + 0.001 * -(-into // 8) * -(-out // 8)


def bilinear(into: int, out: int) -> float:
    return 0.01 + 0.002 * into + 0.003 * out + 0.0005 * into * out


def test_points_are_what_was_measured_whatever_the_fit() -> None:
    surface = Surface(points(staircase))
    for into, out in PLACES:
        assert surface.at(into, out) == staircase(into, out)


def test_a_bilinear_truth_comes_back_everywhere() -> None:
    surface = Surface(points(bilinear))
    for into, out in itertools.product((1, 3, 5, 10, 13, 32), (1, 3, 6, 7, 20)):
        assert surface.at(into, out) == pytest.approx(bilinear(into, out), rel=1e-9)


def test_what_is_not_bilinear_is_bent_to_the_nearest_point() -> None:
    """Just beside a point it is just beside its milliseconds, though the fit is off there."""

    def doubled(into: int, out: int) -> float:
        return bilinear(into, out) * (2 if (into, out) == (8, 4) else 1)

    surface = Surface(points(doubled))
    assert surface.at(9, 4) == pytest.approx(doubled(8, 4) * bilinear(9, 4) / bilinear(8, 4), rel=0.05)


@pytest.mark.parametrize(
    "places", [[(3, 8)], [(3, 4), (3, 8), (3, 16)], [(4, 4), (8, 8), (16, 16)]], ids=["one", "a column", "depthwise"]
)
def test_few_points_are_enough_for_something_sensible(places: list[tuple[int, int]]) -> None:
    """A first layer takes three channels always, and a depthwise one as many as it gives."""
    surface = Surface(points(bilinear, places))
    assert surface.at(*places[-1]) == bilinear(*places[-1])
    found = surface.at(places[-1][0], places[-1][1] // 2 + 1)
    assert np.isfinite(found) and found > 0


def test_one_point_is_never_below_0() -> None:
    surface = Surface(points(lambda into, out: 0.5, [(8, 8)]))
    for into, out in itertools.product((1, 4, 64), (1, 4, 64)):
        assert surface.at(into, out) > 0


def test_a_layer_that_took_no_time_takes_none_elsewhere() -> None:
    surface = Surface(points(lambda into, out: 0.0))
    assert surface.at(8, 8) == 0 and 0 <= surface.at(9, 9) < 1e-5


def two_layers() -> LatencyTable:
    table = empty_table(chain([(4, 8)]))  # layer0 and layer1
    times = [ShapeTimes(shape=conv_shape(8), layers=["layer0"], points=points(bilinear))]
    return replace(table, shapes=times, overhead_ms=0.1, scale=2.0)


def test_a_whole_network_is_the_overhead_and_what_its_layers_take() -> None:
    model = LatencyModel(two_layers())
    channels_L2 = np.array([[4, 8], [8, 10]])
    assert model.layers_ms(["layer0", "layer1"], channels_L2).tolist() == [bilinear(4, 8), 0.0]
    assert model.total(["layer0", "layer1"], channels_L2) == pytest.approx(0.1 + 2 * bilinear(4, 8))


def test_a_layer_that_the_table_does_not_know_takes_nothing_of_its_own() -> None:
    model = LatencyModel(two_layers())
    assert model.layer_ms("layer1", 8, 10) == model.layer_ms("elsewhere", 1, 1) == 0
    assert model.total([], np.zeros((0, 2))) == pytest.approx(0.1)


def test_layers_of_one_shape_take_the_same() -> None:
    table = two_layers()
    (own,) = table.shapes
    model = LatencyModel(replace(table, shapes=[replace(own, layers=["layer0", "layer1"])]))
    assert model.layer_ms("layer0", 5, 5) == model.layer_ms("layer1", 5, 5) > 0


def test_an_overhead_below_0_goes_with_the_layers_that_a_network_has() -> None:
    """It is what the profiler added to each of them."""
    table = two_layers()
    (own,) = table.shapes
    model = LatencyModel(replace(table, shapes=[replace(own, layers=["layer0", "layer1"])], overhead_ms=-0.01))
    places = np.array([[5, 5], [6, 6]])
    assert model.total(["layer0", "layer1"], places) == pytest.approx(2 * (bilinear(5, 5) + bilinear(6, 6)) - 0.01)
    assert model.total(["layer1"], places[1:]) == pytest.approx(2 * bilinear(6, 6) - 0.005)
