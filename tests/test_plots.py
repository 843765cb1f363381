"""The figures of `wmlc plot`: the numbers drawn, what is left out and why, and that the files are whole."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made import made_epoch, made_family, made_run, made_settings

from wmlc.errors import InputError
from wmlc.report import plots
from wmlc.report.plots import FIGURES, plot_runs

LATENCY = "accuracy-over-latency"
PNG = b"\x89PNG\r\n\x1a\n"


def fake_run(
    root: Path, seed: int, test: list[float], epochs: int = 2, *, baseline: float | None = -1, omega: float = 0.1,
    classes: int = 10, **settings: Any,
) -> Path:  # fmt: skip
    """A finished run of two peers: `test` is their top-1, and each epoch's held-out top-1 follows from it by hand.

    Args: `omega` is what peer 2's weight gains an epoch; the `baseline`, unless given, has a top-1 of 80 plus the seed.
    """
    asked = made_settings(test, seed=seed, epochs=epochs, ratios=(0.5, 0.0), **{"data": "digits", **settings})
    whole = 80.0 + seed if baseline == -1 else baseline
    family = made_family(test, whole, settings=asked, params=(100, 200), macs=(1000, 3000), train=1294)
    family = replace(family, data=replace(family.data, class_names=["c"] * classes))
    family = replace(family, peers=[replace(family.peers[0], achieved_ratio=0.49), family.peers[1]])
    lines = []
    for epoch in range(1, epochs + 1):
        top1 = [value + epoch for value in test]
        average = max(top1) + (1 if omega else 2)
        weights = [0.5 - omega * epoch, 0.5 + omega * epoch]
        lines.append(
            made_epoch(epoch, top1, ensemble_top1=max(top1) + 2, average_ensemble_top1=average, peer_weights=weights)
        )
    return made_run(root, asked, family, epochs=lines).root


@pytest.fixture
def two_seeds(tmp_path: Path) -> list[Path]:
    return [fake_run(tmp_path / "a", 0, [60.0, 70.0]), fake_run(tmp_path / "b", 1, [64.0, 72.0])]


def drawn(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"{name}.json").read_text())


def lines(out: Path, name: str) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """(configuration, line) → (x, mean, sd) of each point."""
    return {
        (line["configuration"], line["name"]): [
            tuple(map(nearly, (p["x"], p["mean"], p["sd"]))) for p in line["points"]
        ]
        for line in drawn(out, name)["lines"]
    }


def nearly(value: float | None) -> Any:
    return None if value is None else pytest.approx(value)


def words(svg: Path) -> str:
    """All text of a picture, which must be XML."""
    return "\n".join(ElementTree.fromstring(svg.read_text()).itertext())


def test_means_and_deviations_over_seeds_are_those_by_hand(two_seeds, tmp_path, capsys):
    out = tmp_path / "plots"
    plot_runs(two_seeds, out, (), False)
    sd = math.sqrt(2)  # of two values that are 2 apart; twice that of 4 apart, and half of 1
    assert lines(out, "accuracy-over-ratio") == {("wml", "wml"): [(0.49, 62, 2 * sd), (0, 71, sd)]}
    assert lines(out, "accuracy-over-macs") == {
        ("wml", "wml"): [(1000, 62, 2 * sd), (3000, 71, sd)],
        ("baseline", "baseline"): [(1000, 80.5, sd / 2)],  # at the unpruned network's MACs
    }
    assert lines(out, "accuracy-over-epochs") == {("wml", "wml"): [(1, 67.5, 1.5 * sd), (2, 68.5, 1.5 * sd)]}
    assert lines(out, "ensembles") == {
        ("wml", "weighted ensemble"): [(1, 74, sd), (2, 75, sd)],
        ("wml", "average ensemble"): [(1, 73, sd), (2, 74, sd)],
    }
    assert lines(out, "weights") == {
        ("wml", "peer 1 (ratio 0.5)"): [(1, 0.4, 0), (2, 0.3, 0)],
        ("wml", "peer 2 (ratio 0)"): [(1, 0.6, 0), (2, 0.7, 0)],
    }
    record = drawn(out, "accuracy-over-ratio")
    assert record["levels"] == [
        {"name": "baseline", "mean": 80.5, "sd": pytest.approx(sd / 2), "n": 2, "values": [80, 81]}
    ]
    assert record["lines"][0]["points"][0]["values"] == [60, 64]
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    assert {"commit", "versions"} <= record["environment"].keys()
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"wrote {out / name}.svg, .png and .json" for name in FIGURES if name not in ("accuracy-over-eta", LATENCY)
    ]
    assert said.err == (
        f"{LATENCY}: not drawn: not benched with top-1; 'wmlc bench --run RUN' does it (wml)\n"
        "accuracy-over-eta: not drawn: one η above 0 (wml)\n"
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}.{suffix}"
        for name in FIGURES
        if name not in ("accuracy-over-eta", LATENCY)
        for suffix in ("svg", "png", "json")
    )


def test_pictures_hold_titles_names_and_what_n_was(two_seeds, tmp_path):
    out = tmp_path / "plots"
    plot_runs([*two_seeds, fake_run(tmp_path / "c", 0, [60.0, 70.0], method="dml", omega=0)], out, (), False)
    told = {
        "ensembles": ["top-1 on held-out images, %", "epoch", "weighted ensemble", "average ensemble"],
        "accuracy-over-epochs": ["top-1 on held-out images, %", "bands: ± 1 standard deviation over seeds"],
        "accuracy-over-ratio": ["top-1 on test images, %", "ratio of parameters cut, as achieved", "baseline 80.50 ± 0.71"],
        "accuracy-over-macs": ["top-1 on test images, %", "MACs an image", "bars: ± 1 standard deviation over seeds"],
        "weights": ["peer weight ω", "peer 1 (ratio 0.5)", "n = 2 (seeds 0, 1)"],
    }  # fmt: skip
    for name, expected in told.items():
        text = words(out / f"{name}.svg")
        assert not [one for one in (*expected, "resnet20, digits, 1,294 training images, 2 epochs") if one not in text]
        picture = (out / f"{name}.png").read_bytes()
        assert picture.startswith(PNG) and len(picture) > 10_000
        assert 1300 < int.from_bytes(picture[16:20], "big") < 1500  # twice about 700
    assert "wml: n = 2 (seeds 0, 1); dml: n = 1 (seed 0)" in words(out / "accuracy-over-ratio.svg")


def test_a_gated_ensemble_is_drawn_though_the_peers_weigh_the_same(tmp_path):
    run = fake_run(tmp_path / "one", 0, [60.0, 70.0], method="one", omega=0)
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"average_ensemble_top1": 73.0', '"average_ensemble_top1": 72.5'))
    plot_runs([run], tmp_path / "plots", ("ensembles",), False)
    assert lines(tmp_path / "plots", "ensembles") == {
        ("one", "weighted ensemble"): [(1, 73, None), (2, 74, None)],
        ("one", "average ensemble"): [(1, 72.5, None), (2, 74, None)],
    }


def test_fine_tuning_follows_the_baselines_epochs(tmp_path):
    run = fake_run(tmp_path / "pf", 0, [60.0, 70.0], method="prune-finetune", omega=0)
    plot_runs([run], tmp_path / "plots", ("accuracy-over-epochs",), False)
    name = "prune-finetune (cut peers, after the baseline)"
    assert lines(tmp_path / "plots", "accuracy-over-epochs") == {
        ("prune-finetune", name): [(3, 66, None), (4, 67, None)],
    }  # fmt: skip


def test_eta_stands_on_a_log_axis_and_zero_beside_it(tmp_path, capsys):
    runs = [fake_run(tmp_path / f"{eta}", 0, [60.0, 70 + eta], weight_lr=eta) for eta in (0, 0.01, 1)]
    out = tmp_path / "plots"
    plot_runs(runs, out, ("accuracy-over-eta",), False)
    assert lines(out, "accuracy-over-eta") == {
        ("wml", "weighted ensemble"): [(0.01, 71.01, None), (1, 72, None)],
        ("wml", "mean over the peers"): [(0.01, 65.005, None), (1, 65.5, None)],
    }
    assert [run["run"] for run in drawn(out, "accuracy-over-eta")["runs"]] == [str(run) for run in runs[1:]]
    text = words(out / "accuracy-over-eta.svg")
    assert "η, log scale" in text and "n = 1 (seed 0) each" in text
    assert (
        capsys.readouterr().err
        == f"accuracy-over-eta: left out: η is 0, which a log axis doesn't have ({runs[0]})\n"
    )  # fmt: skip


def test_runs_that_differ_in_more_than_method_are_told_apart(tmp_path, capsys):
    out, where = tmp_path / "plots", ("accuracy-over-ratio",)
    runs = [fake_run(tmp_path / "a", 0, [60.0, 70.0]), fake_run(tmp_path / "b", 0, [1.0, 2.0], epochs=3, method="dml")]
    plot_runs(runs, out, where, False)
    assert list(lines(out, where[0])) == [("wml epochs=2",) * 2, ("dml epochs=3",) * 2]
    assert drawn(out, where[0])["runs_differ_in"] == ["epochs"]
    assert [level["name"] for level in drawn(out, where[0])["levels"]] == ["baseline epochs=2", "baseline epochs=3"]
    text = words(out / "accuracy-over-ratio.svg")
    assert "the runs differ in epochs" in text and "baseline epochs=2 80.00; baseline epochs=3 80.00" in text
    warning = "the runs differ in epochs, so figures with several of them compare more than methods\n"
    assert capsys.readouterr().err == warning


def test_folders_of_other_images_are_never_averaged(tmp_path):
    out, where = tmp_path / "plots", ("accuracy-over-macs",)
    runs = [fake_run(tmp_path / f"{n}", 0, [60.0, 70.0], data="imagefolder", classes=n, baseline=None) for n in (2, 3)]
    plot_runs(runs, out, where, False)
    assert {name for _, name in lines(out, where[0])} == {
        "wml data=imagefolder of 2 classes", "wml data=imagefolder of 3 classes",
    }  # fmt: skip
    assert drawn(out, where[0])["levels"] == []


def test_a_baseline_that_runs_have_in_common_counts_once(tmp_path):
    runs = [fake_run(tmp_path / method, 0, [60.0, 70.0], method=method) for method in ("wml", "dml")]
    plot_runs(runs, tmp_path / "plots", ("accuracy-over-ratio",), False)
    (level,) = drawn(tmp_path / "plots", "accuracy-over-ratio")["levels"]
    assert (level["n"], level["mean"], level["sd"]) == (1, 80, None)


def test_what_runs_cannot_feed_is_left_out_in_words(tmp_path, capsys):
    lone = fake_run(tmp_path / "lone", 0, [60.0, 70.0])
    fixed = fake_run(tmp_path / "fixed", 0, [60.0, 70.0], method="wml-p", omega=0)
    with pytest.raises(InputError) as raised:
        plot_runs([lone, fixed], tmp_path / "plots", ("accuracy-over-eta",), False)
    assert str(raised.value) == (
        "nothing of accuracy-over-eta can be drawn from these runs; name other runs or another figure"
    )
    assert capsys.readouterr().err.splitlines() == [
        "accuracy-over-eta: not drawn: one η above 0 (wml); peer weights equal throughout (wml-p)",
    ]
    assert not (tmp_path / "plots").exists()
    plot_runs([lone, fixed], tmp_path / "plots", ("weights",), False)
    assert capsys.readouterr().err == "weights: left out: peer weights equal throughout (wml-p)\n"
    (fixed / "metrics.jsonl").unlink()
    with pytest.raises(InputError):
        plot_runs([fixed], tmp_path / "plots", ("weights", "accuracy-over-epochs"), True)
    assert capsys.readouterr().err.splitlines() == [
        f"{name}: not drawn: no epochs in metrics.jsonl (wml-p)" for name in ("weights", "accuracy-over-epochs")
    ]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            ("weights", "ensemble"),
            "unknown figure 'ensemble'; did you mean ensembles? allowed are ensembles, accuracy-over-epochs, "
            "accuracy-over-ratio, accuracy-over-macs, accuracy-over-latency, accuracy-over-eta, weights",
        ),
        (
            ("loss",),
            "unknown figure 'loss'; allowed are ensembles, accuracy-over-epochs, accuracy-over-ratio, "
            "accuracy-over-macs, accuracy-over-latency, accuracy-over-eta, weights",
        ),
    ],
)
def test_an_unknown_figure_is_refused_with_the_nearest(two_seeds, tmp_path, which, message):
    with pytest.raises(InputError) as raised:
        plot_runs(two_seeds, tmp_path / "plots", which, False)
    assert str(raised.value) == message


def test_no_run_and_an_unfinished_one_are_refused(two_seeds, tmp_path):
    with pytest.raises(InputError) as raised:
        plot_runs([], tmp_path / "plots", (), False)
    assert str(raised.value) == "no run is named; name one or several, such as runs/NAME ('wmlc list' shows them)"
    for run in two_seeds:
        (run / "family.json").unlink()
    with pytest.raises(InputError, match="a is not finished; finish the run with 'wmlc train --resume --out"):
        plot_runs(two_seeds, tmp_path / "plots", (), False)


def test_existing_files_stay_unless_forced(two_seeds, tmp_path):
    out = tmp_path / "plots"
    out.mkdir()
    (out / "weights.json").write_text("mine")
    with pytest.raises(InputError) as raised:
        plot_runs(two_seeds, out, (), False)
    assert str(raised.value) == (
        f"{out / 'weights.json'} exists already; choose another --out, or pass --force to replace it"
    )
    assert [path.name for path in out.iterdir()] == ["weights.json"]
    plot_runs(two_seeds, out, ("weights", "weights"), True)
    assert drawn(out, "weights")["figure"] == "weights"


def test_a_failure_while_drawing_leaves_nothing(two_seeds, tmp_path, monkeypatch):
    pictures = iter([(b"<svg/>", PNG)])

    def failing(spec: dict[str, Any]) -> tuple[bytes, bytes]:
        try:
            return next(pictures)
        except StopIteration:
            raise RuntimeError("no picture") from None

    monkeypatch.setattr(plots, "render", failing)
    with pytest.raises(RuntimeError, match="no picture"):
        plot_runs(two_seeds, tmp_path / "plots", (), False)
    assert not (tmp_path / "plots").exists()


def test_a_file_in_the_place_of_the_directory_is_refused(two_seeds, tmp_path):
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(
        InputError, match=r"^cannot write .*plots/figures: File exists at .*plots; choose another place$"
    ):
        plot_runs(two_seeds, tmp_path / "plots", ("weights",), False)
