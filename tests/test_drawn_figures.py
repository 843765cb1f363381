"""The figures of `wmlc plot` as specifications: spreads, colours, levels and panels, each whose it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wmlc.report.figures import BASELINE_SHAPE, Figure, Level, Line, MeanPoint, figure_spec
from wmlc.report.palette import LIGHT
from wmlc.stats import spread


def a_line(
    name: str, values: Sequence[float] = (60.0, 64.0), x: float = 1.0, panel: str = "", baseline: bool = False
) -> Line:
    return Line(name, name, [MeanPoint(x, spread(values))], panel, baseline=baseline)


def looks(spec: dict, of: str, beside: str = "shape") -> dict[str, str]:
    """By line, its colour, shape or dash in the layer that has a shape, or another look, `beside` the colour."""
    (points,) = [layer for layer in spec["layer"] if beside in layer["encoding"]]
    scale = points["encoding"][of]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


def test_a_spread_is_as_far_above_the_mean_as_below() -> None:
    (row,) = figure_spec(Figure("t", "x", "y", [a_line("wml", (60.0, 64.0, 71.0))], []), [])["data"]["values"]
    assert row["mean"] == 65.0
    assert (row["high"] - 65.0, 65.0 - row["low"]) == pytest.approx((31**0.5, 31**0.5))
    (row,) = figure_spec(Figure("t", "x", "y", [a_line("wml", (60.0,))], []), [])["data"]["values"]
    assert row["mean"] == 60.0 and "low" not in row and "high" not in row


def test_baselines_are_grey_and_methods_in_their_order() -> None:
    lines = [a_line("wml", x=1), a_line("baseline", x=3, baseline=True), a_line("dml", x=2)]
    spec = figure_spec(Figure("t", "x", "y", lines, [], over="macs"), [])
    assert looks(spec, "color") == {"wml": LIGHT.networks[0], "baseline": LIGHT.baseline, "dml": LIGHT.networks[1]}
    shapes = looks(spec, "shape")
    assert shapes["baseline"] == BASELINE_SHAPE and BASELINE_SHAPE not in (shapes["wml"], shapes["dml"])


def test_no_two_of_many_lines_have_one_look() -> None:
    names = [f"method{number}" for number in range(3 * len(LIGHT.networks))]
    for over, of in (("macs", "shape"), ("epochs", "strokeDash")):
        figure = Figure("t", "x", "y", [a_line(name, x=k) for k, name in enumerate(names)], [], over=over)
        spec = figure_spec(figure, [])
        colours, others = looks(spec, "color", of), looks(spec, of, of)
        assert len({(str(colours[name]), str(others[name])) for name in names}) == len(names)


def test_a_level_beyond_all_points_is_in_sight() -> None:
    def y_of(levels: Sequence[float]) -> dict:
        found = Figure(
            "t", "x", "y", [a_line("wml", (60.0,))], [], levels=[Level("baseline", spread([v])) for v in levels]
        )
        spec = figure_spec(found, [])
        assert [layer["encoding"]["y"]["datum"] for layer in spec["layer"][: len(levels)]] == list(levels)
        return spec["layer"][len(levels)]["encoding"]["y"]["scale"]

    assert y_of([])["domain"] == pytest.approx([58.8, 61.2])
    assert "domain" not in y_of([80.0]) and "domain" not in y_of([60.0, 80.0])


def test_one_level_is_named_in_the_plot_and_several_are_not() -> None:
    def words(count: int) -> list[str]:
        levels = [Level(f"baseline {k}", spread([80.0 + k])) for k in range(count)]
        layers = figure_spec(Figure("t", "x", "y", [a_line("wml")], [], levels=levels), [])["layer"]
        return [layer["data"]["values"][0]["text"] for layer in layers if layer["mark"]["type"] == "text"]

    assert words(1) == ["baseline 0 80.00"] * 2  # on its white edge
    assert words(0) == words(2) == []


def test_panels_stand_in_the_order_of_the_lines_each_with_its_own_milliseconds() -> None:
    lines = [a_line("wml", panel="zebra", x=1), a_line("wml", panel="ant", x=1000)]
    spec = figure_spec(Figure("t", "x", "y", lines, [], over="latency", panels=True), [])
    assert spec["facet"]["sort"] == ["zebra", "ant"] and spec["resolve"] == {"scale": {"x": "independent"}}
    assert [(row["panel"], row["x"]) for row in spec["data"]["values"]] == [("zebra", 1), ("ant", 1000)]
    same = figure_spec(Figure("t", "x", "y", lines, [], panels=True), [])
    assert "resolve" not in same  # epochs are the same in each


def test_eta_has_a_log_axis_and_a_tick_at_each_of_its_values() -> None:
    lines = [Line("wml", "wml", [MeanPoint(eta, spread([60.0])) for eta in (0.01, 1.0)])]
    x = figure_spec(Figure("t", "x", "y", lines, [], over="eta"), [])["layer"][0]["encoding"]["x"]
    assert x["scale"]["type"] == "log" and x["axis"]["values"] == [0.01, 1.0]
    x = figure_spec(Figure("t", "x", "y", lines, [], over="macs"), [])["layer"][0]["encoding"]["x"]
    assert "type" not in x["scale"]


def test_a_baseline_stays_where_it_is_while_methods_give_way() -> None:
    lines = [a_line("a", x=1), a_line("b", x=1), a_line("baseline", x=1, baseline=True), a_line("far", x=3)]
    rows = figure_spec(Figure("t", "x", "y", lines, [], over="macs"), [])["data"]["values"]
    at = {row["line"]: row["x"] for row in rows}
    assert at["baseline"] == 1 and at["a"] < at["b"]
    assert sum(at[name] - x for name, x in (("a", 1), ("b", 1), ("far", 3))) == pytest.approx(0)
