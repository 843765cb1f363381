"""What `compare` and `plot` take for the same: networks, starts, baselines, and names that tell everything apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import made_trained

from wmlc import records
from wmlc.records import Family, RunRecord
from wmlc.report.configurations import Comparable, comparable
from wmlc.report.findings import findings, separation
from wmlc.report.groups import differences, labelled
from wmlc.report.runs import TrainedRun, alike, read_runs
from wmlc.report.sizes import accuracy_over_macs
from wmlc.run import Run

Make = Callable[..., Path]
TOPS, START, A, B = (80.0, 90.0), "/x/net.pth", "a" * 64, "b" * 64


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a run under a name; `of_record` changes its config.json, `best` is its baseline's best epoch."""

    def write(name: str, top1: tuple[float, ...] = TOPS, baseline: float | None = 90.0, *, best: int | None = None,
              of_record: dict[str, Any] | None = None, **settings: Any) -> Path:  # fmt: skip
        run = Run(made_trained(tmp_path / name, top1, baseline, **settings))
        record = records.read(run.config, RunRecord, "run record", "")
        records.write(run.config, replace(record, **(of_record or {})))
        family = records.read(run.family, Family, "family record", "")
        if family.baseline and best is not None:
            records.write(run.family, replace(family, baseline=replace(family.baseline, best_epoch=best)))
        return run.root

    return write


def read(*roots: Path) -> list[TrainedRun]:
    return read_runs([Run(root) for root in roots], with_bench=False)


def named(runs: list[TrainedRun]) -> list[tuple[str, int]]:
    return [(name, len(group)) for name, group in alike(runs).items()]


def only(runs: list[TrainedRun]) -> Comparable:
    (found,) = comparable(runs)
    return found


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"arch": "timm:x", "arch_args": "width=4"}, {"arch": "timm:x"}, "arch args (width=4 / none)"),
        ({"normalise": "data"}, {"normalise": "imagenet"}, "normalise (data / imagenet)"),
        ({"interpolation": "bicubic"}, {}, "interpolation (bicubic / bilinear)"),
        ({"crop": 0.875}, {"crop": 1.0}, "crop (0.875 / 1)"),
        ({"skip_broken": True}, {}, "skip broken (yes / no)"),
        ({"start": START, "start_classes": "imagenet"}, {"start": START}, "start classes (imagenet / none)"),
        ({"clip": None, "nesterov": True}, {"clip": 1.0}, "nesterov (yes / no), clip (none / 1)"),
    ],
)
def test_no_baseline_is_lent_to_another_network_or_other_pictures(
    make: Make, one: dict[str, Any], other: dict[str, Any], words: str
) -> None:
    sets = comparable(read(make("a", **one), make("b", baseline=None, **other)))
    assert separation(sets) == f"2 tables, not to be compared with each other: their runs differ in {words}"
    assert sets[1].configurations[0].top1_drop.mean is None


def test_a_default_that_is_named_tells_no_runs_apart(make: Make) -> None:
    runs = read(make("a", normalise="data", interpolation="bilinear"), make("b", seed=1))
    assert len(only(runs).configurations) == 1


def test_what_was_not_recorded_is_unknown_and_what_is_unset_is_none(make: Make) -> None:
    a, b = read(make("a"), make("b", clip=1.0))
    sets = comparable([replace(a, test_images=None), b])
    assert (separation(sets) or "").endswith("differ in test images (unknown / 10,000), clip (none / 1)")


def test_figures_tell_networks_of_other_arguments_apart(make: Make) -> None:
    runs = read(make("a", arch="timm:x", arch_args="width=4"), make("b", arch="timm:x", method="dml"))
    assert differences(runs) == ["arch_args"]
    assert list(labelled(runs)) == ["wml arch_args=width=4", "dml arch_args=none"]


