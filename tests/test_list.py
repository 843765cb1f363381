"""`wmlc list`: every run and network in a line; what is not finished or damaged says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import made_epoch, made_trained

from wmlc.report.listing import print_runs


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
