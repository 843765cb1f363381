"""Runs beside each other: means and spreads by hand, no table that mixes what cannot be compared."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import made_trained

from wmlc.errors import InputError
from wmlc.report.compare import compare_runs
from wmlc.report.configurations import comparable
from wmlc.report.runs import finished_runs, read_runs

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a finished run under a name; see `made_trained`."""
    return lambda name, top1, *args, **settings: made_trained(tmp_path / name, top1, *args, **settings)


@pytest.fixture
def three_seeds(make: Make) -> list[Path]:
    """Two methods, three seeds each; wml is 2 points ahead in every seed, the baselines 80, 82, 84."""
    return [
        make(f"{method}{seed}", (70.0 + seed + ahead, 74.0 + 3 * seed + ahead), 80.0 + 2 * seed, method=method, seed=seed,
             seconds=600.0 + 60 * seed)
        for method, ahead in (("wml", 2.0), ("wml-p", 0.0))
        for seed in (0, 1, 2)
    ]  # fmt: skip


def as_json(capsys: pytest.CaptureFixture[str], *names: Path, paper: str | None = None) -> Any:
    compare_runs(names, paper, None, "json", force=False)
    return json.loads(capsys.readouterr().out)


def compared(names: list[Path]) -> Any:
    return comparable(read_runs(finished_runs(names), with_bench=False))


def test_seeds_of_a_configuration_are_one_entry(three_seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = as_json(capsys, *three_seeds)["tables"]
    wml, wml_p = table["rows"]
    assert (wml["name"], wml["n"], wml["seeds"], wml_p["name"]) == ("wml", 3, [0, 1, 2], "wml-p")
    assert wml["peers"][0]["top1"] == {"mean": 73.0, "sd": 1.0, "n": 3, "values": [72.0, 73.0, 74.0]}
    assert (wml["peers"][1]["top1"]["mean"], wml["peers"][1]["top1"]["sd"]) == (79.0, 3.0)
    assert wml["mean"]["values"] == [74.0, 76.0, 78.0]
    assert (wml["baseline"]["mean"], wml["baseline"]["sd"], wml["ensemble"]["mean"]) == (82.0, 2.0, 80.0)
    assert wml["peers"][0]["flops_drop"]["mean"] == pytest.approx(60) and wml["flops_drop"]["mean"] == pytest.approx(30)
    assert (wml["seconds"]["mean"], wml["seconds"]["sd"]) == (660.0, 60.0)


def test_a_drop_is_paired_by_seed(three_seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = as_json(capsys, *three_seeds)["tables"]
    wml = table["rows"][0]
    # baselines and means both rise by 2 a seed: unpaired the drop would spread, paired it does not
    assert wml["top1_drop"] == {"mean": 6.0, "sd": 0.0, "n": 3, "values": [6.0, 6.0, 6.0]}
    assert wml["peers"][1]["top1_drop"]["values"] == [4.0, 3.0, 2.0]


def test_a_method_with_different_settings_is_two_entries_named_by_them(make: Make) -> None:
    names = [
        make("a", (70.0, 74.0)),
        make("b", (71.0, 74.0), share="none"),
        make("c", (72.0, 74.0), share="tree", seed=1),
    ]
    (runs,) = compared(names)
    assert [(one.name, one.n) for one in runs.configurations] == [("wml share=tree", 2), ("wml share=none", 1)]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"epochs": 10}, "epochs (6 / 10)"),
        ({"images": 450}, "training images (900 / 450)"),
        ({"lr": 0.05}, "lr (0.1 / 0.05)"),
        ({"data": "digits", "test": 359}, "data (cifar10 / digits), test images (10,000 / 359)"),
    ],
)
def test_runs_that_differ_get_a_table_each(
    make: Make, other: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, make("a", (70.0, 74.0)), make("b", (70.0, 74.0), **other), make("c", (71.0, 75.0), seed=1))
    assert found["separated_by"] == f"2 tables, not to be compared with each other: their runs differ in {words}"
    assert [[row["n"] for row in table["rows"]] for table in found["tables"]] == [[2], [1]]


