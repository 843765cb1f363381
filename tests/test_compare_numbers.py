"""Each number of a comparison in its own column: runs in which no two numbers are alike."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import made_cost, made_family, made_plan, made_record, made_run, made_settings, made_trained

from wmlc.errors import InputError
from wmlc.records import DeviceRecord, Family
from wmlc.report import compare as comparing
from wmlc.report.budgets import planned_words
from wmlc.report.compare import compare_runs
from wmlc.report.configurations import Comparable, comparable
from wmlc.report.findings import findings
from wmlc.report.runs import TrainedRun, finished_runs

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a finished run under a name; see `made_trained`."""
    return lambda name, top1=(70.0, 74.0), *args, **settings: made_trained(tmp_path / name, top1, *args, **settings)


def a_run(
    name: str = "a", top1: tuple[float, ...] = (70.0, 74.0), baseline: float | None = 80.0,
    change: Callable[[Family], Family] = lambda family: family, device: DeviceRecord | None = None, **settings: Any,
) -> TrainedRun:  # fmt: skip
    """A run without files; `change` makes its family another."""
    asked = made_settings(top1, **settings)
    record = made_record(asked)
    return TrainedRun(
        root=Path("runs") / name, name=name, record=replace(record, device=device or record.device), epochs=[],
        family=change(made_family(top1, baseline, settings=asked)), baseline_epochs=[], test_images=10_000, bench=None,
    )  # fmt: skip


def only(*runs: TrainedRun) -> Comparable:
    (found,) = comparable(runs)
    return found


def no_two_alike(family: Family) -> Family:
    """A first peer whose share of the parameters is not that of the MACs, nor what was asked for."""
    first = replace(family.peers[0], achieved_ratio=0.68, params=3200, macs=350)
    return replace(family, peers=[first, *family.peers[1:]], average_ensemble_top1=73.5)


