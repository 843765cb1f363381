"""What training cost, beside accuracy: in tables, findings, figures, on the page; and which runs may stand together."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import FULL, made_bench, made_cost, made_family, made_row, made_trained

from wmlc.errors import InputError
from wmlc.records import Bench
from wmlc.report import compare as comparing
from wmlc.report.compare import compare_runs
from wmlc.report.configurations import Comparable, comparable
from wmlc.report.cost import cost_words, in_epochs
from wmlc.report.figures import Figure, Line, MeanPoint, figure_spec
from wmlc.report.findings import findings, separation
from wmlc.report.plots import spec_of
from wmlc.report.runs import TrainedRun, alike, finished_runs, read_runs
from wmlc.report.sections import training_section
from wmlc.report.sizes import accuracy_over_latency, accuracy_over_macs, baselines
from wmlc.stats import spread

Make = Callable[..., Path]
START = "/somewhere/weights/resnet20.safetensors"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a finished run under a name; see `made_trained`."""
    return lambda name, top1=(70.0, 74.0), *args, **settings: made_trained(tmp_path / name, top1, *args, **settings)


def read(names: list[Path]) -> list[TrainedRun]:
    return read_runs(finished_runs(names), with_bench=True)


def only(names: list[Path]) -> Comparable:
    (found,) = comparable(read(names))
    return found


def named(names: list[Path]) -> list[tuple[str, int]]:
    return [(one.name, one.n) for one in only(names).configurations]


def test_an_epoch_of_the_unpruned_network_costs_one() -> None:
    images = 900
    family = made_family(train=images, training_macs=3.0 * FULL.macs * images)
    assert in_epochs(family.training_macs, family) == 1
    assert cost_words(family) == "1.00 epoch of the unpruned network, 10.0 min"
    assert cost_words(replace(family, training_macs=made_cost(12.7))) == "12.7 epochs of the unpruned network, 10.0 min"
    assert cost_words(replace(family, training_macs=None)) == "10.0 min; its MACs were not counted"
    assert in_epochs(1.0, replace(family, data=replace(family.data, train=0))) is None


def test_a_long_training_of_a_large_network_can_be_recorded(tmp_path: Path) -> None:
    resnet50_on_imagenet = 3 * 4.1e9 * 1.28e6 * 90
    run = made_trained(tmp_path / "run", (70.0, 74.0), cost=resnet50_on_imagenet / (3 * FULL.macs * 900))
    assert read([run])[0].family.training_macs == pytest.approx(resnet50_on_imagenet)


