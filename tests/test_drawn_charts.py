"""The charts of a page as they are drawn: each mark says what its numbers are and whose, and lies where they are."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import vl_convert
from made import made_layer, made_profile

from wmlc.report import charts
from wmlc.report.palette import ALARM
from wmlc.report.series import GroupBar, Point, ScenarioBar, WidthBar, layer_rows

NETWORKS = ("baseline", "peer1", "peer2")


def drawn(spec: charts.Spec) -> ElementTree.Element:
    """A chart as SVG, 400 pixels wide."""
    return ElementTree.fromstring(vl_convert.vegalite_to_svg({**spec, "width": 400}, allowed_base_urls=[]))


def of_kind(picture: ElementTree.Element, kind: str) -> list[tuple[str, dict[str, str]]]:
    """Its marks that Vega calls so, from the back to the front: what each says, and its attributes and text."""
    return [
        (element.attrib["aria-label"], {"text": element.text or "", **element.attrib})
        for element in picture.iter()
        if element.attrib.get("aria-roledescription") == kind
    ]


def numbers(path: str) -> list[float]:
    return [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path)]


def a_point(network: str, p50: float, top1: float, **changes: Any) -> Point:
    plain = Point(
        run="run", data="digits", network=network, label=network, number=network[-1], precision="fp32", params=1000,
        macs=100, p50=p50, low=p50 - 0.25, high=p50 + 0.5, top1=top1, top1_low=top1 - 1, top1_high=top1 + 2,
        top1_text="a top-1", p50_text="a p50", speedup_text="a speed-up", params_text="parameters of it",
        macs_text="MACs of it", pruned_text="its share",
    )  # fmt: skip
    return replace(plain, **changes)


POINTS = [
    a_point("baseline", 2.0, 90.0),
    a_point("peer1", 1.0, 85.0),
    a_point("peer2", 1.5, 84.0, precision="fp16", label="peer2 fp16"),
]


@pytest.fixture(scope="module")
def latency_picture() -> ElementTree.Element:
    """Top-1 over p50 of three networks."""
    return drawn(charts.accuracy_chart(POINTS, "p50", "p50, ms", NETWORKS, "network"))


def test_intervals_span_the_ends_of_their_own_number(latency_picture: ElementTree.Element) -> None:
    rules = [said for said, _ in of_kind(latency_picture, "rule mark")]
    assert rules[3:] == [
        "p50, ms: 1.75; top-1, %: 90; high: 2.5; network: baseline",
        "p50, ms: 0.75; top-1, %: 85; high: 1.5; network: peer1",
        "p50, ms: 1.25; top-1, %: 84; high: 2; network: peer2",
    ]
    assert rules[1] == "p50, ms: 1; top-1, %: 84; top1_high: 87; network: peer1"
    over_size = drawn(charts.accuracy_chart(POINTS, "params", "parameters", NETWORKS, "network"))
    assert len(of_kind(over_size, "rule mark")) == 3, "an interval of milliseconds has no place among parameters"


def test_what_hovering_tells_stands_behind_its_own_word(latency_picture: ElementTree.Element) -> None:
    said = [label for label, _ in of_kind(latency_picture, "point")]
    assert said[1] == (
        "p50, ms: 1; top-1, %: 85; network: peer1; top-1: a top-1; p50 [95 %]: a p50; speed-up [95 %]: a speed-up; "
        "pruned: its share; parameters: parameters of it; MACs: MACs of it"
    )


def test_a_point_is_as_full_as_its_precision_and_of_its_networks_colour() -> None:
    points = [*POINTS, a_point("peer2", 1.2, 83.0, precision="int8")]
    picture = drawn(charts.accuracy_chart(points, "p50", "ms", NETWORKS, "network"))
    marks = [own for _, own in of_kind(picture, "point")]
    assert [float(own["fill-opacity"]) for own in marks] == [1.0, 1.0, 0.4, 0.0]
    assert marks[2]["stroke"] == marks[3]["stroke"] and len({own["stroke"] for own in marks}) == 3


def test_the_front_promises_no_accuracy_before_the_latency_that_has_it(latency_picture: ElementTree.Element) -> None:
    ((_, front),) = of_kind(latency_picture, "line mark")
    x1, y1, corner_x, corner_y, x2, y2 = numbers(front["d"])
    assert x1 < x2 and y1 > y2  # a picture counts from above
    assert (corner_x, corner_y) == (x2, y1)


def test_runs_are_told_apart_by_numbers_beside_their_points() -> None:
    marks = drawn(charts.accuracy_chart(POINTS, "macs", "MACs", ("run",), "run"))
    assert [own["text"] for _, own in of_kind(marks, "text mark")] == ["e", "1", "2"]


def test_a_legend_names_what_is_there_in_the_pages_order() -> None:
    legend = charts.accuracy_chart(POINTS[1:][::-1], "p50", "ms", NETWORKS, "network")["layer"][-1]["encoding"]["shape"]
    assert legend["legend"]["values"] == ["peer1", "peer2"] and legend["scale"]["domain"] == list(NETWORKS)


def test_values_that_differ_need_no_domain_around_them() -> None:
    assert charts.around([90.0, 90.5]) is None and charts.around([90.0, 90.0]) == pytest.approx([88.2, 91.8])


def test_a_pointer_over_the_epochs_tells_each_lines_own_value() -> None:
    lines = {"peer1": [(1, 0.5)], "ensemble": [(1, 0.75)]}
    tips = charts.line_chart(lines, (*NETWORKS, "ensemble"), "top-1", ".2f")["layer"][-1]
    (values,) = tips["data"]["values"]
    told = {tip["title"]: values[tip["field"]] for tip in tips["encoding"]["tooltip"]}
    assert told == {"epoch": 1, "peer1": 0.5, "ensemble": 0.75}


def test_widths_span_the_narrowest_to_the_widest_in_the_networks_order() -> None:
    bars = [
        WidthBar("stem", "peer1", "1", mean=6.0, least=2, most=8, layers="2, 8, 8"),
        WidthBar("a", "peer1", "1", mean=4.0, least=3, most=5, layers="3, 5"),
    ]
    marks = drawn(charts.widths_chart(bars, NETWORKS))
    assert [said for said, _ in of_kind(marks, "bar")] == [
        "stage: stem; channels a layer: 6; who: peer1; network: peer1; channels, layer by layer: 2, 8, 8",
        "stage: a; channels a layer: 4; who: peer1; network: peer1; channels, layer by layer: 3, 5",
    ]
    assert ["least: 2" in said and "most: 8" in said for said, _ in of_kind(marks, "rule mark")] == [True, False]
    left = [numbers(own["d"])[0] for _, own in of_kind(marks, "bar")]
    assert left == sorted(left)


def test_what_is_lost_without_a_block_lies_at_its_own_number() -> None:
    bars = [GroupBar("stem", 0.5, "8 of 16", None), GroupBar("a", 0.25, "4 of 16", 1.5)]
    marks = drawn(charts.sensitivity_chart(bars))
    assert [said for said, _ in of_kind(marks, "point")] == [
        "nats an image: 1.5; group: a; block of: a; nats without it: 1.500"
    ]
    assert [(said, own["text"]) for said, own in of_kind(marks, "text mark")] == [
        ("nats an image: 0.5; group: stem; kept: 8 of 16", "8 of 16"),
        ("nats an image: 1.5; group: a; kept: 4 of 16", "4 of 16"),  # beyond the diamond
    ]
    (end,) = [numbers(own["transform"])[0] for _, own in of_kind(marks, "point")]
    assert 0 < end < 400


@pytest.fixture(scope="module")
def profile_picture() -> ElementTree.Element:
    """Two layers of the baseline beside those of peer1 in int8, the second cut in vain."""
    whole = made_profile(0, [made_layer("stem", 1.0), made_layer("conv", 2.0, 128, (8, 16), intensity=4.0)])
    cut = made_profile(1, [made_layer("stem", 0.5), made_layer("conv", 2.5, 96, (8, 12), intensity=3.0)])
    return drawn(charts.profile_chart(layer_rows(whole, cut), "peer1 int8", NETWORKS, "peer1"))


def test_a_layers_bars_are_the_baselines_and_below_it_the_peers(profile_picture: ElementTree.Element) -> None:
    bars = sorted(of_kind(profile_picture, "bar"), key=lambda bar: numbers(bar[1]["d"])[1])  # from above
    whose = [
        re.search("ms an inference: (.*); layer: (.*); side.*; who: (.*); operator.*; network: (.*); ms", said)
        for said, _ in bars
    ]
    assert [found.groups() for found in whose if found] == [
        ("1", "stem", "baseline", "baseline"), ("0.5", "stem", "peer1", "peer1 int8"),
        ("2", "conv", "baseline", "baseline"), ("2.5", "conv", "peer1", "peer1 int8"),
    ]  # fmt: skip
    fills = [own["fill"] for _, own in bars]
    assert fills[0] == fills[2] != fills[1] == fills[3]
    assert bars[3][0].endswith(
        "times as fast: ▲ 0.80×; channels, baseline | peer: 8→16 | 8→12; MACs, baseline | peer: 128 | 96; "
        "FLOPs a byte, baseline | peer: 4 | 3"
    )


def test_a_layers_numbers_stand_below_their_titles(profile_picture: ElementTree.Element) -> None:
    at: dict[float, list[str]] = {}
    for text in profile_picture.iter("{http://www.w3.org/2000/svg}text"):
        if (place := numbers(text.attrib["transform"])[0]) > 400:  # at the right of the bars
            at.setdefault(place, []).append(text.text or "")
    assert {(texts[-1], *texts[:-1]) for texts in at.values()} == {
        ("speed", "△ 2.00×", "▲ 0.80×"), ("channels", "8→8", "8→16 | 8→12"), ("MACs", "64", "128 | 96"),
        ("FLOPs/byte", "2", "4 | 3"),
    }  # fmt: skip
    marks = of_kind(profile_picture, "text mark")
    assert [own["text"] for _, own in marks if own["fill"] == ALARM] == ["▲ 0.80×"]


def test_scenarios_have_a_bar_a_network_in_the_rows_order() -> None:
    bars = [ScenarioBar("b", "peer1", "peer1 int8", 200.0, "200"), ScenarioBar("a", "baseline", "baseline", None, "none"),
            ScenarioBar("b", "baseline", "baseline", 100.0, "100")]  # fmt: skip
    marks = drawn(charts.bar_chart(bars, ("a", "b"), "run", "queries/s"))
    assert [own["text"] for _, own in of_kind(marks, "text mark")] == ["200", "none", "100"]
    drawn_bars = of_kind(marks, "bar")
    assert [said for said, _ in drawn_bars] == [
        "queries/s: 200; name: b: peer1 int8; by: b; network: b: peer1 int8",
        "queries/s: 100; name: b: baseline; by: b; network: b: baseline",
    ]
    heights = [numbers(own["transform"])[1] for _, own in of_kind(marks, "text mark")]
    assert heights == sorted(heights)
    alone = of_kind(drawn(charts.bar_chart(bars[:1], NETWORKS, "network", "queries/s")), "bar")
    assert [said for said, _ in alone] == ["queries/s: 200; name: peer1 int8; by: peer1; network: peer1 int8"]