def test_a_peers_row_has_each_number_in_its_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = made_settings((70.0, 74.0))
    run = made_run(tmp_path / "a", settings, no_two_alike(made_family((70.0, 74.0), 80.0, settings=settings)))
    compare_runs([run.root], None, None, "table", False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["wml", "1", "70/68", "3.2k", "350", "65.0", "70.00", "10.00"] in lines
    compare_runs([run.root], None, None, "csv", False)
    (line,) = csv.DictReader(capsys.readouterr().out.splitlines())
    expected = {"peer1": 70, "peer1_top1_drop": 10, "peer1_flops_drop": 65, "peer1_params": 3200, "peer1_macs": 350,
                "training images": 900, "mean": 72, "top1_drop": 8, "flops_drop": 32.5}  # fmt: skip
    assert {key: float(line[key]) for key in expected} == pytest.approx(expected)
    compare_runs([run.root], None, None, "json", False)
    (row,) = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert (row["ensemble"]["mean"], row["average_ensemble"]["mean"]) == (75.0, 73.5)


def test_peers_stand_beside_their_method_up_to_four(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for count, shown in ((4, True), (5, False)):
        compare_runs([make(f"of{count}", tuple(70.0 + k for k in range(count)))], None, None, "table", False)
        assert ("peer 4" in capsys.readouterr().out) is shown


def test_each_set_of_a_file_has_its_own_rows_beside_its_own_figure(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "render_svg", lambda spec: b"<svg/>")
    out = tmp_path / "study.md"
    compare_runs([make("a"), make("b", (60.0, 64.0), epochs=10)], None, out, "md", False)
    first, second = out.read_text(encoding="utf-8").split("**2 of 2: ")
    assert "study-1-macs.svg" in first and "study-2-macs.svg" in second
    assert "| 72.00 |" in first and "10 epochs" in second.splitlines()[0] and "| 62.00 |" in second


def test_a_baseline_is_lent_only_where_there_is_one(make: Make) -> None:
    lenders = [a_run("a", baseline=81.0), a_run("b", baseline=82.0, method="dml")]
    (*_, lent) = only(lenders[0], a_run("c", baseline=None, method="cl")).configurations
    assert lent.top1_drop.mean == 9.0
    (*_, unknown) = only(*lenders, a_run("c", baseline=None, method="cl")).configurations
    assert unknown.top1_drop.mean is None and unknown.baseline.mean is None


def test_filters_are_those_of_a_peer_that_kept_them_all() -> None:
    def narrower(family: Family) -> Family:
        return replace(family, peers=[replace(family.peers[0], stage_channels={"stem": [8]}), *family.peers[1:]])

    assert only(a_run(change=narrower)).filters == 16
    assert only(a_run(top1=(70.0, 71.0), ratios=(0.7, 0.5), change=narrower)).filters is None


def test_the_rate_that_was_found_separates_nothing_and_classes_do() -> None:
    found = [a_run(f"{seed}", seed=seed, lr=lr, lr_auto=True) for seed, lr in enumerate((0.05, 0.02))]
    (runs,) = comparable(found)
    assert [one.n for one in runs.configurations] == [2]
    other = a_run("c", change=lambda family: replace(family, data=replace(family.data, class_names=["cat", "cow"])))
    assert len(comparable([a_run(), other])) == 2


def test_what_was_planned_is_the_median_over_the_runs() -> None:
    def run(seed: int, ms: float) -> TrainedRun:
        plan = made_plan((ms, 5.0), full_ms=10 * ms)
        return a_run(f"{seed}", seed=seed, change=lambda family: replace(family, latency=plan))

    said = planned_words([run(seed, ms) for seed, ms in enumerate((3.0, 1.0, 2.0))])
    assert said is not None and "takes 20.0 ms" in said
    assert said.endswith("measured before training, ms: peer1 1.98 of 2.00, peer2 4.95 of 5.00")


def test_the_papers_table_7_shows_the_pruned_peer(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    compare_runs([make("a", (92.0, 93.0), 92.5, arch="resnet56", saliency="snip")], "table7", None, "md", False)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    head = next(row for row in rows if row[0] == "saliency")
    measured = dict(zip(head, next(row for row in rows if "measured" in row), strict=True))
    assert (measured["pruned"], measured["baseline"], measured["drop"]) == ("92.00", "92.50", "0.50")


def test_each_row_of_a_csv_tells_what_it_differs_in_itself(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    names = [make("a"), make("b", method="cl", ratios=(0.0, 0.0))]
    compare_runs(names, "table6", None, "csv", False)
    wml, cl, *_ = csv.DictReader(capsys.readouterr().out.splitlines())
    assert wml["differs"].endswith("; ratios 0.7, 0 (paper: 0.3, 0.2, 0.1, 0)")
    assert cl["differs"].endswith("; ratios 0, 0 (paper: 0, 0, 0, 0)")


def costing(epochs: float | None) -> Callable[[Family], Family]:
    """A family whose training cost so many epochs of the unpruned network."""
    return lambda family: replace(family, training_macs=made_cost(epochs))


def test_seeds_in_common_that_differ_by_chance_show_nothing() -> None:
    runs = [a_run(f"a{seed}", (top, top), seed=seed) for seed, top in ((2, 80.0), (0, 70.0), (1, 74.0))]
    runs += [a_run(f"b{seed}", (top, top), seed=seed, method="dml") for seed, top in ((0, 73.0), (1, 72.0))]
    (said,) = (line for line in findings(only(*runs)) if " leads " in line)
    assert said.startswith(
        "wml leads the mean over peers by 2.17 points before dml; paired by seed -0.50 (95 %: -32.27"
    )
    assert said.endswith("n = 2): no difference that these n could show")


def test_costs_are_equal_up_to_a_twentieth_and_levels_begin_at_the_cheapest() -> None:
    def said(*costs: float | None) -> list[str]:
        methods = ("wml", "dml", "cl", "wml-p")
        runs = [
            a_run(m, (80.0 - k,) * 2, method=m, change=costing(cost))
            for k, (m, cost) in enumerate(zip(methods, costs, strict=False))
        ]
        return [line for line in findings(only(*runs)) if "cost" in line]

    lead = "wml leads the mean over peers by 1.00 points before dml"
    chance = "; with 1 seed in common, that it is more than chance cannot be shown"
    assert said(1.04, 1.0) == [f"{lead} at equal cost{chance}"]  # and not said again
    assert said(2.0, 1.0)[0] == f"{lead}, but cost 2 times as much{chance}"
    assert said(1.0, 2.0)[0] == f"{lead}, and cost 0.5 times as much{chance}"
    assert said(1.08, 1.04, 1.0) == [
        f"{lead} at equal cost{chance}",
        f"at equal cost, 1.00 epochs of the unpruned network: dml leads the mean over peers by 1.00 points before cl{chance}",
        "training costs differ, in epochs of the unpruned network: wml 1.08, dml 1.04, cl 1.00",
    ]
    assert said(None, 1.0) == ["not comparable by cost, as an older wmlc did not count it: wml"]


def test_a_cost_that_one_seed_lacks_is_not_comparable() -> None:
    runs = [
        a_run("a", change=costing(2.0)),
        a_run("b", seed=1, change=costing(None)),
        a_run("c", method="dml", change=costing(2.0)),
    ]
    assert "not comparable by cost, as an older wmlc did not count it: wml" in findings(only(*runs))


def test_sizes_are_told_where_they_differ_and_are_held_against_each_other() -> None:
    def cut(*macs: int) -> Callable[[Family], Family]:
        return lambda family: replace(
            family, peers=[replace(peer, macs=m) for peer, m in zip(family.peers, macs, strict=True)]
        )

    def said(*runs: TrainedRun) -> str:
        return " ".join(findings(only(*runs)))

    alike = said(a_run(change=cut(400, 1000)), a_run("b", method="dml", change=cut(419, 1000)))
    assert "of different size" not in alike and "58.1 % in dml" in alike
    assert "of different size" in said(a_run(change=cut(400, 1000)), a_run("b", method="dml", change=cut(421, 1000)))
    two = a_run(ratios=(0.7, 0.7), change=cut(300, 400))  # whose ratio no other has
    assert "equal ratios" not in said(two, a_run("b", method="dml", ratios=(0.5, 0.0)))


def test_machines_that_times_come_from_are_named() -> None:
    gpu = DeviceRecord(name="a GPU", bf16=True)
    said = findings(only(a_run(), a_run("b", seed=1, device=gpu)))
    assert "times are not comparable: trained on cpu, fp32, 1 thread, a GPU, bf16" in said
    assert "times are not comparable" not in " ".join(findings(only(a_run(), a_run("b", seed=1))))


def test_what_drops_rest_on_and_where_images_come_from_is_said() -> None:
    assert "no baseline: runs/a" in findings(only(a_run(baseline=None)))
    here, there = (a_run(n, seed=k, data="imagefolder", data_root=f"/{n}") for k, n in enumerate("ab"))
    assert "the data come from /a and /b; taken for the same, with as many images and classes" in findings(
        only(here, there)
    )


def test_a_run_by_two_paths_is_one_run(make: Make) -> None:
    run = make("a")
    with pytest.raises(InputError, match="is named twice; name each run once"):
        finished_runs([run, run.parent / ".." / run.parent.name / run.name])