def test_cost_is_in_every_form(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [make(f"a{seed}", seed=seed, cost=3.0 + seed) for seed in range(3)]
    compare_runs(names, None, None, "table", False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["wml", "3", "80.00", "70.00", "74.00", "72.00", "75.00", "8.00", "30.0", "4.00", "10.0"] in lines
    assert lines[2][-2:] == ["cost", "min"]
    compare_runs(names, None, None, "csv", False)
    (line,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (line["cost"], line["cost_sd"], line["start"]) == ("4.0", "1.0", "random weights")
    assert float(line["training_macs"]) == 4 * 3 * FULL.macs * 900
    compare_runs(names, None, None, "json", False)
    (row,) = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert row["cost"]["values"] == pytest.approx([3, 4, 5]) and row["training_macs"]["n"] == 3


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (2.0, "a leads the mean over peers by 4.00 points before b at equal cost; "),
        (2.08, "a leads the mean over peers by 4.00 points before b at equal cost; "),
        (1.5, "a leads the mean over peers by 4.00 points before b, but cost 1.33 times as much; "),
        (4.0, "a leads the mean over peers by 4.00 points before b, and cost 0.5 times as much; "),
        (None, "a leads the mean over peers by 4.00 points before b; "),
    ],
)
def test_a_lead_says_at_which_cost(make: Make, cost: float | None, words: str) -> None:
    runs = only([make("a", (74.0, 78.0), method="dml", cost=2.0), make("b", cost=cost)])
    lead = next(line for line in findings(runs) if "leads" in line)
    assert lead.startswith(words.replace("a leads", "dml leads").replace("before b", "before wml"))
    differ = [line for line in findings(runs) if line.startswith(("training costs differ", "not comparable by cost"))]
    if cost is None:
        assert differ == ["not comparable by cost, as an older wmlc did not count it: wml"]
    else:
        assert len(differ) == ("equal" not in words)


def test_methods_of_equal_cost_have_a_lead_of_their_own(make: Make) -> None:
    tops = {"wml": (80.0, 3.2), "dml": (79.0, 2.5), "wml-p": (78.0, 2.45), "cl": (70.0, 1.0)}
    names = [make(m, (top, top), method=m, cost=cost, ratios=(0.7, 0.0)) for m, (top, cost) in tops.items()]
    found = findings(only(names))
    assert found[2].startswith("wml leads the mean over peers by 1.00 points before dml, but cost 1.28 times as much")
    lead = "at equal cost, 2.45 epochs of the unpruned network: dml leads the mean over peers by 1.00 points before wml-p; "
    assert found[3].startswith(lead)
    assert found[4] == (
        "training costs differ, in epochs of the unpruned network: wml 3.20, dml 2.50, wml-p 2.45, cl 1.00"
    )


def test_a_trained_start_and_random_weights_stand_in_tables_apart(make: Make) -> None:
    sets = comparable(read([make("a"), make("b", start=START), make("c", start=START, seed=1, lr=0.01)]))
    assert [[one.n for one in each.configurations] for each in sets] == [[1], [1, 1]]
    assert (separation(sets) or "").endswith(f"their runs differ in start (random weights / {START})")


def test_rates_of_a_trained_start_are_rows_of_one_table(make: Make) -> None:
    started: dict[str, Any] = {"start": START, "cost": 3.0}
    same = [make("a", **started), make("b", method="dml", **started)]
    assert named(same) == [("wml", 1), ("dml", 1)]
    other = make("c", method="cl", lr=0.01, ratios=(0.7, 0.0), **started)
    assert named([*same, other]) == [("wml lr=0.1", 1), ("dml lr=0.1", 1), ("cl lr=0.01", 1)]
    assert len({baseline.name for baseline in baselines(read([*same, other]))}) == 1


def test_rates_that_seeds_found_themselves_make_one_row(make: Make) -> None:
    auto = [make(f"a{seed}", seed=seed, lr=lr, lr_auto=True, start=START) for seed, lr in enumerate((0.05, 0.02))]
    fixed = make("b", lr=0.1, start=START)
    assert named([*auto, fixed]) == [("wml lr=auto", 2), ("wml lr=0.1", 1)]
    assert "learning rates that were found on held-out images: wml lr=auto 0.05, 0.02" in findings(only([*auto, fixed]))


def test_steps_that_follow_from_cost_separate_nothing(make: Make) -> None:
    fair: dict[str, Any] = {"method": "prune-finetune", "as_long_as": "wml", "share": "none"}
    for start in (None, START):
        root = "started" if start else "random"
        names = [make(f"{root}{n}", seed=n, steps=n, finetune_epochs=n or None, start=start, **fair) for n in (1, 2)]
        assert named([*names, make(f"{root}-wml", start=start)]) == [("prune-finetune", 2), ("wml", 1)]
    other = make("given", start=START, steps=100)
    assert named([other, make("whole", start=START)]) == [("wml steps=100", 1), ("wml", 1)]
    assert len(comparable(read([make("scratch", steps=100), make("scratch2")]))) == 2  # whose baselines differ


def test_rank_teacher_and_budget_name_rows(make: Make) -> None:
    names = [make("a", start=START, rank="magnitude", teacher="frozen", budget="snip")]
    for name, value in (("rank", "random"), ("teacher", "trained"), ("budget", "uniform")):
        own = {"rank": "magnitude", "teacher": "frozen", "budget": "snip", name: value}
        one, other = named([*names, make(name, start=START, **own)])
        assert other == (f"wml {name}={value}", 1) and one[0].startswith(f"wml {name}=")


def test_starts_of_one_name_are_told_apart(make: Make) -> None:
    found = alike(read([make("a", start="/x/a/net.pth"), make("b", start="/x/b/net.pth"), make("c")]))
    assert list(found) == ["wml start=a/net.pth", "wml start=b/net.pth", "wml"]


def benched(p50: float, peers: int = 2, **changes: Any) -> Bench:
    """Every peer, and the baseline at twice the time."""
    rows = [made_row(peer, p50 * (1 if peer else 2), top1=60.0 + peer if peer else 80.0) for peer in range(peers + 1)]
    return made_bench([*rows, *(replace(row, **changes) for row in rows if changes)])


def test_latency_is_the_median_over_seeds_a_panel_a_cell(make: Make) -> None:
    names = [
        make(f"a{seed}", seed=seed, start=START, bench=benched(p50, threads=2), cost=2.5)
        for seed, p50 in enumerate((1.0, 9.0, 2.0))
    ]
    figure = accuracy_over_latency(read(names))
    assert {(line.name, line.panel) for line in figure.lines} == {
        (name, f"ONNX Runtime, {threads}, batch 1, fp32")
        for name in ("wml", "baseline") for threads in ("1 thread", "2 threads")
    }  # fmt: skip
    wml = next(line for line in figure.lines if line.name == "wml")
    assert [(point.x, point.y.mean, point.y.sd, point.peer) for point in wml.points] == [(2, 61, 0, 1), (2, 62, 0, 2)]
    (baseline,) = next(line for line in figure.lines if line.baseline).points
    assert (baseline.x, baseline.y.values) == (4, [80])  # one start, whatever was timed with it
    assert wml.words == "wml (n = 3, cost 2.50)"
    facet = spec_of(figure, read(names))
    assert facet["resolve"] == {"scale": {"x": "independent"}} and "cost: MACs of training" in str(facet["title"])


def test_latency_leaves_out_what_was_not_benched_in_words(make: Make) -> None:
    with_bench, without, other = make("a", bench=benched(1.0)), make("b", seed=1), make("c", method="dml")
    figure = accuracy_over_latency(read([with_bench, without, other]))
    assert figure.left_out == {"not benched with top-1; 'wmlc bench --run RUN' does it": [str(without), "dml"]}
    assert [line.words for line in figure.lines] == ["wml (n = 1)", "baseline"]
    untested = benched(1.0)
    untested = replace(untested, rows=[replace(row, top1=None) for row in untested.rows])
    assert accuracy_over_latency(read([make("d", bench=untested)])).lines == []


def test_points_in_one_place_are_drawn_apart_and_said_to_be(make: Make) -> None:
    runs = read([make("a", cost=2.0), make("b", method="dml", cost=3.0)])
    figure = accuracy_over_macs(runs)
    assert figure.side_by_side and "side by side" in str(spec_of(figure, runs)["title"]["subtitle"])
    drawn = [(row["line"], row["x"]) for row in spec_of(figure, runs)["data"]["values"]]
    left, right = ([x for name, x in drawn if name.startswith(method)] for method in ("wml", "dml"))
    assert [(a + b) / 2 for a, b in zip(left, right, strict=True)] == pytest.approx([400, 1000])
    assert all(a < b for a, b in zip(left, right, strict=True)) and ("baseline", FULL.macs) in drawn
    assert [point.x for point in figure.lines[0].points] == [400, 1000]  # the numbers stay what they are
    alone = accuracy_over_macs(runs[:1])
    assert not alone.side_by_side and "side by side" not in str(spec_of(alone, runs[:1])["title"])


def test_points_apart_stay_where_they_are() -> None:
    lines = [Line(name, name, [MeanPoint(x, spread([1.0])) for x in xs]) for name, xs in (("a", (1, 2)), ("b", (1.5,)))]
    figure = Figure("t", "x", "y", lines, [], over="macs")
    assert not figure.side_by_side and [row["x"] for row in figure_spec(figure, [])["data"]["values"]] == [1, 2, 1.5]


def test_figures_stand_beside_a_markdown_file(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "render_svg", lambda spec: b"<svg/>")
    names, out = [make("a", bench=benched(1.0)), make("b", start=START)], tmp_path / "my study.md"
    compare_runs(names, None, out, "table", False)
    assert "'wmlc plot' draws more" not in capsys.readouterr().out
    beside = {path.name for path in tmp_path.glob("*.svg")}
    assert beside == {"my study-1-macs.svg", "my study-1-latency.svg", "my study-2-macs.svg"}
    assert "![Top-1 of each peer over its latency](my%20study-1-latency.svg)" in out.read_text(encoding="utf-8")
    out.unlink()
    with pytest.raises(InputError, match=r"my study-1-macs\.svg exists already; choose another --out"):
        compare_runs(names, None, out, "table", False)
    assert not out.exists()
    compare_runs(names, None, None, "table", False)
    assert capsys.readouterr().out.rstrip().endswith("'wmlc plot' draws more")


def test_the_paper_began_from_random_weights(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    compare_runs([make("a", start=START, arch="resnet18", data="cifar100")], "table6", None, "json", False)
    published = json.loads(capsys.readouterr().out)["tables"][0]["published"]
    assert f"start {START} (paper: random weights)" in published["differs"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "Training: 12.7 epochs of the unpruned network, 10.0 min (the baseline's apart)."),
        (
            {"method": "prune-finetune", "share": "none"},
            "Training: 12.7 epochs of the unpruned network, 10.0 min (with the network that it cut).",
        ),
        (
            {"start": START},
            "Training: 12.7 epochs of the unpruned network, 10.0 min (that of the start not counted).",
        ),
    ],
)
def test_the_page_says_what_training_took(make: Make, settings: dict[str, Any], words: str) -> None:
    assert words in training_section(read([make("a", cost=12.7, **settings)])).words
