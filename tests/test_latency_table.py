"""From visits to a table: visits of networks whose layers' times are known. No network; takes 2 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from resizables import EIGHT, chain, conv_shape, empty_table

from wmlc import records
from wmlc.bench.latency.design import design
from wmlc.bench.latency.table import numbered, widest_interval, with_points
from wmlc.latency_model import LatencyModel
from wmlc.records import LatencyTable, LayerShape, Point, ShapeTimes, Visit

OVERHEAD_MS, SCALE, OTHER_MS = 0.3, 1.25, 0.07
NETWORK = chain([EIGHT, EIGHT, EIGHT])
DESIGN_DG = design(NETWORK)
APART = {layer: conv_shape(2**place) for place, layer in enumerate(NETWORK.layers)}


def truth(channels_L2: np.ndarray) -> np.ndarray:
    """Milliseconds of each layer, a + b · in · out, with an a and a b of its own."""
    place_L = np.arange(1, len(channels_L2) + 1)
    return 0.01 * place_L + 1e-5 * channels_L2[:, 0] * channels_L2[:, 1] * (5 - place_L)


def visits(rounds: Sequence[float], designs: Sequence[int] = range(len(DESIGN_DG))) -> list[Visit]:
    """A visit to each of the designs a round, in which everything takes so many times its true time."""
    found = []
    for times in rounds:
        for index in designs:
            layers_L = truth(NETWORK.channels(DESIGN_DG[index])) * times
            found.append(Visit(index, OVERHEAD_MS + SCALE * layers_L.sum(), layers_L.tolist(), OTHER_MS))
    return found


def table_of(
    made: Sequence[Visit], shape_of: dict[str, LayerShape] = APART, known: Sequence[ShapeTimes] = ()
) -> LatencyTable:
    return with_points(replace(empty_table(NETWORK), visits=list(made)), NETWORK, DESIGN_DG, shape_of, known)


def times_of(table: LatencyTable, layer: str) -> dict[tuple[int, int], Point]:
    (own,) = [each for each in table.shapes if layer in each.layers]
    return {(point.channels_in, point.channels_out): point for point in own.points}


def test_points_are_the_layers_own_times() -> None:
    table = table_of(visits([1.0, 1.0, 1.0]))
    assert [own.layers for own in table.shapes] == [[layer] for layer in NETWORK.layers]
    for place, layer in enumerate(NETWORK.layers):
        points = times_of(table, layer)
        assert len(points) == (8 if place in (0, 3) else 64)
        for (into, out), point in points.items():
            expected = truth(np.tile([into, out], (4, 1)))[place]
            assert (point.ms, point.low, point.high) == pytest.approx([expected] * 3) and point.n == 3
    assert widest_interval(table) == pytest.approx(0, abs=1e-9)


def test_a_whole_network_follows_from_its_layers_as_it_was_made() -> None:
    table = table_of(visits([1.0, 1.0, 1.0]))
    assert table.overhead_ms == pytest.approx(OVERHEAD_MS) and table.scale == pytest.approx(SCALE)
    assert table.error == pytest.approx(0, abs=1e-9)
    model = LatencyModel(table)
    for counts_G in ([8, 64, 24], [40, 40, 40], [17, 23, 57]):  # the last between the levels
        channels_L2 = NETWORK.channels(np.array(counts_G))
        assert model.total(NETWORK.layers, channels_L2) == pytest.approx(OVERHEAD_MS + SCALE * truth(channels_L2).sum())


def test_points_hold_the_median_launch_and_an_interval_over_launches() -> None:
    """Each visit of a round is of one launch, so that a launch which is slow in all is one of three, not of 192."""
    table = table_of(visits([1.0, 1.1, 0.98]))
    for place, layer in enumerate(NETWORK.layers):
        for (into, out), point in times_of(table, layer).items():
            assert point.ms == pytest.approx(truth(np.tile([into, out], (4, 1)))[place])
            assert point.low < point.ms < point.high and point.n == 3
            assert point.low * point.high == pytest.approx(point.ms**2), "symmetrical in logarithms"
    wider = table_of(visits([1.0, 1.3, 0.8]))
    assert widest_interval(wider) > widest_interval(table) > 0
    again = table_of(visits([1.0, 1.1, 0.98] * 2))
    assert 0 < widest_interval(again) < widest_interval(table), "more launches tell more"


def test_one_launch_has_no_interval_of_its_own() -> None:
    points = times_of(table_of(visits([1.0])), "layer1").values()
    assert all(point.low == point.ms == point.high and point.n == 1 for point in points)


def test_a_point_says_whether_all_its_layers_were_in_the_blocked_layout() -> None:
    """The second layer leaves it where 24 come in, the fourth in every second visit; of the third nobody can tell."""
    made = [
        replace(visit, blocked=[True, bool(DESIGN_DG[visit.design, 0] != 24), None, number % 2 == 0])
        for number, visit in enumerate(visits([1.0, 1.0, 1.0]))
    ]
    table = table_of(made)
    assert {pair: own.blocked for pair, own in times_of(table, "layer1").items()} == {
        pair: pair[0] != 24 for pair in times_of(table, "layer1")
    }
    assert {own.blocked for own in times_of(table, "layer2").values()} == {None}
    assert {own.blocked for own in times_of(table, "layer3").values()} == {False}, "in every second visit it was not"
    assert {own.blocked for own in times_of(table_of(visits([1.0])), "layer1").values()} == {None}


def test_layers_of_one_shape_share_their_points() -> None:
    """One that takes 1.2 times as long counts as much as the other: the median of two is their middle."""
    shape_of = APART | {"layer2": APART["layer1"]}

    def as_slow(own: Visit) -> Visit:
        return replace(own, layers=[own.layers[0], own.layers[1], 1.2 * own.layers[1], own.layers[3]])

    network = chain([EIGHT, EIGHT, EIGHT])
    same_G = [index for index, own in enumerate(DESIGN_DG) if own[0] == own[1] == own[2]]
    made = [as_slow(own) for own in visits([1.0, 1.0, 1.0])]
    table = with_points(replace(empty_table(network), visits=made), network, DESIGN_DG, shape_of)
    assert [own.layers for own in table.shapes] == [["layer0"], ["layer1", "layer2"], ["layer3"]]
    points = times_of(table, "layer1")
    assert len(points) == 64 and all(point.n == 3 for point in points.values())
    first = next(own for own in made if own.design == same_G[0])
    width = int(DESIGN_DG[same_G[0]][0])
    at_pair = [  # all that the two layers took at that pair of widths, in one launch
        took
        for own in made[: len(DESIGN_DG)]
        for place, took in ((1, own.layers[1]), (2, own.layers[2]))
        if NETWORK.channels(DESIGN_DG[own.design])[place].tolist() == [width, width]
    ]
    assert first.layers[1] in at_pair and points[width, width].ms == pytest.approx(np.median(at_pair))


def test_a_layer_whose_name_was_lost_is_in_the_overhead() -> None:
    lost = {layer: shape for layer, shape in APART.items() if layer != "layer3"}
    table = table_of(visits([1.0, 1.0, 1.0]), lost)
    assert all("layer3" not in own.layers for own in table.shapes)
    assert LatencyModel(table).layer_ms("layer3", 64, 10) == 0
    assert table.overhead_ms > OVERHEAD_MS + SCALE * 0.04 - 1e-9


def test_visits_count_rounds_of_their_own_network() -> None:
    made = visits([1.0, 1.0], [0, 5]) + visits([1.0], [5])
    assert [(round_, own.design) for round_, own in numbered(made)] == [(1, 0), (1, 5), (2, 0), (2, 5), (3, 5)]


def known_points(ms: float, *places: tuple[int, int]) -> list[Point]:
    return [Point(into, out, ms, ms, ms, 3) for into, out in places]


def test_another_networks_table_fills_in_what_was_not_measured_here() -> None:
    known = [
        ShapeTimes(shape=APART["layer1"], layers=["theirs"], points=known_points(7.0, (8, 8), (64, 64), (96, 96))),
        ShapeTimes(shape=conv_shape(3, op="Gemm"), layers=["other"], points=known_points(9.0, (8, 8))),
    ]
    table = table_of(visits([1.0] * 3, [0]), known=known)  # the full network alone
    points = times_of(table, "layer1")
    assert set(points) == {(8, 8), (64, 64), (96, 96)} and list(points) == sorted(points)
    assert points[8, 8].ms == points[96, 96].ms == 7.0
    assert points[64, 64].ms == pytest.approx(truth(NETWORK.channels(NETWORK.full))[1]), "what is measured here counts"
    assert len(table.shapes) == 4, "a shape that this network has not is left out"


def test_tables_of_several_networks_fill_in_together() -> None:
    known = [
        ShapeTimes(shape=APART["layer1"], layers=["theirs"], points=known_points(7.0, (8, 8))),
        ShapeTimes(shape=APART["layer1"], layers=["others"], points=known_points(5.0, (16, 8))),
    ]
    points = times_of(table_of(visits([1.0] * 3, [0]), known=known), "layer1")
    assert (points[8, 8].ms, points[16, 8].ms) == (7.0, 5.0)


def test_few_networks_give_no_overhead_but_a_scale() -> None:
    table = table_of(visits([1.0] * 3, [0, 1]))
    assert table.overhead_ms == 0 and table.scale > 0
    assert np.isfinite(table.error)


def test_a_table_is_written_and_read_back_equal(tmp_path: Path) -> None:
    table = table_of(visits([1.0, 1.1, 0.98]))
    file = tmp_path / "table.json"
    records.write(file, table)
    assert records.read(file, LatencyTable, "latency table", "measure again") == table
