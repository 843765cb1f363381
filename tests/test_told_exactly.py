"""What is said of runs where a slip would still read well: the headline, the names of lines, the list of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import (
    made_bench,
    made_cost,
    made_epoch,
    made_family,
    made_record,
    made_row,
    made_run,
    made_settings,
    made_trained,
)

from wmlc import records
from wmlc.errors import InputError
from wmlc.records import Cost, Epoch, Family, Framing, Row
from wmlc.report import plots
from wmlc.report.configurations import comparable
from wmlc.report.figures import Figure
from wmlc.report.groups import labelled
from wmlc.report.headline import headline
from wmlc.report.listing import print_networks, print_runs
from wmlc.report.paper import beside_paper, read_paper
from wmlc.report.plots import FIGURES, spec_of
from wmlc.report.runs import TrainedRun, alike, network_of, read_runs, told_by_start
from wmlc.report.sizes import baselines
from wmlc.run import Run, append_epoch

FASTER = (1.9, 2.0, 2.1)


def a_run(
    rows: Sequence[Row] = (), top1: tuple[float, ...] = (89.5, 90.0), baseline: float | None = 90.0, name: str = "run",
    family: dict[str, Any] | None = None, **settings: Any,
) -> TrainedRun:  # fmt: skip
    """A run without files, with a bench of these `rows`, if any; `family` changes its record."""
    asked = made_settings(top1, **settings)
    return TrainedRun(
        root=Path("runs") / name, name=name, record=made_record(asked), epochs=[], baseline_epochs=[], test_images=400,
        family=replace(made_family(top1, baseline, settings=asked), **(family or {})),
        bench=made_bench(rows) if rows else None,
    )  # fmt: skip


def said(run: TrainedRun) -> str:
    return headline(run).replace("\u00a0", " ")


def first_peer(run: TrainedRun, **changes: Any) -> TrainedRun:
    first, *others = run.family.peers
    return replace(run, family=replace(run.family, peers=[replace(first, **changes), *others]))


def test_a_peer_that_came_out_whole_is_not_pruned_whatever_was_asked() -> None:
    assert "None of them is pruned" in said(first_peer(a_run(), achieved_ratio=0.0))


def test_a_point_is_a_point_whatever_its_last_bit() -> None:
    whole, own = 100 * 450 / 700, 100 * 443 / 700
    assert whole - own > 1  # by the last bit
    assert "Peer 1, with" in said(a_run(top1=(own, whole), baseline=whole))


def test_the_headline_counts_parameters_and_the_images_of_the_bench() -> None:
    few = first_peer(a_run(), params=2500)
    assert "Peer 1, with 75 % fewer parameters" in said(few) and "on 400 test images the drop" in said(few)
    rows = [made_row(0, 2.0), made_row(1, 1.0, FASTER, top1=89.5)]
    assert "on 10,000 test images the drop" in said(a_run(rows))


@pytest.mark.parametrize("interval", [(1.0, 1.1, 1.2), (0.8, 0.9, 1.0)])
def test_an_interval_that_holds_one_shows_nothing(interval: tuple[float, float, float]) -> None:
    assert "It is not shown to be faster:" in said(a_run([made_row(0, 2.0), made_row(1, 1.0, interval, top1=89.5)]))


def test_a_speed_up_in_another_precision_is_not_the_headlines() -> None:
    int8 = made_row(1, 0.5, FASTER, name="peer1 int8", precision="int8", top1=89.5)
    rows = [made_row(0, 2.0), made_row(1, 1.0, top1=89.5, notes=["too few launches"]), int8]
    assert said(a_run(rows)).endswith("Its speed-up was not measured: too few launches.")
    both = [replace(made_row(0, 1.0), name="baseline int8", precision="int8"), int8]
    assert said(a_run(both)).endswith("ONNX Runtime, 1 thread, batch 1, both in int8).")


def test_lines_are_named_by_what_differs_and_by_nothing_twice() -> None:
    def train(images: int) -> dict[str, Any]:
        return {"data": replace(made_family().data, train=images)}

    fewer = [a_run(name="a", family=train(900)), a_run(name="b", family=train(450), method="dml")]
    assert list(labelled(fewer)) == ["wml train_images=900", "dml train_images=450"]
    other = [
        a_run(name="a"),
        a_run(name="b", data="cifar100", family={"data": replace(made_family().data, name="cifar100", train=450)}),
    ]
    assert [name.count("train_images") for name in labelled(other)] == [0, 0]
    starts = labelled([a_run(name="a", start="/x/net.pth"), a_run(name="b", start="/y/net.pth")])
    assert [name.count("start=") for name in starts] == [1, 1]


def test_the_list_has_what_was_asked_before_what_it_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(made_trained(Path("runs/a"), (70.0, 80.0), None))
    family = records.read(run.family, Family, "family record", "")
    records.write(run.family, replace(family, peers=[replace(family.peers[0], achieved_ratio=0.68), family.peers[1]]))
    print_runs(as_json=False)
    assert capsys.readouterr().out.splitlines()[1].split()[1:5] == ["peer", "1", "70.0%", "68.0%"]


def test_networks_that_can_be_had_trained_say_yes(capsys: pytest.CaptureFixture[str]) -> None:
    print_networks([("timm:a", "timm", 1234, True), ("mine.py:net", "mine.py", None, False)], as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["timm:a", "timm", "1,234", "yes"], ["mine.py:net", "mine.py", "no"],
    ]  # fmt: skip


def test_the_papers_drop_is_its_baseline_less_the_mean_of_its_peers() -> None:
    (runs,) = comparable([a_run(top1=(70.0, 80.0), arch="resnet18")])
    (own, published) = beside_paper("table6", runs).lines
    row = next(row for row in read_paper().tables["table6"].rows if (row.network, row.method) == ("resnet18", "wml"))
    assert row.baseline is not None and published.baseline.mean == row.baseline
    assert published.top1_drop.mean == pytest.approx(row.baseline - sum(row.peers) / 4)
    assert own.top1_drop.mean == 15.0


def test_table_7_takes_wml_with_equal_weights_too() -> None:
    (runs,) = comparable([a_run(top1=(92.0, 93.0), arch="resnet56", method="wml-p", saliency="snip")])
    assert [line.measured for line in beside_paper("table7", runs).lines] == [True, False]


def of_epochs(*weights: tuple[float, float]) -> list[Epoch]:
    """An epoch for each pair of weights."""
    return [made_epoch(number, (60.0, 70.0), peer_weights=list(pair)) for number, pair in enumerate(weights, 1)]


def small_print(figure: Figure, runs: list[TrainedRun]) -> str:
    return "; ".join(spec_of(figure, runs)["title"]["subtitle"])


def test_small_print_has_words_for_all_that_it_says() -> None:
    run = a_run()
    assert small_print(FIGURES["accuracy-over-ratio"]([run]), [run]) == (
        "resnet20, cifar10, 900 training images, 6 epochs; n = 1 (seed 0)"
    )


def test_a_lone_peer_is_no_ensemble() -> None:
    lone = replace(a_run(top1=(80.0,)), epochs=[made_epoch(1, (80.0,))])
    figure = FIGURES["ensembles"]([lone])
    assert (figure.lines, figure.left_out) == ([], {"one peer is no ensemble": ["wml"]})


def test_what_is_cut_from_a_start_has_no_epochs_before_its_own() -> None:
    run = replace(a_run(method="prune-finetune", start="net.pth"), epochs=of_epochs((0.5, 0.5)))
    (line,) = FIGURES["accuracy-over-epochs"]([run]).lines
    assert (line.name, [point.x for point in line.points]) == ("prune-finetune", [1])


def test_weights_that_move_late_are_drawn_and_ratios_told_where_they_are_the_same() -> None:
    late = replace(a_run(), epochs=of_epochs((0.5, 0.5), (0.4, 0.6)))
    assert [line.name for line in FIGURES["weights"]([late]).lines] == ["peer 1 (ratio 0.7)", "peer 2 (ratio 0)"]
    other = replace(a_run(name="b", ratios=(0.5, 0.0)), epochs=late.epochs)
    assert [line.name for line in FIGURES["weights"]([late, other]).lines] == ["peer 1", "peer 2"] * 2


def test_the_small_print_tells_each_thing_once() -> None:
    twice = [a_run(name="a"), a_run(name="b")]
    said = small_print(FIGURES["accuracy-over-ratio"](twice), twice)
    assert "n = 2 (seeds 0, 0)" in said and "baseline" not in said  # one level stands in the plot
    longer = [a_run(name="a"), a_run(name="b", epochs=9, family={"epochs": 9})]
    said = small_print(FIGURES["accuracy-over-ratio"](longer), longer)
    assert said.startswith("resnet20, cifar10, 900 training images") and "the runs differ in epochs" in said
    assert "6 epochs" not in said


def test_all_figures_of_benched_runs_are_written_with_their_own_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "render", lambda spec: (b"<svg/>", b"PNG"))
    bench = made_bench([made_row(peer, 2.0 - peer / 2) for peer in (0, 1, 2)])
    plots.plot_runs([made_trained(tmp_path / "a", (70.0, 80.0), cost=2.0, bench=bench)], tmp_path / "out", (), False)
    (run,) = json.loads((tmp_path / "out" / "accuracy-over-latency.json").read_text())["runs"]
    assert (run["seconds"], run["cost_epochs"], run["training_macs"]) == (600.0, 2.0, made_cost(2.0))


def test_the_crop_is_the_part_of_the_shorter_side_that_is_kept() -> None:
    framing = Framing(shorter_side=256, size=(224, 224), interpolation="bilinear")
    run = a_run(family={"data": replace(made_family().data, framing=framing)})
    assert run.pixels["crop"] == "0.875"


def test_epochs_tell_of_the_cut_peers_of_a_start_whatever_their_number(tmp_path: Path) -> None:
    top1 = (70.0, 80.0, 80.0)
    settings = made_settings(top1, start="net.pth", ratios=(0.7, 0.0, 0.0))
    run = made_run(tmp_path / "a", settings, made_family(top1, settings=settings), epochs=[made_epoch(1, (60.0,))])
    assert [peer.peer for peer in read_runs([run], with_bench=False)[0].trained_peers] == [1]
    (run.root / "metrics.jsonl").unlink()
    append_epoch(run, "family", made_epoch(1, (60.0, 61.0)))
    with pytest.raises(InputError, match="epoch 1 is not of 3 peers"):
        read_runs([run], with_bench=False)
    (run.root / "metrics.jsonl").unlink()
    append_epoch(run, "family", made_epoch(1, (60.0,), peer_weights=[0.5, 0.5]))
    with pytest.raises(InputError, match="epoch 1 is not of 3 peers"):
        read_runs([run], with_bench=False)


def test_test_images_are_the_networks_own_or_else_the_baselines(tmp_path: Path) -> None:
    settings = made_settings()
    for name, own, expected in (("a", 300, 300), ("b", 0, 250)):
        run = made_run(tmp_path / name, settings, made_family(settings=settings, test=250), test=own)
        assert read_runs([run], with_bench=False)[0].test_images == expected


def test_a_network_is_known_by_its_whole_first_word() -> None:
    for name, peer, network in (("peer1 int8", 1, "peer1"), ("peer1.onnx", 1, "peer1.onnx"), ("peer12", 12, "peer12")):
        assert network_of(name, peer) == network


def test_methods_from_other_starts_are_told_by_them() -> None:
    runs = [a_run(name="a", start="/x/a/net.pth"), a_run(name="b", method="kd", start="/x/b/net.pth")]
    assert list(alike(runs)) == ["wml start=a/net.pth", "kd start=b/net.pth"]


def test_heads_for_other_classes_tell_no_starts_apart() -> None:
    def run(name: str, classes: list[str]) -> TrainedRun:
        own = a_run(name=name, start="net.pth", method="kd", data="imagefolder", data_root="x",
                    family={"data": replace(made_family().data, name="imagefolder", class_names=classes)})  # fmt: skip
        return replace(own, record=replace(own.record, start_weights=name * 64))

    one, other, same = run("a", ["cat", "dog"]), run("b", ["cat", "cow"]), run("c", ["cat", "dog"])
    assert [own.start_weights for own in told_by_start([one, other])] == [None, None]
    assert [own.start_weights for own in told_by_start([one, same])] == ["a" * 8, "c" * 8]


def test_a_run_without_macs_is_damaged(tmp_path: Path) -> None:
    settings = made_settings()
    run = made_run(tmp_path / "a", settings, replace(made_family(settings=settings), full=Cost(10_000, 0)))
    with pytest.raises(InputError, match=r"family\.json is damaged: it has no MACs of the unpruned network; train"):
        read_runs([run], with_bench=False)


def test_points_know_their_peers_and_costs_are_told_where_one_is_known() -> None:
    known = a_run(name="a", family={"training_macs": made_cost(2.0)})
    figure = FIGURES["accuracy-over-macs"]([known, a_run(name="b", method="dml")])
    assert [[point.peer for point in line.points] for line in figure.lines if not line.baseline] == [[1, 2], [1, 2]]
    assert [line.told for line in figure.lines] == ["n = 1, cost 2.00", "n = 1", ""]
    assert figure.remarks == ["cost: MACs of training all peers, in epochs of the unpruned network"]
    assert FIGURES["accuracy-over-macs"]([a_run()]).remarks == []


def test_baselines_that_were_trained_otherwise_are_no_seeds_of_each_other() -> None:
    runs = [a_run(name="a", baseline=80.0), a_run(name="b", baseline=82.0, seed=1, lr=0.05)]
    assert [(level.name, level.y.mean) for level in baselines(runs)] == [
        ("baseline lr=0.1", 80.0),
        ("baseline lr=0.05", 82.0),
    ]
    (alike_ones,) = baselines([runs[0], a_run(name="b", baseline=82.0, seed=1)])
    assert (alike_ones.name, alike_ones.y.mean, alike_ones.y.n) == ("baseline", 81.0, 2)


def test_latencies_of_two_machines_stand_in_two_panels() -> None:
    def benched(name: str, cpu: str, gpu: str | None = None, **changes: Any) -> TrainedRun:
        bench = made_bench([made_row(peer, 2.0, **changes) for peer in (0, 1, 2)])
        return replace(a_run(name=name), bench=replace(bench, environment=replace(bench.environment, cpu=cpu, gpu=gpu)))

    def panels(*runs: TrainedRun) -> list[str]:
        return list(dict.fromkeys(line.panel for line in FIGURES["accuracy-over-latency"](runs).lines))

    here = benched("a", "a CPU")
    assert panels(here) == ["ONNX Runtime, 1 thread, batch 1, fp32"]
    assert panels(here, benched("b", "another CPU"), benched("c", "a CPU", "a GPU", device="cuda")) == [
        "ONNX Runtime, 1 thread, batch 1, fp32, a CPU", "ONNX Runtime, 1 thread, batch 1, fp32, another CPU",
        "ONNX Runtime, batch 1, fp32, a GPU",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"max_latency_ms": (0.5,), "ratio_of": "latency"}, [{"ratios": (0.41, 0.0)}, {"ratios": (0.43, 0.0)}]),
        (
            {"method": "prune-finetune", "share": "none", "lr_auto": True},
            [{"lr": 0.1, "finetune_lr": 0.01}, {"lr": 0.2, "finetune_lr": 0.02}],
        ),
    ],
)
def test_what_each_seed_found_for_itself_makes_no_two_rows(asked: dict[str, Any], found: list[dict[str, Any]]) -> None:
    runs = [a_run(name=str(seed), seed=seed, **asked, **own) for seed, own in enumerate(found)]
    assert [len(group) for group in alike(runs).values()] == [2]
