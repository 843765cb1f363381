"""Each number of a page and of a terminal's table in its own column: rows in which no two numbers are alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import (
    made_bench,
    made_epoch,
    made_family,
    made_latency,
    made_layer,
    made_plan,
    made_profile,
    made_record,
    made_row,
    made_settings,
    made_speedup,
)

from wmlc.records import Bench, Epoch, Family, Row, Scenario, Sensitivity
from wmlc.report import budgets, sections, series
from wmlc.report.cells import Cell
from wmlc.report.runs import TrainedRun
from wmlc.report.series import entries
from wmlc.report.tables import row_table, scenario_table

CELL = Cell("ort", 1, 1)
ROW = made_row(
    1, ratio=0.7, achieved_ratio=0.68, params=3210, macs=345, mac_ratio=2.9, file_bytes=45_600, speedup=(1.5, 1.6, 1.7),
    latency_ms=made_latency(2.0, mean=2.1, min=1.9, p90=2.4, p99=3.5), paid_out=0.55, throughput_per_s=512.0,
    load_ms=12.3, first_ms=4.5, peak_memory_bytes=91_000_000, engine_memory_bytes=7_000_000, top1=88.5, top1_drop=1.25,
    on_front=True, latency_budget_ms=2.5, budget_met=True,
)  # fmt: skip
FOUND = {
    "single-stream": Scenario(valid=True, p50_ms=1.1, p90_ms=1.2, p99_ms=1.3),
    "multi-stream": Scenario(valid=True, p50_ms=2.1, p90_ms=2.2, p99_ms=2.3, samples_per_query=8),
    "offline": Scenario(valid=True, samples_per_s=456.0),
    "server": Scenario(
        valid=True, latency_bound_ms=20.0, rate_per_s=123.0, failed_rate_per_s=234.0, p50_ms=3.1, p99_ms=19.0
    ),
}


def a_run(
    rows: Sequence[Row] = (), top1: tuple[float, ...] = (85.0, 89.0), *, epochs: Sequence[Epoch] = (),
    baseline_epochs: Sequence[Epoch] = (), name: str = "run", family: dict[str, Any] | None = None,
    bench: Bench | None = None, **settings: Any,
) -> TrainedRun:  # fmt: skip
    """A run without files, of two peers and a baseline; `family` and `bench` change its records."""
    asked = made_settings(top1, **settings)
    made: Family = replace(made_family(top1, 90.0, settings=asked), **(family or {}))
    return TrainedRun(
        root=Path("runs") / name, name=name, record=made_record(asked), family=made, epochs=list(epochs),
        baseline_epochs=list(baseline_epochs), test_images=400, bench=bench or (made_bench(rows) if rows else None),
    )  # fmt: skip


def test_every_column_of_the_page_shows_its_own_number_and_is_sorted_by_it() -> None:
    table = row_table(entries([a_run([made_row(0, ratio=0.1, on_front=False), ROW])]), several=False)
    whole, cut = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert cut == {
        "network": "peer1", "pruned, asked / got": "70% / 68.0%", "engine": "ONNX Runtime", "precision": "fp32",
        "threads": "1", "batch": "1", "top-1, %": "88.50", "drop, points": "1.25", "p50, ms": "2.00",
        "budget, ms": "2.50", "within it": "met", "speed-up [95 %]": "1.60 [1.50, 1.70]", "paid out": "0.55",
        "parameters": "3.21k", "MACs": "345", "file, B": "45.6k", "p90, ms": "2.40", "p99, ms": "3.50",
        "images/s": "512", "load, ms": "12.3", "first, ms": "4.5", "peak memory, B": "91M", "engine memory, B": "7M",
        "on the front": "yes",
    }  # fmt: skip
    assert (whole["pruned, asked / got"], whole["on the front"], whole["within it"]) == ("–", "no", "–")
    assert dict(zip(table.header, table.values[1], strict=True)) == {
        "network": "peer1", "pruned, asked / got": 0.68, "engine": "ort", "precision": "fp32", "threads": 1, "batch": 1,
        "top-1, %": 88.5, "drop, points": 1.25, "p50, ms": 2.0, "budget, ms": 2.5, "within it": 1, "speed-up [95 %]": 1.6,
        "paid out": 0.55, "parameters": 3210, "MACs": 345, "file, B": 45_600, "p90, ms": 2.4, "p99, ms": 3.5,
        "images/s": 512.0, "load, ms": 12.3, "first, ms": 4.5, "peak memory, B": 91_000_000,
        "engine memory, B": 7_000_000, "on the front": 1,
    }  # fmt: skip


def test_every_column_of_the_scenarios_shows_its_own_number() -> None:
    table = scenario_table(entries([a_run([replace(ROW, scenarios=FOUND)])]), several=False)
    assert table is not None
    assert dict(zip(table.header, table.rows[0], strict=True)) == {
        "network": "peer1", "engine": "ONNX Runtime", "threads": "1", "batch": "1", "single stream p50, ms": "1.10",
        "single stream p99, ms": "1.30", "multi-stream, samples a query": "8", "multi-stream p99, ms": "2.30",
        "offline, samples/s": "456.0", "server, bound on p99, ms": "20", "server, queries/s that held it": "123.0",
        "server, p99 at that rate, ms": "19.0", "server, queries/s that failed": "234.0",
    }  # fmt: skip


def test_a_run_without_a_bench_tells_what_its_training_left() -> None:
    whole, cut, _ = entries([a_run()])
    assert (whole.name, whole.top1_drop, cut.name, cut.top1, cut.top1_drop) == ("baseline", 0.0, "peer1", 85.0, 5.0)
    points = series.size_points([a_run()])
    assert points[1].top1_text.endswith("(drop 5.00)") and points[0].top1_text.endswith("(drop 0.00)")


def test_a_point_has_the_ends_of_its_own_intervals() -> None:
    run = a_run([ROW, replace(ROW, batch=8, latency_ms=made_latency(9.0))])
    (point,) = series.latency_points([run], CELL)
    assert (point.low, point.p50, point.high) == (1.9, 2.0, 2.1)
    # of the bench's 10,000 test images, not of the 400 that the run was evaluated on
    assert (point.top1_low, point.top1_high) == (pytest.approx(87.86, abs=0.01), pytest.approx(89.11, abs=0.01))
    assert (point.speedup_text, point.params_text, point.macs_text) == ("1.60 [1.50, 1.70]", "3.21k", "345")
    slower = replace(ROW, speedup=made_speedup(0.8, 0.9, 0.95))
    assert series.latency_points([a_run([slower])], CELL)[0].speedup_text == "0.90 [0.80, 0.95]"
    (twelfth,) = series.latency_points([a_run([made_row(12)])], CELL)
    assert twelfth.number == "12"


def test_curves_are_each_networks_own() -> None:
    epochs = [
        made_epoch(
            1, (60.0, 70.0), ensemble_top1=75.0, average_ensemble_top1=74.0, peer_weights=[0.3, 0.7], train_loss=3.0
        )
    ]
    run = a_run(epochs=epochs, baseline_epochs=[made_epoch(1, (65.0,), ensemble_top1=66.0, train_loss=2.0)])
    assert series.top1_lines(run) == {
        "baseline": [(1, 65.0)], "peer1": [(1, 60.0)], "peer2": [(1, 70.0)], "ensemble": [(1, 75.0)],
    }  # fmt: skip
    assert series.weight_lines(run) == {"peer1": [(1, 0.3)], "peer2": [(1, 0.7)]}
    assert series.loss_lines(run) == {"baseline": [(1, 2.0)], "family": [(1, epochs[0].mean_loss)]}


def test_profiles_are_paired_within_a_cell_and_bars_are_whose_they_are() -> None:
    whole, cut = (made_profile(peer, [made_layer("conv", 2.0 - peer, 64 - 32 * peer)]) for peer in (0, 1))
    elsewhere = replace(cut, batch=8)
    run = a_run(bench=made_bench([made_row(0)], profiles=[whole, cut, elsewhere]))
    assert [(words, base.peer, own.peer) for words, base, own in series.profile_pairs(run)] == [
        ("peer1, ONNX Runtime, 1 thread, batch 1", 0, 1)
    ]
    (row,) = series.layer_rows(whole, cut)
    assert (row.baseline_ms, row.peer_ms, row.speed, row.macs) == (2.0, 1.0, "2.00×", "64 | 32")
    (chart,) = sections.layers_section([run]).charts
    (spec,) = chart.choices.values()
    assert [(bar["baseline_ms"], bar["peer_ms"]) for bar in spec["data"]["values"]] == [(2.0, 1.0)]
    int8 = replace(cut, name="peer1 int8", precision="int8")
    (chart,) = sections.layers_section([a_run(bench=made_bench([], profiles=[whole, int8]))]).charts
    steps = json.dumps(next(iter(chart.choices.values()))["layer"][0]["transform"], ensure_ascii=False)
    assert (
        '? \\"peer1 int8\\" : \'baseline\'", "as": "name"' in steps
        and '? \\"peer1\\" : \'baseline\'", "as": "who"' in steps
    )
    (words,) = sections.layers_section([a_run(bench=made_bench([], profiles=[cut]))]).words
    assert words.startswith("run has no layer profile of a baseline to set one beside; ")


def test_bars_of_a_scenario_are_of_one_cell() -> None:
    rows = [
        replace(ROW, scenarios=FOUND),
        replace(ROW, batch=8, scenarios={"offline": Scenario(valid=True, samples_per_s=999.0)}),
    ]
    section = sections.scenarios_section([a_run(rows)])
    server, offline = section.charts
    assert (server.key, list(server.choices)) == ("server-rate", [CELL.words])
    assert [bar["value"] for bar in server.choices[CELL.words]["data"]["values"]] == [123.0]
    assert server.choices[CELL.words]["layer"][0]["encoding"]["x"]["title"] == "queries/s"
    assert (offline.key, list(offline.choices)) == ("offline-rate", [CELL.words, "ONNX Runtime, 1 thread, batch 8"])
    assert [spec["data"]["values"][0]["value"] for spec in offline.choices.values()] == [456.0, 999.0]
    assert offline.choices[CELL.words]["layer"][0]["encoding"]["x"]["title"] == "samples/s"
    assert section.words == []
    few = {"offline": Scenario(valid=False, samples_per_s=1.0)}
    starred = sections.scenarios_section([a_run([replace(ROW, scenarios=few)])])
    assert starred.words == ["A star marks a number that rests on too few queries."]


def test_the_plan_has_each_peer_beside_its_own_budget() -> None:
    plan = made_plan((0.5, 0.8), full_ms=2.0)
    rows = [made_row(0), *(made_row(peer, ms, latency_budget_ms=ms, budget_met=met)
                           for peer, ms, met in ((1, 0.52, False), (2, 0.79, True)))]  # fmt: skip
    run = a_run(rows, family={"latency": plan})
    table = budgets.plan_table([run], several=False)
    told = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [(row["network"], row["MACs"], row["of all MACs"], row["benched, ms"]) for row in told] == [
        ("peer1", "400", "40.0%", "0.520"), ("peer2", "1k", "100.0%", "0.790"),
    ]  # fmt: skip
    sorted_by = [dict(zip(table.header, row, strict=True)) for row in table.values]
    assert [(row["benched, ms"], row["within it"]) for row in sorted_by] == [(0.52, 0), (0.79, 1)]
    on_gpu = replace(plan, at=replace(plan.at, gpu="a GPU", device="cuda"))
    assert " on a GPU, where" in budgets.plan_words([a_run(family={"latency": on_gpu})])[0]


def test_what_a_group_loses_and_what_is_kept_of_it_are_its_own() -> None:
    own = Sensitivity(group="a", units=[2, 8, 16], nats=[0.9, 0.4, 0.0])
    plan = replace(made_plan((0.5, 0.8)), sensitivity=[own])
    peers = [replace(peer, counts={"a": 4 * peer.peer}) for peer in plan.peers]
    run = a_run(family={"latency": replace(plan, peers=peers)})
    (bar,) = series.group_bars(run)
    assert (bar.nats, bar.kept) == (own.by_half, "4, 8 of 16") and own.by_half != own.nats[0]
    (chart,) = (each for each in sections.widths_section([run]).charts if each.key == "sensitivity")
    assert "beside it, what each peer keeps" in chart.caption


def test_benches_on_two_machines_are_said_to_be() -> None:
    bench = made_bench([made_row(0)])
    other = replace(bench, environment=replace(bench.environment, cpu="another CPU"))
    words = "These runs were benched on different machines, so their latencies do not compare."
    both = [a_run(bench=bench, name="a"), a_run(bench=other, name="b")]
    assert words in sections.accuracy_section(both).words
    assert words not in sections.accuracy_section([both[0], replace(both[0], name="c")]).words


def test_accuracy_is_drawn_over_what_each_title_says() -> None:
    charts = {chart.key: chart for chart in sections.accuracy_section([a_run([ROW])]).charts}
    fields = {
        key: next(iter(chart.choices.values()))["layer"][-1]["encoding"]["x"]["field"] for key, chart in charts.items()
    }
    assert fields == {
        "accuracy-over-latency": "p50", "accuracy-over-parameters": "params", "accuracy-over-macs": "macs",
    }  # fmt: skip
    assert "int8" not in charts["accuracy-over-latency"].caption
    both = sections.accuracy_section([a_run([ROW, replace(ROW, name="peer1 int8", precision="int8")])])
    assert "hollow ones int8" in both.charts[0].caption


def test_one_row_without_top1_does_not_say_that_the_bench_left_all_unmeasured() -> None:
    lacking = replace(made_row(2), top1=None)
    assert "left top-1 unmeasured" not in " ".join(sections.accuracy_section([a_run([ROW, lacking])]).words)
    assert "left top-1 unmeasured" in " ".join(sections.accuracy_section([a_run([lacking])]).words)


def test_commands_settings_and_machines_stand_under_their_own_titles() -> None:
    found = sections.origin(a_run([ROW], seed=3))
    assert found.commands == {"trained with": "wmlc train", "benched with": "wmlc bench"}
    assert found.blocks["Machine and versions of the bench"]["cpu"] == "a CPU"
    assert found.blocks["Machine and versions of the training"]["threads"] == "1"
    assert (
        found.blocks["Settings of the training"]["seed"] == "3" and "engines" in found.blocks["Settings of the bench"]
    )
    assert found.blocks["Settings of the training"]["nesterov"] == "no"
    bare = sections.origin(a_run())
    assert bare.commands["benched with"] == "not benched" and "Settings of the bench" not in bare.blocks


def test_notes_of_the_training_are_on_the_page() -> None:
    assert sections.all_notes(a_run(family={"notes": ["it was resumed"]}), several=False) == ["it was resumed"]


def test_equal_weights_are_a_line_at_one_over_the_trained_peers() -> None:
    lines = [made_epoch(1, (60.0, 70.0), peer_weights=[0.5, 0.5])]
    run = a_run(top1=(60.0, 70.0, 80.0), epochs=lines, start="net.pth", ratios=(0.7, 0.5, 0.0))
    section = sections.weights_section([run])
    assert "run: its weights are equal throughout (wml)." in section.words
    assert section.charts[0].choices[""]["layer"][0]["encoding"]["y"]["datum"] == 0.5
    moved = sections.weights_section([a_run(epochs=[made_epoch(1, (60.0, 70.0), peer_weights=[0.4, 0.6])])])
    assert "equal throughout" not in " ".join(moved.words)


def test_blocks_that_a_peer_is_without_are_named() -> None:
    run = a_run()
    cut = replace(run.family.peers[0], left_out=["stage2.1"])
    words = sections.widths_section([replace(run, family=replace(run.family, peers=[cut, run.family.peers[1]]))]).words
    assert words == ["Peer 1 is without the residual blocks stage2.1."]


def test_a_bench_of_nothing_is_a_bench() -> None:
    assert "not benched yet" not in " ".join(sections.accuracy_section([a_run(bench=made_bench([]))]).words)
    assert "run was not benched yet" in " ".join(sections.accuracy_section([a_run()]).words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "run: the baseline has no curve here, as it was trained in another run."),
        ({"start": "net.pth"}, "run: the baseline has no curve here, as it is the start, as it stands."),
        (
            {"start": "net.pth", "baseline_from": "runs/other"},
            "run: the baseline has no curve here, as it was trained in another run.",
        ),
    ],
)
def test_a_baseline_without_a_curve_is_told_where_it_is_from(settings: dict[str, Any], words: str) -> None:
    run = a_run(epochs=[made_epoch(1, (60.0, 70.0))], **settings)
    assert sections.training_section([run]).words[-1] == words
    drawn = replace(run, baseline_epochs=[made_epoch(1, (65.0,))])
    assert "no curve" not in " ".join(sections.training_section([drawn]).words)


def test_a_loss_says_that_a_feature_term_is_in_it() -> None:
    for settings, caption in (
        ({}, ""),
        ({"feature_loss": "hints", "feature_weight": 100.0}, "The family's has 100 times the feature term in it."),
    ):
        run = a_run(epochs=[made_epoch(1, (60.0, 70.0))], **settings)
        assert [chart.caption for chart in sections.training_section([run]).charts] == ["", caption]


def test_what_is_cut_from_a_start_was_not_trained_with_it() -> None:
    run = a_run(method="prune-finetune", share="none", start="net.pth", epochs=[made_epoch(1, (60.0, 70.0))])
    (cost, *_) = (words for words in sections.training_section([run]).words if words.startswith("Training:"))
    assert cost.endswith("(the baseline's apart, that of the start not counted).")


def test_a_trained_top1_stands_beside_a_benched_one_of_the_same_precision_alone() -> None:
    int8 = made_row(0, name="baseline int8", precision="int8", top1=80.0)
    assert [point.label for point in series.size_points([a_run([int8, ROW])])] == ["baseline int8", "peer1"]
    assert [point.label for point in series.size_points([a_run([made_row(0), ROW])])] == ["baseline", "peer1", "peer2"]


def test_a_stages_width_is_the_mean_over_its_layers() -> None:
    run = a_run()
    cut = replace(run.family.peers[0], stage_channels={"stem": [2, 8, 8]})
    (bar, _) = series.width_bars(replace(run, family=replace(run.family, peers=[cut, run.family.peers[1]])))
    assert (bar.mean, bar.least, bar.most, bar.layers) == (6.0, 2, 8, "2, 8, 8")


def test_a_budget_at_the_very_end_of_the_interval_is_met_but_not_for_sure() -> None:
    assert budgets.verdict(replace(ROW, latency_budget_ms=2.1)) == "met, not for sure"
    assert budgets.verdict(replace(ROW, latency_budget_ms=1.9, budget_met=False)) == "missed, not for sure"
    assert budgets.verdict(ROW) == "met"
