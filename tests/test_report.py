"""What the report promises: an honest headline, nothing unescaped, nothing missing without a word."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import (
    made_bench,
    made_family,
    made_latency,
    made_layer,
    made_profile,
    made_record,
    made_row,
    made_run,
    made_settings,
)

from wmlc.cli import main
from wmlc.errors import InputError
from wmlc.records import Interval, Row, Scenario
from wmlc.report.cells import Cell, all_cells
from wmlc.report.charts import accuracy_chart, line_chart
from wmlc.report.headline import headline
from wmlc.report.page import make_page, script_json, templates, write_report
from wmlc.report.runs import TrainedRun, read_runs
from wmlc.report.sections import all_notes, all_sections
from wmlc.report.series import entries, latency_points, layer_rows, profile_pairs, size_points, width_bars
from wmlc.report.tables import row_table, scenario_table
from wmlc.run import Run
from wmlc.stats import positive_interval

NASTY = "</script><img src=x onerror=alert(1)>&\"'"
PARAMS, RATIOS = {0: 1000, 1: 300, 2: 600, 3: 1000}, {0: 0.0, 1: 0.7, 2: 0.4, 3: 0.0}
SCORES = {0: 90.0, 1: 85.0, 2: 89.5, 3: 90.2}
Change = Callable[[Row], dict[str, Any]]


def trained(
    top1: dict[int, float],
    speedups: dict[int, tuple[float, float, float]] | None = None,
    change: Change = lambda row: {},
    **changes: Any,
) -> TrainedRun:
    """A run of two pruned peers and a whole one; `top1` by peer, 0 being the baseline; `speedups` None: no bench."""
    peers = [peer for peer in top1 if peer]
    settings = made_settings(data="digits", ratios=tuple(RATIOS[peer] for peer in peers))
    family = made_family(
        [top1[peer] for peer in peers], top1.get(0), settings=settings, params=[PARAMS[peer] for peer in peers],
        macs=[10 * PARAMS[peer] for peer in peers], stages={"stem": [8], "stage1": [8, 4]},
    )  # fmt: skip
    family = replace(
        family, peers=[replace(peer, peer=number) for number, peer in zip(peers, family.peers, strict=True)]
    )
    if family.baseline:
        family = replace(family, baseline=replace(family.baseline, params=PARAMS[0], macs=10 * PARAMS[0]))
    rows = [
        made_row(peer, 2.0 - 0.5 * RATIOS[peer], (speedups or {}).get(peer, (1.0, 1.0, 1.0)), params=PARAMS[peer],
                 macs=10 * PARAMS[peer], ratio=RATIOS[peer], achieved_ratio=RATIOS[peer], top1=top1[peer],
                 top1_drop=top1.get(0, 0) - top1[peer])
        for peer in top1
    ]  # fmt: skip
    bench = None if speedups is None else made_bench([replace(row, **change(row)) for row in rows])
    run = TrainedRun(
        root=Path("runs/run"), name="run", record=made_record(settings), family=family, epochs=[], baseline_epochs=[],
        test_images=None, bench=bench,
    )  # fmt: skip
    return replace(run, **changes)


def test_headline_names_the_smallest_peer_within_a_point_and_its_speed_up() -> None:
    assert headline(trained(SCORES, {2: (1.2, 1.3, 1.4)})).replace("\u00a0", " ") == (
        "One training run of resnet20 on digits gave 3 networks of 300 to 1k parameters. Peer 2, with 40 % fewer "
        "parameters, is the smallest within a point of the baseline (top-1 89.50 % against 90.00 %; "
        "on 10,000 test images the drop is -0.3 to 1.3 points, 95 %), and 1.30 times as fast (95 % interval 1.20 to 1.40; ONNX Runtime, 1 thread, batch 1)."
    )
    assert "Peer 1, with 70" in headline(trained({**SCORES, 1: 89.0}, {})), "a whole point is within a point"


def test_headline_says_what_few_test_images_can_show() -> None:
    few = trained({0: 88.89, 1: 50.0, 2: 88.89, 3: 88.89}, test_images=45)
    said = headline(few).replace("\u00a0", " ")
    assert (
        "Peer 2, with 40 % fewer parameters, is the smallest that was measured within a point of the baseline, which so "
        "few test images cannot show (top-1 88.89 % against 88.89 %; on 45 test images the drop is -13.9 to 13.9 points, "
        "95 %). Nothing was timed yet"
    ) in said
    assert "on how many test images is not recorded" in headline(trained(SCORES))


def test_no_interval_of_a_time_is_drawn_below_zero() -> None:
    wide = {"p50_interval": Interval(low=-0.5, high=4.1), "latency_ms": made_latency(1.8)}
    run = trained(SCORES, {}, lambda row: wide)
    points = latency_points([run], all_cells(run.rows)[0])
    assert points and all(0 < point.low < 1.8 < point.high for point in points if point.low and point.high)
    assert positive_interval(1.8, 1.7, 1.9) == (1.7, 1.9)
    low, high = positive_interval(1.8, -0.5, 4.1)
    assert low * high == pytest.approx(1.8**2) and high / low == pytest.approx(math.exp(4.6 / 1.8))


def test_headline_says_when_a_peer_is_not_faster() -> None:
    assert "It is not faster but slower: 0.90 times as fast" in headline(trained(SCORES, {2: (0.8, 0.9, 0.95)}))
    assert "It is not shown to be faster: 1.01 times" in headline(trained(SCORES, {2: (0.99, 1.01, 1.05)}))


def test_headline_says_by_how_much_every_peer_misses() -> None:
    said = headline(trained({**SCORES, 2: 87.5}, {2: (1.2, 1.3, 1.4)})).replace("\u00a0", " ")
    assert "No pruned peer is within a point of the baseline: the nearest is peer 2, 2.50 points below" in said
    assert "misses the point by 1.50. It is 1.30 times as fast" in said


def test_headline_says_what_is_missing_and_the_command_that_makes_it() -> None:
    assert "Nothing was timed yet: 'wmlc bench --run runs/run' measures" in headline(trained(SCORES))
    alone = trained({peer: top1 for peer, top1 in SCORES.items() if peer})
    assert "There is no baseline" in headline(alone) and "'wmlc train' without --no-baseline" in headline(alone)
    assert "None of them is pruned" in headline(trained({0: 90.0, 3: 90.2}, {}))
    why = {"speedup": None, "notes": ["times not measured: it crashed"]}
    untimed = trained(SCORES, {}, lambda row: why if row.peer == 2 else {})
    assert "Its speed-up was not measured: times not measured: it crashed." in headline(untimed)
    lacking = replace(untimed, bench=made_bench([row for row in untimed.rows if row.peer != 2]))
    assert "The bench has no times of it" in headline(lacking)


def test_headline_takes_the_training_s_accuracy_where_the_engine_s_was_not_measured() -> None:
    assert "Peer 2" in headline(trained(SCORES, {2: (1.2, 1.3, 1.4)}, lambda row: {"top1": None}))


def test_networks_without_a_number_are_no_points() -> None:
    lacking = {1: {"top1": None}, 2: {"latency_ms": None}}
    run = trained(SCORES, {}, lambda row: lacking.get(row.peer, {}))
    assert [point.network for point in latency_points([run], Cell("ort", 1, 1))] == ["baseline", "peer3"]
    assert [(point.network, point.p50) for point in size_points([run])] == [
        ("baseline", 2.0), ("peer2", None), ("peer3", 2.0), ("peer1", None),  # the last by its training's top-1
    ]  # fmt: skip
    assert [point.label for point in size_points([trained(SCORES)])] == ["baseline", "peer1", "peer2", "peer3"]


def test_a_top1_has_the_interval_of_its_test_images() -> None:
    (point,) = size_points([trained({1: 85.0}, test_images=100)])
    assert (point.top1_low, point.top1_high) == (pytest.approx(76.72, abs=0.01), pytest.approx(90.69, abs=0.01))
    assert point.top1_text == "85.00 % [76.7, 90.7]"
    assert size_points([trained({1: 85.0})])[0].top1_text == "85.00 %"


def test_cells_in_words_and_threads_that_do_not_matter() -> None:
    rows = [
        made_row(threads=2),
        made_row(threads=4, device="cuda", batch=8),
        made_row(threads=1, device="cuda", batch=8),
    ]
    assert [cell.words for cell in all_cells(rows)] == [
        "ONNX Runtime, 2 threads, batch 1",
        "ONNX Runtime, batch 8",
    ]


def test_layers_stand_side_by_side_and_the_slow_ones_are_marked() -> None:
    def layers(times: dict[str, float], channels: int) -> list[Any]:
        wide = {name: 8 if name == "stem" else channels for name in times}
        return [made_layer(name, ms, macs=8 * wide[name], channels=(8, wide[name])) for name, ms in times.items()]

    whole = made_profile(0, layers({"stem": 1.0, "a": 1.0, "b": 1.0}, 8))
    cut = made_profile(1, layers({"stem": 1.1, "a": 0.5, "b": 0.99}, 4))
    rows = layer_rows(whole, cut)
    assert [row.speed for row in rows] == ["△ 0.91×", "2.00×", "▲ 1.01×"]
    assert [row.no_faster for row in rows] == [False, False, True]
    assert (rows[0].channels, rows[1].channels, rows[1].macs) == ("8→8", "8→8 | 8→4", "64 | 32")
    run = replace(trained(SCORES), bench=made_bench([], profiles=[whole, cut]))
    assert [words for words, _, _ in profile_pairs(run)] == ["peer1, ONNX Runtime, 1 thread, batch 1"]


def test_charts_are_plain_records_without_a_network() -> None:
    points = size_points([trained(SCORES, {})])
    chart = accuracy_chart(points, "params", "parameters", ["baseline", "peer1", "peer2", "peer3"], "network")
    assert [point["network"] for point in chart["data"]["values"]] == ["baseline", "peer1", "peer2", "peer3"]
    assert chart["layer"][0]["data"]["values"] == [{"params": p.params, "top1": p.top1} for p in points[1:]]
    lines = line_chart({"a": [(1, 0.5)], "b": [(1, 0.25), (2, 0.75)]}, ["a", "b"], "ω", ".2f", level=0.5)
    assert lines["layer"][2]["data"]["values"] == [{"epoch": 1, "n0": 0.5, "n1": 0.25}, {"epoch": 2, "n1": 0.75}]
    assert "url" not in json.dumps([chart, lines])
    bar = width_bars(trained(SCORES))[1]
    assert (bar.stage, bar.who, bar.number, bar.layers) == ("stage1", "peer1", "1", "8, 4")
    assert (bar.mean, bar.least, bar.most) == (6.0, 4, 8)


def test_tables_leave_out_what_no_row_has() -> None:
    shown = entries([trained(SCORES, {})])
    table = row_table(shown, several=False)
    assert len(table.rows) == len(shown) and "paid out" not in table.header and "run" not in table.header
    assert row_table(shown, several=True).header[0] == "run"
    assert row_table(entries([trained(SCORES)]), several=False).header == [
        "network", "pruned, asked / got", "top-1, %", "drop, points", "parameters", "MACs",
    ]  # fmt: skip
    assert scenario_table(shown, several=False) is None


def test_scenarios_mark_what_rests_on_too_little() -> None:
    asked = {
        0: {"server": Scenario(valid=True, latency_bound_ms=5.0, failed_rate_per_s=10.0)},
        1: {"offline": Scenario(valid=False, samples_per_s=1234.0, n=3)},
    }
    run = trained(SCORES, {}, lambda row: {"scenarios": asked.get(row.peer, {})})
    table = scenario_table(entries([run]), several=False)
    assert table and len(table.rows) == 2
    texts = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert texts[0]["server, queries/s that held it"] == "none" and texts[1]["offline, samples/s"] == "1,234*"
    assert texts[1]["server, queries/s that held it"] == "–" and "single stream p50, ms" not in table.header


def test_notes_are_told_once() -> None:
    run = trained(SCORES, {}, lambda row: {"notes": ["p99 is weak", *(["slow"] if row.peer == 1 else [])]})
    run = replace(run, bench=made_bench(run.rows, notes=["the machine was busy"]))
    assert all_notes(run, several=False) == ["the machine was busy", "all: p99 is weak", "peer1: slow"]
    assert all_notes(run, several=True)[0] == "run: the machine was busy"


def test_what_is_missing_is_said_with_the_command_that_makes_it() -> None:
    words = {section.key: " ".join(section.words) for section in all_sections([trained(SCORES)])}
    assert "'wmlc bench --run runs/run' measures latency" in words["accuracy"]
    assert "has no runs/run/metrics.jsonl" in words["training"] and "metrics.jsonl" in words["weights"]
    assert "'wmlc bench --run runs/run --profile' makes one" in words["layers"]
    assert "'wmlc bench --scenario" in words["scenarios"]


def test_nothing_in_a_record_can_leave_its_place() -> None:
    assert json.loads(script_json({"a": NASTY})) == {"a": NASTY}
    assert not set("<>&") & set(script_json({"a": NASTY}))
    named = {1: {"name": NASTY}}
    run = trained(SCORES, {}, lambda row: {"notes": [NASTY], **named.get(row.peer, {})}, name=NASTY)
    settings = made_settings(data_root=NASTY)
    page = make_page([replace(run, record=made_record(settings, command=NASTY))])
    scripts = re.findall(r"<script.*?</script>", page, re.DOTALL)
    assert len(scripts) == 3 and page.count("</script") == 3
    assert "<img src=x" not in page
    assert "default-src 'none'" in page and "unsafe-eval" not in page


def test_templates_escape_and_know_all_their_names() -> None:
    assert templates().from_string("{{ a }}").render(a=NASTY).startswith("&lt;/script&gt;")
    with pytest.raises(Exception, match="'b' is undefined"):
        templates().from_string("{{ b }}").render(a=NASTY)


def test_a_report_is_not_overwritten_and_unfinished_runs_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_report([Run(tmp_path)], out, force=False)
    with pytest.raises(InputError, match="is not finished"):
        write_report([Run(tmp_path)], out, force=True)
    assert out.read_text() == "mine"
    empty = tmp_path / "directory"
    empty.mkdir()
    with pytest.raises(InputError, match="is a directory"):
        write_report([Run(tmp_path)], empty, force=True)


def test_damaged_records_are_refused_in_one_line(tmp_path: Path) -> None:
    settings = made_settings()
    run = made_run(tmp_path / "run", settings, made_family(settings=settings))
    assert read_runs([run], with_bench=True)[0].bench is None
    again = f"bench again with 'wmlc bench --run {run.root}'"
    for damage, said in (
        ('{"rows": [1]}', "is no bench record of this wmlc: its schema_version is missing"),
        (
            '{"schema_version": 2, "rows": [1]}',
            "is not a readable bench record: command is missing; environment is miss",
        ),
        ("[" * 100_000, "is not a readable bench record: damaged or truncated JSON (recursion limit exceeded"),
    ):
        run.bench.write_text(damage)
        with pytest.raises(InputError) as refused:
            read_runs([run], with_bench=True)
        message = str(refused.value)
        assert message.startswith(f"{run.bench} {said}") and message.endswith(again) and "\n" not in message
    assert read_runs([run], with_bench=False)[0].bench is None
    with pytest.raises(InputError, match="named once"):
        read_runs([run, run], with_bench=False)


def test_epochs_of_another_number_of_peers_are_damage(tmp_path: Path) -> None:
    settings = made_settings()
    run = made_run(tmp_path / "run", settings, made_family(settings=settings))
    run.metrics("family").write_text(
        '{"schema_version": 2, "epoch": 1, "seconds": 1.0, "images_per_s": 1.0, "train_loss": 1.0, "top1": [50.0], '
        '"ensemble_top1": 50.0, "average_ensemble_top1": 50.0, "peer_weights": [1.0], "lr": 0.1}\n'
    )
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged: epoch 1 is not of 2 peers; train the run again"):
        read_runs([run], with_bench=False)


def test_a_page_is_written_to_no_file_of_another_kind(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", "--out", str(tmp_path / "config.json"), "--force"])
    assert (result.exit_code, result.output) == (1, f"Error: --out must end in .html, got {tmp_path / 'config.json'}\n")
