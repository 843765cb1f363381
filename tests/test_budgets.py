"""Latency budgets: which rows of a bench are held against them, what is said, and how people are shown them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made import made_bench, made_family, made_plan, made_row, made_run, made_settings
from measured import CELL, measured

from wmlc import records
from wmlc.bench.budgets import budget_of, check_budgets, planned_notes
from wmlc.bench.cells import Cell, Measurement
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines.machine import read_environment
from wmlc.bench.rows import make_rows
from wmlc.cli import main
from wmlc.errors import InputError
from wmlc.records import Bench, Environment, Interval, LatencyPlan, Row, Sensitivity
from wmlc.report.compare import compare_runs
from wmlc.report.headline import headline
from wmlc.report.listing import print_runs
from wmlc.report.runs import TrainedRun, read_runs
from wmlc.report.sections import all_sections
from wmlc.report.sizes import accuracy_over_ratio
from wmlc.report.tables import row_table
from wmlc.run import Run

FEW = "p99 rests on fewer than 1,000 calls; raise --seconds for a firm one"
QUIET = BenchConfig(accuracy=True)


def rows_of(plan: LatencyPlan | None, *networks: Measurement, cell: Cell = CELL) -> list[Row]:
    top1 = {own.subject.key: 90.0 for own in networks}
    return make_rows(cell, {own.subject.key: own for own in networks}, top1, QUIET, plan)


def held(rows: list[Row]) -> list[tuple[float | None, bool | None]]:
    return [(row.latency_budget_ms, row.budget_met) for row in rows]


def test_each_peer_is_held_against_its_own_budget_by_its_median() -> None:
    networks = measured(0, 1.0), measured(1, 0.5, macs=50), measured(2, 0.8, macs=80), measured(3, 1.0)
    rows = rows_of(made_plan((0.5, 0.7)), *networks)
    assert held(rows) == [(None, None), (0.5, True), (0.7, False), (None, None)]
    assert held(rows_of(None, *networks)) == [(None, None)] * 4
    skewed = measured(1, bursts=[[np.array([0.4, 0.4, 9.0])] * 3] * 2)
    assert held(rows_of(made_plan((0.5,)), measured(0), skewed))[1] == (0.5, True)


def test_a_peer_as_large_as_the_unpruned_network_has_no_budget() -> None:
    assert made_plan((0.5, 1.0)).budgets_ms == {1: 0.5}


def test_a_failed_peer_keeps_its_budget_and_has_no_verdict() -> None:
    rows = rows_of(made_plan(), measured(0), measured(1, failure="it fell over"))
    assert held(rows)[1] == (0.6, None) and rows[1].notes == ["times and speed-up not measured: it fell over"]


@pytest.mark.parametrize("changed", [{"engine": "openvino"}, {"batch": 8}, {"threads": 2}, {"device": "cuda"}])
def test_another_cell_has_no_budget(changed: dict[str, Any]) -> None:
    assert budget_of(made_plan(), CELL, 1, "fp32") == 0.6
    assert budget_of(made_plan(), replace(CELL, **changed), 1, "fp32") is None
    assert budget_of(made_plan(), CELL, 1, "int8") is None


def test_on_a_gpu_threads_do_not_matter() -> None:
    plan = made_plan(device="cuda", threads=2)
    assert budget_of(plan, replace(CELL, device="cuda", threads=1), 1, "fp32") == 0.6


def test_notes_say_what_is_missed_and_what_is_not_shown() -> None:
    def noted(ms: float, budget_ms: float, full_ms: float = 1.0, spread: float = 0.0) -> list[str]:
        launches = [[np.full(250, ms + spread * sign)] * 2 for sign in (-1, 0, 1)]
        full = measured(0, bursts=[[np.full(250, full_ms)] * 2] * 3)
        return rows_of(made_plan((budget_ms,)), full, measured(1, macs=50, bursts=launches))[1].notes

    assert noted(0.5, 0.6) == []
    assert noted(0.7, 0.6) == ["misses its latency budget of 0.6 ms: p50 0.7 ms [0.7, 0.7]"]
    assert noted(0.7, 0.6, full_ms=1.1) == [
        "misses its latency budget of 0.6 ms: p50 0.7 ms [0.7, 0.7]; the unpruned network takes 1.10 times as long as "
        "when it was planned"
    ]
    (unsure,) = noted(0.6, 0.601, spread=0.002)
    assert re.fullmatch(
        r"its p50 0\.6 ms \[0\.59\d, 0\.60\d\] cannot be told apart from its latency budget of 0\.601 ms, met by p50 alone",
        unsure,
    )
    wild = noted(0.6, 0.59, spread=0.2)[-1]  # the first says that it is not shown to be faster either
    assert wild.endswith("missed by p50 alone; the machine was too noisy: close other programs, or raise --seconds")


def test_what_was_planned_in_int8_is_held_against_the_unpruned_network_in_int8() -> None:
    networks = [measured(0, 2.0), measured(0, 1.1, precision="int8"), measured(1, 0.7, precision="int8", macs=50)]
    (note,) = [own for own in rows_of(made_plan((0.6,), precision="int8"), *networks)[2].notes if "budget" in own]
    assert note.endswith("; the unpruned network takes 1.10 times as long as when it was planned")


def here(**changes: Any) -> Environment:
    return replace(read_environment({"ort": "cpu"}, (1,)), cpu="a CPU", **changes)


def test_a_bench_says_once_what_budgets_are_for() -> None:
    plan, own = made_plan(), made_row(1, latency_budget_ms=0.6, budget_met=False)
    other = "latency budgets are for ort 1.31.1, fp32, 1 thread, batch 1; other cells are not held against them"
    assert planned_notes(plan, [made_row(0), own], here()) == []
    assert planned_notes(plan, [made_row(0), own, made_row(1, batch=8), made_row(1, batch=4)], here()) == [other]
    assert planned_notes(plan, [own], replace(here(), cpu="another CPU")) == [
        "latency budgets were planned on a CPU, and this is another CPU"
    ]
    assert planned_notes(None, [made_row(1)], here()) == planned_notes(made_plan((1.0,)), [made_row(1)], here()) == []


def run_with(root: Path, plan: LatencyPlan | None, bench: Bench | None = None) -> Run:
    """A finished run of a cut peer and a whole one."""
    settings = made_settings(ratio_of="latency" if plan else "params", max_latency_ms=(0.6,) if plan else ())
    return made_run(root, settings, made_family(settings=settings, latency=plan), bench=bench)


def test_a_gate_by_budgets_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    gate, devices = BenchConfig(max_latency_ms="budget"), {"ort": "cpu", "openvino": "cpu"}
    check_budgets(run_with(tmp_path / "a", made_plan()), gate, devices)
    check_budgets(run_with(tmp_path / "b", None), BenchConfig(max_latency_ms=3.0), devices)
    with pytest.raises(
        InputError, match=r"^the peers of .*/b were not cut for a latency; give --max-latency-ms a number"
    ):
        check_budgets(Run(tmp_path / "b"), gate, devices)
    for asked in ({"engines": ("openvino",)}, {"batches": (2, 8)}, {"precisions": ("int8",)}):
        with pytest.raises(InputError) as raised:
            check_budgets(Run(tmp_path / "a"), replace(gate, **asked), devices)  # type: ignore[arg-type]
        assert str(raised.value).removeprefix(f"the latency budgets of {tmp_path}/a ") == (
            "are for ort 1.31.1, fp32, 1 thread, batch 1, which is not among what shall be measured; ask for --engine "
            "ort --precision fp32 --threads 1 --batch 1 --device cpu, or give --max-latency-ms a number of milliseconds"
        )
    check_budgets(Run(tmp_path / "a"), replace(gate, batches=(1, 8), engines=("openvino", "ort")), devices)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-latency-ms", "soon"], "Invalid value for '--max-latency-ms': 'soon' is neither a number nor budget."),
        (["--max-latency-ms", "0"], "--max-latency-ms must be above 0, got 0"),
        (["--max-latency-ms", "nan"], "--max-latency-ms must be above 0, got nan"),
        (["some.onnx", "--max-latency-ms", "budget"],
         "files were not cut for a latency; give --max-latency-ms a number of milliseconds"),
        (["some.onnx", "--max-drop", "1"],
         "--max-drop and --min-speedup hold a file against the first of them; give a second file"),
        (["--run", "RUN", "--device", "cpu", "--max-latency-ms", "budget"],
         "the peers of RUN were not cut for a latency; give --max-latency-ms a number of milliseconds"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    run = run_with(tmp_path / "run", None)
    result = CliRunner().invoke(main, ["bench", *(word.replace("RUN", str(run.root)) for word in words)])
    assert (result.exit_code, result.output) == (1, f"Error: {message.replace('RUN', str(run.root))}\n")


def test_a_bench_from_before_budgets_is_read(tmp_path: Path) -> None:
    new = made_bench([made_row(1, latency_budget_ms=0.6, budget_met=True)])
    file = tmp_path / "bench.json"
    records.write(file, new)
    assert records.read(file, Bench, "bench", "bench again") == new
    old = json.loads(file.read_text())
    del old["rows"][0]["latency_budget_ms"], old["rows"][0]["budget_met"], old["settings"]["max_latency_ms"]
    file.write_text(json.dumps(old))
    found = records.read(file, Bench, "bench", "bench again")
    assert held(found.rows) == [(None, None)] and found.settings.max_latency_ms is None
    for bound in (3.0, "budget"):
        old["settings"]["max_latency_ms"] = bound
        file.write_text(json.dumps(old))
        assert records.read(file, Bench, "bench", "bench again").settings.max_latency_ms == bound


def trained(tmp_path: Path, row: Row | None = None) -> TrainedRun:
    bench = None if row is None else made_bench([made_row(0, 1.0), row])
    (run,) = read_runs([run_with(tmp_path / "run", made_plan((0.6, 1.0)), bench)], with_bench=True)
    return run


ROW = made_row(1, 0.61, latency_budget_ms=0.6, budget_met=False, p50_interval=Interval(low=0.605, high=0.615))


def test_the_page_has_the_plan(tmp_path: Path) -> None:
    (section,) = [each for each in all_sections([trained(tmp_path)]) if each.key == "budgets"]
    assert section.words[0] == (
        "run: milliseconds a call in ort 1.31.1, fp32, 1 thread, batch 1 on a CPU, where the unpruned network takes "
        "1.00 ms. Its ratios are shares of these milliseconds."
    )
    assert section.words[-1].startswith("No bench has held a peer against its budget yet")
    assert section.table is not None
    table = [dict(zip(section.table.header, row, strict=True)) for row in section.table.rows]
    assert table[0] == {
        "network": "peer1", "budget, ms": "0.600", "predicted, ms": "0.588", "measured, ms [95 %]": "0.594 [0.582, 0.606]",
        "of the budget": "99.0%", "speed-up": "1.68", "MACs": "400", "of all MACs": "40.0%", "paid out": "0.67",
        "cut by MACs, ms": "0.720",
    }  # fmt: skip
    assert (table[1]["budget, ms"], table[1]["of the budget"]) == ("none", "–")


def test_the_page_draws_what_the_starts_answers_lose(tmp_path: Path) -> None:
    def charts_of(plan: LatencyPlan) -> dict[str, Any]:
        (run,) = read_runs([run_with(tmp_path / f"run{len(plan.sensitivity)}", plan)], with_bench=False)
        shown = {section.key: section for section in all_sections([run])}
        return {chart.key: chart.choices[""] for chart in shown["widths"].charts}

    assert "sensitivity" not in charts_of(made_plan((0.6, 0.8)))
    lost = [Sensitivity(group="stem", units=[4, 8, 12, 16], nats=[0.9, 0.5, 0.1, 0.0])]
    chart = charts_of(replace(made_plan((0.6, 0.8)), sensitivity=lost))["sensitivity"]
    assert chart["data"]["values"] == [{"group": "stem", "nats": 0.5, "kept": "8, 8 of 16", "without": None}]
    lost[0] = replace(lost[0], block="stem.block", units=[0, 8, 12, 16])
    lost.append(replace(lost[0], group="other", nats=[0.3, 0.2, 0.1, 0.0]))
    plan = made_plan((0.6, 0.8))
    counted = [replace(own, counts={"stem": 0, "other": 16}) for own in plan.peers]
    chart = charts_of(replace(plan, peers=counted, sensitivity=lost))["sensitivity"]
    assert [(bar["kept"], bar["without"]) for bar in chart["data"]["values"]] == [
        ("0, 0 of 16", pytest.approx(1.2)), ("16, 16 of 16", None),
    ]  # fmt: skip
    assert chart["layer"][-1]["mark"]["shape"] == "diamond"


def test_the_page_says_whether_the_bench_found_budgets_met(tmp_path: Path) -> None:
    run = trained(tmp_path, ROW)
    (section,) = [each for each in all_sections([run]) if each.key == "budgets"]
    assert section.table is not None and section.table.rows[0][-2:] == ["0.610", "missed"]
    assert not any("No bench" in words for words in section.words)
    table = row_table([entry for entry in entries_of(run)], several=False)
    first, second = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (first["budget, ms"], first["within it"]) == ("–", "–")
    assert (second["budget, ms"], second["within it"]) == ("0.600", "missed")
    where = "(ONNX Runtime, 1 thread, batch 1)."
    assert headline(run).endswith(f"Its latency budget is not met {where}")
    near = replace(ROW, p50_interval=Interval(low=0.59, high=0.63))
    met = replace(near, peer=2, latency_budget_ms=0.62, budget_met=True)
    for rows, words in (
        ([near], "Its latency budget is not met by p50, and it lies within its 95 % interval"),
        ([near, met], "1 of 2 latency budgets are met by p50, and all lie within its 95 % interval"),
        ([ROW, met], "1 of 2 latency budgets are met by p50, and 1 lies within its 95 % interval"),
    ):
        said = headline(replace(run, bench=made_bench([made_row(0, 1.0), *rows])))
        assert said.replace("\u00a0", " ").endswith(f"{words} {where}".replace("\u00a0", " "))


def entries_of(run: TrainedRun) -> Any:
    from wmlc.report.series import entries

    return entries([run])


def test_a_run_without_budgets_has_no_such_section(tmp_path: Path) -> None:
    (run,) = read_runs([run_with(tmp_path / "run", None, made_bench([made_row(0), made_row(1)]))], with_bench=True)
    assert "budgets" not in [section.key for section in all_sections([run])]
    assert "latency budget" not in headline(run)
    assert not {"budget, ms", "within it"} & set(row_table(list(entries_of(run)), several=False).header)


def test_list_and_compare_and_plot_know_ratios_of_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "runs")
    print_runs(as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2][1:7] == ["peer", "1", "0.600", "ms", "0.594", "ms"] and lines[1][2:4] == ["0.0%", "0.0%"]
    print_runs(as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["latency"]["peers"][0]["budget_ms"] == 0.6
    compare_runs([run.root], None, None, "json", force=False)
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert (
        "wml: ratios are of latency in ort 1.31.1, fp32, 1 thread, batch 1, where the unpruned network takes 1.00 ms; "
        "measured before training, ms: peer1 0.594 of 0.600, peer2 0.990"
    ) in table["notes"]
    assert accuracy_over_ratio([run]).x == "ratio of latency cut, as achieved"
