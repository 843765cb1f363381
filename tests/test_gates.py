"""Gates: who misses a bound and by how much, and a bench that was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from measured import faster, made_row

from wmlc.bench.engines.machine import read_environment
from wmlc.bench.gates import enforce, missed_gates
from wmlc.errors import GateError, InputError
from wmlc.records import Bench, Row
from wmlc.settings import BenchSettings

ROW = made_row(1, top1_drop=0.5, speedup=faster(2.0))


def bench_of(rows: list[Row], settings: BenchSettings) -> Bench:
    devices = dict.fromkeys(settings.engines, "cpu")
    return Bench(
        command="", environment=read_environment(devices, settings.threads), settings=settings, data=None, notes=[],
        rows=rows, pareto=[], profiles=[],
    )  # fmt: skip


def test_a_measured_gate_that_holds_is_not_reported() -> None:
    both = BenchSettings(max_drop=0.5, min_speedup=2.0)
    assert missed_gates([ROW], both) == []
    assert missed_gates([made_row(0)], BenchSettings(min_speedup=2.0)) == []
    assert missed_gates([replace(ROW, achieved_ratio=0.0, speedup=faster(1.0))], BenchSettings(min_speedup=2.0)) == []
    enforce(bench_of([ROW], both), Path("bench.json"))


def test_missed_gates_name_the_peer_and_by_how_much() -> None:
    settings = BenchSettings(max_drop=-100, min_speedup=1e6, batches=(1, 4))
    with pytest.raises(GateError) as raised:
        enforce(bench_of([ROW, replace(ROW, batch=4, speedup=faster(3.0))], settings), Path("bench.json"))
    assert str(raised.value).split("; ") == [
        "peer1: top-1 drop 0.50 is above --max-drop -100 by 1e+02 points",  # once, as it is that of every batch
        "peer1 at batch 1: speed-up 2.00 is below --min-speedup 1e+06 by 1e+06",
        "peer1 at batch 4: speed-up 3.00 is below --min-speedup 1e+06 by 1e+06",
    ]


def test_what_was_not_measured_passes_no_gate() -> None:
    unknown = replace(ROW, top1_drop=None, speedup=None)
    assert missed_gates([unknown], BenchSettings(max_drop=1.0, min_speedup=1.0)) == [
        "peer1: top-1 drop was not measured, so --max-drop 1 is not met",
        "peer1 at batch 1: speed-up was not measured, so --min-speedup 1 is not met",
    ]


def test_engine_and_threads_are_named_where_there_are_several() -> None:
    settings = BenchSettings(engines=("ort", "torch"), threads=(1, 2), max_drop=0.4, min_speedup=2.5)
    assert missed_gates([replace(ROW, threads=2)], settings) == [
        "peer1 with ort: top-1 drop 0.50 is above --max-drop 0.4 by 0.1 points",
        "peer1 with ort on 2 threads at batch 1: speed-up 2.00 is below --min-speedup 2.5 by 0.5",
    ]


@pytest.mark.parametrize(("bound", "said"), [(0.9, "--max-latency-ms 0.9"), ("budget", "its budget of 0.9 ms")])
def test_a_latency_is_held_by_its_median(bound: float | str, said: str) -> None:
    settings = BenchSettings(max_latency_ms=bound)  # type: ignore[arg-type]
    slow = replace(ROW, latency_budget_ms=0.9, budget_met=False)
    assert missed_gates([made_row(0, 9.0), slow], settings) == [
        f"peer1 at batch 1: latency 1 ms is above {said} by 0.1 ms"
    ]
    assert missed_gates([made_row(0, 9.0), made_row(1, 0.9, latency_budget_ms=0.9, budget_met=True)], settings) == []
    assert missed_gates([replace(slow, latency_ms=None)], settings) == [
        f"peer1 at batch 1: latency was not measured, so {said} is not met"
    ]
    assert missed_gates([replace(slow, achieved_ratio=0.0), replace(ROW, latency_ms=None, latency_budget_ms=0.9)],
                        settings)[0].startswith("peer1 at batch 1: latency was not")  # fmt: skip


def test_budgets_hold_in_their_own_cell_and_a_number_in_all() -> None:
    slow, elsewhere = replace(ROW, latency_budget_ms=0.9), replace(ROW, batch=8)
    named = ["peer1 at batch 1: latency 1 ms", "peer1 at batch 8: latency 1 ms"]
    for bound, missed in (("budget", named[:1]), (0.5, named)):
        found = missed_gates([slow, elsewhere], BenchSettings(max_latency_ms=bound, batches=(1, 8)))  # type: ignore[arg-type]
        assert [line.split(" is above")[0] for line in found] == missed
    assert missed_gates([elsewhere], BenchSettings(max_latency_ms="budget")) == [
        "no latency budget is of what was measured, so --max-latency-ms budget is not met"
    ]


def test_a_file_by_itself_is_held_against_a_latency() -> None:
    assert missed_gates([made_row(0, 2.0)], BenchSettings(max_latency_ms=1.5)) == [
        "baseline at batch 1: latency 2 ms is above --max-latency-ms 1.5 by 0.5 ms"
    ]


def test_a_file_is_held_against_the_first_whatever_it_was_cut_from() -> None:
    """An unpruned network that wmlc exported, beside one of another origin."""
    unpruned, gates = replace(ROW, achieved_ratio=0.0), BenchSettings(min_speedup=2.5, max_latency_ms=0.9)
    assert missed_gates([made_row(0), unpruned], gates) == []
    missed = [
        "peer1 at batch 1: latency 1 ms is above --max-latency-ms 0.9 by 0.1 ms",
        "peer1 at batch 1: speed-up 2.00 is below --min-speedup 2.5 by 0.5",
    ]
    assert missed_gates([made_row(0), unpruned], gates, files=True) == missed
    with pytest.raises(GateError, match=r"below --min-speedup 2\.5"):
        enforce(replace(bench_of([made_row(0), unpruned], gates), inputs=["a: shown", "b: shown"]), Path("bench.json"))


def test_a_bench_that_was_stopped_is_said_before_its_gates() -> None:
    settings = BenchSettings(batches=(1, 2, 8), threads=(1, 2), min_speedup=100.0)
    with pytest.raises(InputError, match=r"^stopped after 2 of 6 cells; out\.json has what was measured$"):
        enforce(bench_of([ROW, replace(ROW, batch=2)], settings), Path("out.json"))


def test_a_drop_that_one_batch_size_told_is_told() -> None:
    """A file of a fixed batch has no top-1 at another one."""
    rows = [made_row(1, batch=1, top1=None, top1_drop=None), made_row(1, batch=8, top1=90.0, top1_drop=0.2)]
    assert missed_gates(rows, BenchSettings(max_drop=1.0, batches=(1, 8))) == []
    assert len(missed_gates(rows, BenchSettings(max_drop=0.1, batches=(1, 8)))) == 1