def test_tables_apart_are_numbered_and_the_reason_comes_first(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    compare_runs([make("a", (70.0, 74.0)), make("b", (70.0, 74.0), epochs=10)], None, None, "table", False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0] == "note: 2 tables, not to be compared with each other: their runs differ in epochs (6 / 10)"
    assert lines[1] == "1 of 2: resnet20, cifar10 (900 training images of 32×32), 6 epochs, batch 64"
    assert "2 of 2: resnet20, cifar10 (900 training images of 32×32), 10 epochs, batch 64" in lines


def test_the_table_in_a_terminal(three_seeds: list[Path], make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    more = make("exits", (60.0, 65.0, 70.0), method="self-distillation", share="exits", macs=(200, 500, 1000))
    compare_runs([*three_seeds, more], None, None, "table", False)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    lines = [line.split() for line in shown.splitlines()]
    assert ["wml", "3", "82.00", "73.00", "79.00", "-", "76.00", "80.00", "6.00", "30.0", "-", "11.0"] in lines
    assert ["±2.00", "±1.00", "±3.00", "±2.00", "±3.00", "±0.00", "±0.0", "±1.0"] in lines
    assert ["self-", "1", "80.00", "60.00", "65.00", "70.00", "65.00", "71.00", "15.00", "43.3", "-", "10.0"] in lines
    assert ["wml", "1", "70/70", "4k", "400", "60.0", "±0.0", "73.00", "±1.00", "9.00", "±1.00"] in lines


def test_four_peers_with_spread_and_a_long_name_fit(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    tops = (70.12, 71.23, 72.34, 73.45)
    names = [make(f"{share}{s}", tuple(t + s for t in tops), 79.0 + s, share=share, method="prune-finetune", seed=s, cost=12.3 + s,
                  seconds=600.0 + 300 * s)
             for share in ("none", "stage1") for s in range(3)]  # fmt: skip
    for paper in (None, "table6", "table7", "table8"):
        compare_runs(names, paper, None, "table", False)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def notes(capsys: pytest.CaptureFixture[str], *names: Path) -> list[str]:
    return as_json(capsys, *names)["tables"][0]["notes"]


def test_a_lead_that_every_seed_shows_is_said(three_seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = "paired by seed +2.00 (95 %: +2.00 to +2.00, n = 3): more than the seeds' spread"
    assert f"wml leads the mean over peers by 2.00 points before wml-p; {said}" in notes(capsys, *three_seeds)


def test_of_two_that_are_as_good_none_leads(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(notes(capsys, *(make(method, (71.0, 73.0), method=method) for method in ("dml", "wml"))))
    assert "dml and wml have the same mean over peers" in said and "leads" not in said


def test_a_lead_within_the_spread_is_no_difference(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    names = [make(f"{m}{s}", (top, top), method=m, seed=s)
             for m, tops in (("wml", (70.0, 74.0)), ("dml", (71.0, 71.0))) for s, top in enumerate(tops)]  # fmt: skip
    # differences -1 and 3: mean 1, standard error 2, t of one degree of freedom 12.706
    said = "paired by seed +1.00 (95 %: -24.41 to +26.41, n = 2): no difference that these n could show"
    assert f"wml leads the mean over peers by 1.00 points before dml; {said}" in notes(capsys, *names)


def test_single_runs_and_the_test_set_are_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = notes(capsys, make("a", (70.0, 80.0)), make("b", (60.0, 70.0), method="dml"))
    assert found[0] == "wml, dml: n = 1, so no spread is known"
    # sqrt(0.75 × 0.25 / 10000) = 0.433 %
    assert found[1].startswith("one top-1 near 75 % on 10,000 test images has a standard error of 0.43 points")
    assert found[2].endswith("with 1 seed in common, that it is more than chance cannot be shown")


def test_equal_ratios_are_told_apart_by_macs(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = notes(capsys, make("a", (70.0, 80.0)), make("b", (60.0, 70.0), share="none", macs=(300, 1000)))
    assert (
        "the means are over families of different size; mean FLOPs drop: wml share=tree 30.0 %, wml share=none 35.0 %"
        in found
    )
    assert (
        "equal ratios are not equal MACs: the FLOPs drop of a peer with ratio 0.7 is 60.0 % in wml share=tree; "
        "70.0 % in wml share=none"
    ) in found


def test_a_baseline_of_the_same_seed_stands_in(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", (70.0, 80.0), 81.0), make("b", (60.0, 70.0), None, method="dml")
    c = make("c", (60.0, 70.0), None, method="dml", seed=1)
    (table,) = as_json(capsys, a, b, c)["tables"]
    assert table["rows"][1]["top1_drop"] == {"mean": 16.0, "sd": None, "n": 1, "values": [16.0, None]}
    assert f"no baseline of their own: {b}; that of the same seed and settings stands in" in table["notes"]
    assert f"no baseline: {c}; drops are over the other runs" in table["notes"]


def test_baselines_of_one_seed_that_differ_are_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", (70.0, 80.0), 81.0), make("b", (60.0, 70.0), 82.5, method="dml")
    assert f"baselines of seed 0 differ: 81.00 in {a}, 82.50 in {b}; each run's drop is to its own" in notes(
        capsys, a, b
    )


def test_runs_of_one_seed_are_not_taken_for_seeds(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = notes(capsys, make("a", (70.0, 80.0)), make("b", (71.0, 80.0)))
    assert "wml: several runs of seed 0, so its ± is not that of as many seeds" in found


def test_csv_has_a_line_a_method(three_seeds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    compare_runs(three_seeds, "table6", out, "table", False)
    lines = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    measured = [line for line in lines if line["source"] == "measured"]
    assert [[line[key] for key in ("method", "n", "seeds")] for line in measured] == [
        ["wml", "3", "0 1 2"], ["wml-p", "3", "0 1 2"],
    ]  # fmt: skip
    numbers = {"peer1": "73.0", "peer1_sd": "1.0", "peer1_macs": "400.0", "mean": "76.0", "top1_drop": "6.0"}
    assert numbers.items() <= measured[0].items()
    assert "epochs 6 (paper: 200)" in measured[0]["differs"]
    (paper,) = (line for line in lines if line["network"] == "resnet50" and line["method"] == "WML-S")
    assert (paper["baseline"], paper["peer4"], paper["ensemble"]) == ("77.68", "81.25", "82.78")


def test_markdown_is_whole_tables(three_seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.md"
    compare_runs(three_seeds, None, out, "md", False)
    text = out.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == f"{text.strip()}\nwrote {out}, beside it out-macs.svg"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == [
        "method",
        "n",
        "baseline",
        "peer 1",
        "peer 2",
        "mean",
        "ensemble",
        "drop",
        "FLOPs −%",
        "cost",
        "min",
    ]
    assert all(re.fullmatch("-+:?", cell) for cell in rows[1])  # a reader of Markdown wants a dash in each
    assert rows[2][:5] == ["wml", "3", "82.00 ±2.00", "73.00 ±1.00", "79.00 ±3.00"]
    assert all(len(row) == 11 for row in rows[:4]) and all(len(row) == 8 for row in rows[4:])


def test_a_json_file_is_what_json_prints(
    three_seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    compare_runs(three_seeds, "table6", out, "json", False)
    printed = capsys.readouterr()
    assert json.loads(out.read_text(encoding="utf-8"))["tables"] == json.loads(printed.out)["tables"]
    assert printed.err == f"wrote {out}\n"


def test_what_is_refused(make: Make, tmp_path: Path) -> None:
    run, there = make("a", (70.0, 80.0)), tmp_path / "there.md"
    there.write_text("mine")
    for names, paper, out, form, words in (
        ([run], "table9", None, "table", "--paper must be one of table6, table7, table8, got 'table9'"),
        ([run], None, tmp_path / "out.txt", "table", f"--out must end in .md, .csv, .json, got {tmp_path / 'out.txt'}"),
        ([run], None, None, "xml", "--format must be one of table, md, csv, json, got 'xml'"),
        ([run], None, there, "table", f"{there} exists already; choose another --out, or pass --force to replace it"),
        ([run, run], None, None, "table", f"{run} is named twice; name each run once"),
        ([], None, None, "table", "compare needs runs; name them ('wmlc list' shows what there is)"),
    ):  # fmt: skip
        with pytest.raises(InputError) as refused:
            compare_runs(names, paper, out, form, force=False)
        assert str(refused.value) == words
    assert there.read_text() == "mine"
    compare_runs([run], None, there, "table", force=True)
    assert there.read_text().startswith("**resnet20")


def test_an_unfinished_run_is_refused(make: Make) -> None:
    run = make("a", (70.0, 80.0), finished=False)
    with pytest.raises(InputError, match="is not finished; finish the run with 'wmlc train --resume"):
        compare_runs([run], None, None, "table", False)


def test_beside_finished_runs_an_unfinished_one_is_left_out_in_words(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    done, killed = make("done", (70.0, 80.0)), make("killed", (70.0, 80.0), seed=1, finished=False)
    compare_runs([done, killed], None, None, "json", False)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tables"][0]["rows"][0]["n"] == 1
    assert printed.err == f"left out {killed}: not finished; go on with 'wmlc train --resume --out {killed}'\n"


def test_how_gradients_join_is_told_only_where_some_do(make: Make) -> None:
    names = [
        make("a", (70.0, 74.0), join="sum"),
        make("b", (70.0, 74.0), join="mean"),
        make("c", (70.0, 74.0), join="mean", share="none"),
        make("d", (70.0, 74.0), join="sum", share="none", seed=1),
    ]
    (runs,) = compared(names)
    assert [(one.name, one.n) for one in runs.configurations] == [
        ("wml share=tree join=sum", 1), ("wml share=tree join=mean", 1), ("wml share=none", 2),
    ]  # fmt: skip
