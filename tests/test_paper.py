"""The paper's published numbers beside measured ones: whole, found by network and method, and what differs told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import made_trained

from wmlc.report.compare import compare_runs
from wmlc.report.configurations import Comparable, comparable
from wmlc.report.paper import beside_paper, read_paper
from wmlc.report.runs import finished_runs, read_runs

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a finished run under a name; see `made_trained`."""
    return lambda name, top1, *args, **settings: made_trained(tmp_path / name, top1, *args, **settings)


def only(names: list[Path]) -> Comparable:
    """The one comparable set of these runs."""
    (runs,) = comparable(read_runs(finished_runs(names), with_bench=False))
    return runs


def test_the_papers_tables_are_whole() -> None:
    six, seven, eight = (read_paper().tables[f"table{number}"].rows for number in (6, 7, 8))
    assert (len(six), len(seven), len(eight)) == (12, 6, 20)
    assert all(len(row.peers) == 4 for row in six)
    found = {(row.network, row.method): row for row in six}
    assert found["resnet18", "wml"].peers == [77.40, 78.69, 79.05, 79.50]
    assert found["resnet101", "cl"].ensemble == 81.37 and found["resnet50", "one"].baseline == 77.68
    # printed drops are the differences of the printed accuracies, but for the one that is left out
    assert [row.name for row in seven if row.top1_drop is None] == ["GraSP"]
    for row in seven:
        if row.top1_drop is not None:
            assert row.top1_drop == pytest.approx(row.baseline - row.peers[0], abs=0.005)
    assert {(row.network, row.name): row.top1 for row in eight}["resnet34", "BAKE"] == 79.61


def test_every_setting_that_differs_from_the_paper_is_marked(make: Make) -> None:
    runs = only([make("a", (70.0, 80.0)), make("b", (60.0, 70.0), method="dml")])
    found = beside_paper("table6", runs)
    assert found.differs == [
        "network resnet20 (paper: resnet18, resnet50, resnet101)", "data cifar10 (paper: cifar100)",
        "training images 900 (paper: 50,000)", "epochs 6 (paper: 200)", "batch size 64 (paper: 128)",
        "filters 16 (paper: 64)", "ratios 0.7, 0 (paper: 0.3, 0.2, 0.1, 0)",
    ]  # fmt: skip
    assert [(line.name, line.network, line.measured) for line in found.lines] == [
        ("wml", "resnet20", True), ("WML-S", "resnet18", False), ("WML-S", "resnet50", False),
        ("WML-S", "resnet101", False),
    ]  # fmt: skip
    assert "dml: no such row in the paper's table" in found.notes


def test_the_same_settings_leave_nothing_to_mark(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    same: dict[str, Any] = {"data": "cifar100", "images": 50_000, "epochs": 200, "batch_size": 128, "arch": "resnet50"}
    run = make("a", (80.0, 80.5, 81.0, 81.5), 78.0, ratios=(0.3, 0.2, 0.1, 0.0), **same)
    runs = only([run])
    found = beside_paper("table6", runs)
    assert found.differs == ["filters 16 (paper: 64)"]
    assert [line.name for line in found.lines] == ["wml", "WML-S"]
    assert found.lines[1].mean.mean == pytest.approx((80.16 + 80.58 + 80.85 + 81.25) / 4)
    compare_runs([run], "table6", None, "table", False)
    assert "note: differs: filters 16 (paper: 64)\n" in capsys.readouterr().out


def test_only_what_one_row_has_is_told_of_it_alone(make: Make) -> None:
    names = [make("a", (70.0, 80.0)), make("b", (60.0, 70.0), method="cl", ratios=(0.0, 0.0))]
    runs = only(names)
    wml, cl = (line for line in beside_paper("table6", runs).lines if line.measured)
    assert wml.differs == ["ratios 0.7, 0 (paper: 0.3, 0.2, 0.1, 0)"]
    assert cl.differs == ["ratios 0, 0 (paper: 0, 0, 0, 0)"]


def test_methods_of_the_same_mean_have_no_order(make: Make) -> None:
    names = [make("a", (70.0, 80.0)), make("b", (70.0, 80.0), method="wml-p"), make("c", (60.0, 70.0), method="cl")]
    ours = next(note for note in beside_paper("table6", only(names)).notes if note.startswith("order by the mean"))
    assert "measured: wml = wml-p > cl; published: " in ours


def test_table_7_is_about_the_smallest_peer_by_saliency(make: Make) -> None:
    names = [
        make("a", (92.0, 93.0), 92.5, arch="resnet56", saliency="grasp"),
        make("b", (92.0, 93.0), arch="resnet56", method="one", ratios=(0.0, 0.0)),
    ]
    runs = only(names)
    found = beside_paper("table7", runs)
    measured, published = found.lines
    assert (measured.top1_drop.mean, measured.flops_drop.mean) == (0.5, pytest.approx(60))
    assert (published.network, published.peers[0].mean, published.top1_drop.mean) == ("resnet56", 93.70, None)
    assert found.notes[0].startswith("the paper prints a drop of 0.56 for resnet56 with GraSP")
    assert found.notes[1] == "one: no such row in the paper's table"


def test_table_8_shows_methods_that_are_not_to_be_had_here(make: Make) -> None:
    runs = only([make("a", (78.0, 79.0), arch="resnet18")])
    lines = beside_paper("table8", runs).lines
    assert (lines[0].top1.mean, lines[1].name, lines[1].top1.mean) == (79.0, "WML", 79.38)
    assert [line.network for line in lines] == ["resnet18"] * 11
