"""`wmlc list`: every run and network in a line; what is not finished or damaged says so."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from made import made_epoch, made_plan, made_trained

from wmlc import records
from wmlc.records import Family
from wmlc.report.listing import print_runs
from wmlc.run import Run, all_runs, find_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_runs(as_json=False)
    return capsys.readouterr().out.splitlines()


def test_no_runs_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys) == ["no runs under runs/; make one with 'wmlc train'"]
    print_runs(as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_runs_and_their_networks(capsys: pytest.CaptureFixture[str]) -> None:
    made_trained(Path("runs/a"), (70.0, 80.0), 81.0, macs=(4_000_000, 10_000_000), cost=12.3, baseline_cost=2.0)
    made_trained(Path("runs/sweep/b"), (75.5,), None)
    assert listed(capsys) == [
        "run           network   asked    got       params     MACs  top-1  cost   min",
        "runs/a        baseline   0.0%   0.0%       10,000   0.00 M  81.00  2.00  0.17",
        "runs/a        peer 1    70.0%  70.0%   40,000,000   4.00 M  70.00",
        "runs/a        peer 2     0.0%   0.0%  100,000,000  10.00 M  80.00",
        "runs/a        ensemble                                      81.00  12.3  10.0",
        "runs/sweep/b  peer 1     0.0%   0.0%       10,000   0.00 M  75.50",
        "runs/sweep/b  ensemble                                      76.50     -  10.0",
    ]
    print_runs(as_json=True)
    a, b = json.loads(capsys.readouterr().out)
    assert (a["run"], a["finished"], a["arch"], len(a["peers"]), b["baseline"]) == ("runs/a", True, "resnet20", 2, None)
    assert (a["cost_epochs"], a["training_macs"], a["seconds"]) == pytest.approx((12.3, 33_210_000, 600))
    assert (b["cost_epochs"], b["training_macs"]) == (None, None)


def test_an_unfinished_and_a_damaged_run_cost_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    made_trained(Path("runs/a"), (70.0, 80.0), finished=False, lines=[made_epoch(1, (50.0, 60.0))])
    made_trained(Path("runs/b"), (70.0, 80.0))
    Path("runs/b/family.json").write_text('{"schema_version": 2, "peers": "none"}')
    made_trained(Path("runs/c"), (70.0, 80.0), finished=False)
    Path("runs/c/metrics.jsonl").write_text("{}\n")
    made_trained(Path("runs/d"), (70.0, 80.0))
    lines = listed(capsys)
    assert lines[1] == "runs/a  not finished: 1 epochs of the family, 0 of the baseline"
    assert lines[2].startswith("runs/b  damaged: family.json is not a readable family record: arch is missing; ")
    assert lines[3].startswith("runs/c  damaged: metrics.jsonl, line 1 is no record of an epoch of this wmlc: ")
    assert lines[2].endswith(" …") and len(lines) == 8
    print_runs(as_json=True)
    a, b, c, d = json.loads(capsys.readouterr().out)
    assert a == {"run": "runs/a", "finished": False, "family_epochs": 1, "baseline_epochs": 0}
    assert b["damaged"].startswith("runs/b/family.json is not a readable family record: ") and not b["finished"]
    assert "metrics.jsonl, line 1" in c["damaged"] and d["finished"]


def test_a_peer_without_a_budget_was_asked_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(made_trained(Path("runs/a"), (70.0, 80.0), None, max_latency_ms=(0.6, 5.0)))
    family = records.read(run.family, Family, "family record", "")
    records.write(run.family, replace(family, latency=made_plan((0.6, 1.0), full_ms=1.0), ratio_of="latency"))
    assert [line.split()[1:7] for line in listed(capsys)[1:3]] == [
        ["peer", "1", "0.600", "ms", "0.594", "ms"], ["peer", "2", "-", "0.990", "ms", "10,000"],
    ]  # fmt: skip


def test_a_config_of_another_program_is_no_run() -> None:
    made_trained(Path("runs/ours"), (70.0, 80.0))
    made_trained(Path("runs/torn"), (70.0, 80.0))
    Path("runs/torn/config.json").write_text('{"schema_version": 2, "settings')
    for number, text in enumerate(('{"model_type": "resnet"}', "[1]")):
        other = Path(f"runs/other{number}/config.json")
        other.parent.mkdir()
        other.write_text(text)
    os.utime("runs/torn/config.json", (0, 0))
    assert [run.root.name for run in all_runs()] == ["ours", "torn"]
    assert find_run(None).root == Path("runs/ours")