def test_starts_of_one_path_and_other_weights_are_no_seeds_of_each_other(make: Make) -> None:
    own = {"start": START, "method": "kd"}
    runs = read(*(make(h[0], seed=seed, of_record={"start_weights": h}, **own) for seed, h in enumerate((A, B))))
    words = "2 tables, not to be compared with each other: their runs differ in start weights (aaaaaaaa / bbbbbbbb)"
    assert separation(comparable(runs)) == words
    assert named(runs) == [("kd start_weights=aaaaaaaa", 1), ("kd start_weights=bbbbbbbb", 1)]
    assert differences(runs) == ["start_weights"]
    older = make("older", seed=2, **own)  # recorded none, which may be either
    assert named(read(runs[0].root, older)) == [("kd", 2)]
    assert named(read(*(run.root for run in runs), older))[2] == ("kd start_weights=unknown", 1)


def test_a_new_head_is_another_one_for_each_seed_and_tells_nothing(make: Make) -> None:
    of = {"start": START, "method": "dml", "teacher": "none", "best": 3}
    runs = read(*(make(h[0], seed=seed, of_record={"start_weights": h}, **of) for seed, h in enumerate((A, B))))
    assert named(runs) == [("dml", 2)]
    again = make("again", seed=1, of_record={"start_weights": A}, **of)
    assert len(named(read(*(run.root for run in runs), again))) == 2  # of one seed it does


def test_other_training_images_are_said(make: Make) -> None:
    a, b = (make(h[0], seed=seed, of_record={"images": h}) for seed, h in enumerate((A, B)))
    note = f"the training images are others in {a} than in {b}, by names and labels"
    assert note in findings(only(read(a, b)))
    c, d = (make(h[0] * 2, seed=seed, train_images=900, of_record={"images": h}) for seed, h in enumerate((A, B)))
    assert "training images are others" not in " ".join(findings(only(read(c, d))))  # each seed draws its own


def test_a_start_trained_on_is_another_baseline_than_the_start_as_it_stands(make: Make) -> None:
    own = {"start": START, "method": "kd"}
    roots = [make("a", baseline=80.0, **own), make("b", baseline=94.0, best=3, seed=1, baseline_from="trained", **own)]
    runs = only(read(*roots))
    assert [(one.name, one.baseline.mean) for one in runs.configurations] == [
        ("kd", 80.0), ("kd baseline_from=trained", 94.0),
    ]  # fmt: skip
    assert (
        f"the baseline of {roots[1]} is the start, trained on; that of others is the start as it stands, so their drops "
        "do not compare"
    ) in findings(runs)
    figure = accuracy_over_macs(runs.runs)  # where peers are drawn, whose training is the same
    assert [(line.name, line.points[0].y.n) for line in figure.lines] == [
        ("kd", 2), ("baseline (the start as it stands)", 1), ("baseline (trained)", 1),
    ]  # fmt: skip
    assert named(read(roots[1])) == [("kd", 1)]


def test_names_have_all_digits_where_six_tell_nothing_apart(make: Make) -> None:
    runs = read(*(make(str(ratio), ratios=(ratio, 0.0)) for ratio in (0.1234567, 0.1234568, 0.5)))
    assert named(runs) == [("wml ratios=0.1234567,0", 1), ("wml ratios=0.1234568,0", 1), ("wml ratios=0.5,0", 1)]


def test_where_the_seeds_in_common_say_the_contrary_they_are_heard(make: Make) -> None:
    behind = [make(f"a{seed}", (top, top), seed=seed) for seed, top in enumerate((80.0, 80.1, 80.0))]
    alone = [make(f"a{seed}", (95.0, 95.0), seed=seed) for seed in (7, 8, 9)]
    ahead = [make(f"b{seed}", (top, top), seed=seed, method="dml") for seed, top in enumerate((82.0, 82.1, 82.05))]
    (said,) = (line for line in findings(only(read(*behind, *alone, *ahead))) if " leads " in line)
    assert said.startswith(
        "wml leads the mean over peers by 5.47 points before dml; paired by seed -2.02 (95 %: -2.09 to"
    )
    assert said.endswith("n = 3): by the seeds in common dml leads, by more than their spread")
