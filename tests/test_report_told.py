"""What a page and its figures say: each number with its own counterpart, and each axis with its own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import (
    made_bench,
    made_epoch,
    made_family,
    made_framing,
    made_latency,
    made_record,
    made_row,
    made_run,
    made_settings,
)

from wmlc.records import Bench, Epoch, Row, Scenario, Sensitivity
from wmlc.report import page
from wmlc.report.charts import accuracy_chart, line_chart
from wmlc.report.figures import figure_spec
from wmlc.report.headline import headline
from wmlc.report.plots import FIGURES
from wmlc.report.runs import TrainedRun
from wmlc.report.sections import accuracy_section, all_notes, origin, training_section, weights_section, widths_section
from wmlc.report.series import entries, group_bars, size_points, teaching_lines
from wmlc.report.sizes import accuracy_over_latency, accuracy_over_macs
from wmlc.report.tables import scenario_table
from wmlc.run import Run

FASTER = (1.9, 2.0, 2.1)


def a_run(
    rows: Sequence[Row] = (), top1: tuple[float, ...] = (85.0, 90.0), baseline: float | None = 90.0,
    epochs: Sequence[Epoch] = (), name: str = "run", **settings: Any,
) -> TrainedRun:  # fmt: skip
    """A run with a bench of these `rows`, if any."""
    asked = made_settings(top1, **settings)
    bench: Bench | None = made_bench(rows) if rows else None
    return TrainedRun(
        root=Path("runs") / name, name=name, record=made_record(asked), epochs=list(epochs), baseline_epochs=[],
        family=made_family(top1, baseline, settings=asked), test_images=10_000, bench=bench,
    )  # fmt: skip


def test_an_axis_with_one_value_has_a_domain_around_it() -> None:
    flat = {"baseline": [(1, 0.25), (2, 0.25)], "peer1": [(1, 0.25)]}
    y = line_chart(flat, list(flat), "ω", ".4f", level=0.25)["layer"][1]["encoding"]["y"]
    assert y["scale"]["domain"] == pytest.approx([0.245, 0.255])
    y = line_chart(flat, list(flat), "ω", ".4f", level=0.3)["layer"][1]["encoding"]["y"]
    assert "domain" not in y["scale"]
    rows = [made_row(peer, 2.6, FASTER, top1=14.6, p50_interval=None) for peer in (0, 1)]
    points = [replace(point, top1_low=None, top1_high=None) for point in size_points([a_run(rows)])][:2]
    at = accuracy_chart(points, "p50", "ms", ["baseline", "peer1"], "network")["layer"][1]["encoding"]
    assert at["x"]["scale"]["domain"] == pytest.approx([2.548, 2.652])
    assert at["y"]["scale"]["domain"] == pytest.approx([14.308, 14.892])


def test_a_figure_with_one_value_too() -> None:
    run = a_run([made_row(peer, 2.6, top1=14.6) for peer in (0, 1)], top1=(14.6, 14.6), baseline=14.6)
    spec = figure_spec(accuracy_over_latency([run]), [])
    assert spec["data"]["values"][0]["left"] == pytest.approx(2.548) and "datum.left" in str(spec)
    assert spec["spec"]["layer"][0]["encoding"]["y"]["scale"]["domain"] == pytest.approx([14.308, 14.892])
    assert "left" not in figure_spec(accuracy_over_macs([run]), [])["data"]["values"][0]


def test_the_headline_compares_two_top1_of_one_source() -> None:
    whole = made_row(0, 2.0, name="baseline int8", precision="int8", top1=80.0)
    notes = ["ort disagrees with torch: no numbers"]
    cut = made_row(1, None, name="peer1 int8", precision="int8", top1=None, top1_drop=None, notes=notes)
    said = headline(a_run([whole, cut])).replace("\u00a0", " ")
    assert "peer 1, 5.00 points below (top-1 85.00 % against 90.00 %;" in said
    assert "Its speed-up was not measured: ort disagrees with torch" in said
    both = headline(a_run([whole, replace(cut, top1=79.5)])).replace("\u00a0", " ")
    assert "(top-1 79.50 % against 80.00 %;" in both


def test_the_headline_takes_the_first_cell_with_a_speed_up_and_names_it() -> None:
    failed = made_row(1, None, engine="openvino", top1=None, top1_drop=None, notes=["openvino disagrees"])
    rows = [made_row(0, 2.0, engine="openvino"), failed, made_row(0, 2.0), made_row(1, 1.0, FASTER, top1=89.5)]
    said = headline(a_run(rows)).replace("\u00a0", " ")
    assert "(top-1 89.50 % against 90.00 %;" in said
    assert said.endswith("and 2.00 times as fast (95 % interval 1.90 to 2.10; ONNX Runtime, 1 thread, batch 1).")


def test_weights_of_sources_and_a_peer_that_is_not_trained_are_said() -> None:
    lines = [made_epoch(1, (60.0, 70.0))]
    own = {"start": "net.pth", "weigh": "sources", "ratios": (0.7, 0.5, 0.0)}
    words = weights_section([a_run(top1=(60.0, 70.0, 80.0), epochs=lines, **own)]).words
    assert words[0] == (
        "How much each peer counts in the ensemble; all weights sum to 1. What each peer learns from has weights of its "
        "own. Peer 3 is the start, not trained, and has no weight here."
    )
    plain = weights_section([a_run(epochs=lines)]).words
    assert plain[0] == "How much each peer's teaching counts; all weights sum to 1."


def test_what_each_peer_learns_from_is_drawn() -> None:
    teaching = [[0.5, 0.3, 0.0, 0.2], [0.4, 0.35, 0.25, 0.0]]
    lines = [replace(made_epoch(number, (60.0, 70.0)), teaching=teaching) for number in (1, 2)]
    own = {"start": "net.pth", "weigh": "sources", "ratios": (0.7, 0.5, 0.0)}
    run = a_run(top1=(60.0, 70.0, 80.0), epochs=lines, **own)
    assert teaching_lines(run)["peer2"] == {
        "labels": [(1, 0.4), (2, 0.4)], "start": [(1, 0.35), (2, 0.35)], "peer1": [(1, 0.25), (2, 0.25)]
    }  # fmt: skip
    untaught = [replace(made_epoch(1, (60.0, 70.0)), teaching=[[0.5, 0.0, 0.5], [0.4, 0.6, 0.0]])]
    assert list(teaching_lines(a_run(epochs=untaught))["peer1"]) == ["labels", "peer2"]
    (_, chart) = weights_section([run]).charts
    assert chart.title == "What each peer learns from" and list(chart.choices) == ["peer1", "peer2"]


def test_a_mean_over_the_cut_peers_alone_is_called_so() -> None:
    lines = [made_epoch(1, (60.0, 70.0))]
    own = {"start": "net.pth", "ratios": (0.7, 0.5, 0.0)}
    (line,) = FIGURES["accuracy-over-epochs"]([a_run(top1=(60.0, 70.0, 80.0), epochs=lines, **own)]).lines
    assert (line.name, line.points[0].y.mean) == ("wml (cut peers)", 65.0)
    (line,) = FIGURES["accuracy-over-epochs"]([a_run(epochs=lines)]).lines
    assert line.name == "wml"


def test_a_network_keeps_its_point_where_the_bench_lacks_its_top1() -> None:
    rows = [made_row(0, 2.0, top1=90.5), made_row(1, 1.0, top1=None)]
    points = size_points([a_run(rows)])
    assert [(p.label, p.top1) for p in points] == [("baseline", 90.5), ("peer1", 85.0), ("peer2", 90.0)]
    int8 = [replace(row, precision="int8", name=f"{row.name} int8") for row in rows]
    assert [p.label for p in size_points([a_run(int8)])] == ["baseline int8"]


def test_each_data_set_has_a_front_of_its_own() -> None:
    runs = [a_run(name="a"), a_run(name="b", data="cifar100", top1=(65.0, 70.0), baseline=70.0)]
    section = accuracy_section(runs)
    assert "These runs are of different data (cifar10, cifar100), so their top-1 does not compare." in section.words
    layers = section.charts[0].choices[""]["layer"]
    assert [[point["top1"] for point in layer["data"]["values"]] for layer in layers[:2]] == [
        [85, 90, 90],
        [65, 70, 70],
    ]
    assert section.charts[0].caption.startswith("A dotted line is the Pareto front of one data set:")
    alone = accuracy_section(runs[:1])
    assert "different data" not in " ".join(alone.words) and alone.charts[0].caption.startswith("The dotted line")


def test_the_star_stands_at_the_rate_as_in_a_terminal() -> None:
    found = Scenario(valid=False, latency_bound_ms=20.0, rate_per_s=100.0, p99_ms=19.0, failed_rate_per_s=120.0)
    table = scenario_table(entries([a_run([made_row(1, 1.0, scenarios={"server": found})])]), several=False)
    assert table
    texts = dict(zip(table.header, table.rows[0], strict=True))
    assert texts["server, queries/s that held it"] == "100.0*"
    assert texts["server, p99 at that rate, ms"] == "19.0" and texts["server, queries/s that failed"] == "120.0"


def test_n_of_a_legend_counts_the_panels_that_have_fewer() -> None:
    def rows(batches: Sequence[int]) -> list[Row]:
        return [made_row(peer, float(batch), batch=batch) for batch in batches for peer in (0, 1, 2)]

    figure = accuracy_over_latency([a_run(rows((1, 8)), name="a"), a_run(rows((1,)), name="b", seed=1)])
    assert {line.words for line in figure.lines} == {"wml (n = 1 to 2)", "baseline"}


@pytest.mark.parametrize(
    ("start", "words"), [(None, "its peers are its baseline, cut."), ("net.pth", "its peers are the start, cut.")]
)
def test_a_run_that_trained_nothing_is_not_asked_for_its_curves(start: str | None, words: str) -> None:
    run = a_run(method="prune-finetune", finetune_epochs=0, start=start)
    assert f"run trained nothing: {words}" in training_section([run]).words
    assert weights_section([run]).words == [f"run trained nothing: {words}"]


def test_rows_of_an_earlier_bench_say_when_that_was() -> None:
    old = made_row(1, 0.5, name="peer1 int8", precision="int8", time="2025-01-01T00:00:00+00:00")
    assert all_notes(a_run([made_row(0), made_row(1, 1.0), old]), several=False) == [
        "peer1 int8: measured at 2025-01-01T00:00:00+00:00"
    ]


def test_where_numbers_come_from_is_in_words() -> None:
    told = origin(a_run([made_row(0)])).blocks["Data"]
    assert told["framing"] == made_framing(32).words and "Framing(" not in " ".join(told.values())


def test_sensitivities_are_drawn_where_no_latency_was_asked_for() -> None:
    run = a_run(start="net.pth")
    losses = [Sensitivity(group="stage1.0", units=[8, 16], nats=[0.25, 0.0])]
    run = replace(run, record=replace(run.record, sensitivity=losses))
    assert [(bar.group, bar.nats, bar.kept) for bar in group_bars(run)] == [("stage1.0", 0.25, "")]
    (chart,) = (chart for chart in widths_section([run]).charts if chart.key == "sensitivity")
    assert chart.caption.endswith("(a diamond: without its residual block).")


def test_a_long_time_has_all_its_digits() -> None:
    row = made_row(1, 1234.5, latency_ms=made_latency(1234.5))
    assert size_points([a_run([row])])[0].p50_text == "1,234 ms [1,173, 1,296]"


def test_a_name_that_is_no_unicode_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "make_page", lambda runs: f"<p>{runs[0].name}</p>")
    settings = made_settings()
    root = made_run(tmp_path / "r\udcff", settings, made_family(settings=settings)).root
    page.write_report([Run(root)], tmp_path / "page.html", force=False)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>r\\udcff</p>"
