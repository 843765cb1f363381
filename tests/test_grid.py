"""The grid of a sweep, and what its directory says about each run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from training import a_family, a_run_record, sweep

from wmlc import records
from wmlc.compress.config import settle
from wmlc.compress.recipes import check_place, choose_config, read_recipe
from wmlc.compress.sweep.grid import parse_set, read_grid
from wmlc.compress.sweep.session import Entry, _makes_baseline, arrange, as_named_there
from wmlc.errors import InputError
from wmlc.run import Run
from wmlc.settings import TrainConfig


def states(entries: Sequence[Entry]) -> dict[str, str]:
    return {entry.point.name: entry.state for entry in entries}


def held(root: Path, config: TrainConfig, *, baseline: bool = False, finished: bool = False) -> None:
    """A run's directory as far as a sweep reads it."""
    run = Run(root)
    root.mkdir(parents=True)
    records.write(run.config, a_run_record(config))
    if baseline:
        run.network(0).mkdir()
    if finished:
        records.write(run.family, a_family(config))


def test_methods_are_compared_at_the_cost_of_one_of_them() -> None:
    points = read_grid("digits", ["method=wml,dml", "as_long_as=wml", "seed=0"])
    assert [point.config.as_long_as for point in points] == [None, "wml"]
    with pytest.raises(InputError, match="as_long_as wml is the method itself"):
        read_grid("digits", ["method=wml", "as_long_as=wml"])


def test_a_grid_says_what_a_recipe_has_for_one_method_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("alpha: 0.9\nas-long-as: wml\nepochs: 2\n")
    points = read_grid(str(tmp_path / "mine.yaml"), ["method=wml,dml,cl"])
    assert [point.config.as_long_as for point in points] == [None, "wml", "wml"]
    assert (
        "alpha of" in (said := capsys.readouterr().err) and "its method; method-dml, method-cl take their own" in said
    )
    assert choose_config(str(tmp_path / "mine.yaml"), {"method": "dml", "steps": 3}).as_long_as is None
    with pytest.raises(InputError, match="steps 3 and as_long_as wml say each how long to train; pass one"):
        choose_config(None, {"method": "dml", "steps": 3, "as_long_as": "wml"})


def test_a_start_that_is_given_no_rate_is_told_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for given, told in (({}, True), ({"lr": 0.1}, False), ({"lr": "auto"}, False), ({"epochs": 0}, False)):
        choose_config(None, {"start": "net.pth", **given})
        said = "lr 0.01, the default from a start, is a careful one; --lr auto finds what suits this start"
        assert (said in capsys.readouterr().err) == told
    assert [choose_config(None, own).lr for own in ({"epochs": 1}, {"start": "a"}, {"start": "a", "lr": 1})] == [
        0.1, 0.01, 1,
    ]  # fmt: skip


def test_digits_lie_in_no_folder() -> None:
    with pytest.raises(InputError, match="lie in no data_root, got pets; pass --data too, imagefolder for folders of"):
        check_place({"data_root": "pets"}, settle({}))


def test_the_grid_is_every_combination_and_the_last_key_varies_fastest() -> None:
    points = read_grid("digits", ["method=wml,dml", "seed=0,1", "lr=1e-3"])
    assert [point.name for point in points] == [
        "method-wml_seed-0_lr-0.001", "method-wml_seed-1_lr-0.001", "method-dml_seed-0_lr-0.001", "method-dml_seed-1_lr-0.001",
    ]  # fmt: skip
    assert points[3].varied == {"method": "dml", "seed": 1, "lr": 0.001}
    assert points[3].config == settle({**read_recipe("digits"), **points[3].varied}, "x")
    assert [point.name for point in read_grid("digits", [])] == ["digits"]


def test_a_runs_name_is_its_own_and_no_longer_than_file_systems_take() -> None:
    sets = ["data=imagefolder", "data_root=a/b,a-b,a b"]
    names = [point.name for point in read_grid("digits", sets)]
    assert len(set(names)) == 3 and names[0] == "data-imagefolder_data_root-a-b"
    assert all(name.startswith(f"{names[0]}-") for name in names[1:])
    assert names == [point.name for point in read_grid("digits", sets)]
    first, second = (point.name for point in read_grid("digits", [f"data_root={'/é' * 120}x,{'/é' * 120}y"]))
    assert first != second and first.startswith("data_root-é-é-é") and 190 < len(first.encode()) <= 200


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("ratios=0.7:0.5:0.3:0,0.3:0", "ratios", [(0.7, 0.5, 0.3, 0.0), (0.3, 0.0)]),
        ("batch-size=64,128", "batch_size", [64, 128]),
        ("lr=1e-3,.1", "lr", [0.001, 0.1]),
        ("nesterov=true,false", "nesterov", [True, False]),
        ("share=none,null", "share", ["none", None]),
        ("clip=null,5", "clip", [None, 5.0]),
        ("data_root=/data/a b", "data_root", ["/data/a b"]),
    ],
)
def test_a_value_is_read_by_its_setting(text: str, key: str, values: list[Any]) -> None:
    assert parse_set(text) == (key, values)
    assert [type(value) for value in parse_set(text)[1]] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["epoch=1"], "digits and --set: unknown setting 'epoch'; did you mean epochs? (run epoch-1)"),
        (["epochs=x"], "digits and --set: epochs must be a whole number, got 'x' (run epochs-x)"),
        (["seed=0,1", "lr=0.1,-1"], "lr must be above 0, got -1 (run seed-0_lr--1)"),
        (["method=wml,dm"], "method must be one of wml, wml-p, dml, one, cl, self-distillation, independent, kd, prune-finetune, got 'dm' (run method-dm)"),
        (["method=wml,kd"], "kd learns from a trained network; pass --start with it (run method-kd)"),
        (["seed=0", "seed=1"], "--set seed was passed twice; list all its values in one: --set seed=VALUE,VALUE,…"),
        (["lr=0.1,1e-1"], "two runs of the grid would be called lr-0.1; leave out the value that is named twice"),
        (["seed="], "--set takes KEY=VALUE,VALUE,…, like seed=0,1,2, and no empty value; got 'seed='"),
        (["seed"], "--set takes KEY=VALUE,VALUE,…, like seed=0,1,2, and no empty value; got 'seed'"),
        (["ratios=0.5,0"], "--set ratios=0.5,0 would be 2 families of one peer; for one of 2 write ratios=0.5:0"),
        (["seed=0,,1"], "--set takes KEY=VALUE,VALUE,…, like seed=0,1,2, and no empty value; got 'seed=0,,1'"),
    ],
)  # fmt: skip
def test_a_grid_with_a_fault_is_refused_before_anything_starts(sets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        sweep("digits", sets, tmp_path / "out")
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"engine": "slurm"}, "--engine must be one of local, ray, got 'slurm'"),
        ({"address": "auto"}, "--address is where a Ray cluster is; pass --engine ray with it"),
        ({"as_json": True}, "--json goes with --dry-run; a finished run's record is its family.json"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        sweep("digits", ["seed=0"], tmp_path, **options)
    assert str(caught.value) == message


def test_nothing_to_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing to sweep; name a recipe, or pass --set"):
        sweep(None, [], tmp_path)


def test_how_far_a_run_is_its_directory_says(tmp_path: Path) -> None:
    points = read_grid("digits", ["seed=0,1,2,3,4,5"])
    configs = [point.config for point in points]
    held(tmp_path / "seed-0", dataclasses.replace(configs[0], baseline_from="elsewhere", workers=7), finished=True)
    held(tmp_path / "seed-1", configs[1])
    held(tmp_path / "seed-2", dataclasses.replace(configs[2], epochs=3), finished=True)
    (tmp_path / ".seed-3.123").mkdir()  # what a killed process had begun
    (tmp_path / "seed-4").mkdir()
    held(tmp_path / "seed-5", configs[5])
    (tmp_path / "seed-5" / "family.json").write_text("{")
    entries = arrange(points, tmp_path)
    assert list(states(entries).values()) == ["finished", "unfinished", "refused", "to do", "refused", "unfinished"]
    other = f"{tmp_path}/seed-2 has other settings (epochs 3 there, 20 here); move it away, or choose another --out"
    assert entries[2].cause == other
    assert entries[4].cause == f"{tmp_path}/seed-4 exists and is no run; move it away, or choose another --out"


def test_keys_and_values_in_another_order_are_the_same_runs(tmp_path: Path) -> None:
    sets = ["seed=0,1", "data=imagefolder", "data_root=a/b,a-b"]
    points = read_grid("digits", sets)
    for point in points:
        held(tmp_path / point.name, point.config)
    again = as_named_there(read_grid("digits", ["data_root=a-b,a/b", *sets[:2]]), tmp_path)
    assert {point.name for point in again} == {point.name for point in points}
    assert {entry.state for entry in arrange(again, tmp_path)} == {"unfinished"}
    new = read_grid("digits", ["data_root=a-b", "seed=2", "data=imagefolder"])
    assert as_named_there(new, tmp_path) == new
    many = ["seed=5", "epochs=3", "batch_size=8", "lr=0.1", "alpha=0.2", "image_size=32", "divisor=4", "data_root=x"]
    (first,) = read_grid("digits", [*many, "data=imagefolder"])
    held(tmp_path / first.name, first.config)
    assert as_named_there(read_grid("digits", ["data=imagefolder", *many[::-1]]), tmp_path)[0].name == first.name


def test_a_run_that_counted_its_own_share_of_fine_tuning_is_known_again(tmp_path: Path) -> None:
    points = read_grid("digits", ["method=prune-finetune", "finetune_epochs=null,3"])
    held(tmp_path / points[0].name, dataclasses.replace(points[0].config, steps=17), finished=True)
    held(tmp_path / points[1].name, dataclasses.replace(points[1].config, finetune_epochs=2), finished=True)
    assert list(states(arrange(points, tmp_path)).values()) == ["finished", "refused"]


def baselines(entries: Sequence[Entry]) -> dict[str, tuple[str | None, str | None]]:
    return {e.point.name: (e.baseline.name if e.baseline else None, e.after) for e in entries}


def test_one_run_of_those_that_agree_trains_the_baseline(tmp_path: Path) -> None:
    points = read_grid("digits", ["seed=0,1", "method=wml,dml,independent"])
    alone, lead0, lead1 = (None, None), "seed-0_method-wml", "seed-1_method-wml"
    assert baselines(arrange(points, tmp_path)) == {
        lead0: alone, "seed-0_method-dml": (lead0, lead0), "seed-0_method-independent": (lead0, lead0),
        lead1: alone, "seed-1_method-dml": (lead1, lead1), "seed-1_method-independent": (lead1, lead1),
    }  # fmt: skip
    next_one = "seed-0_method-dml"
    assert list(baselines(arrange(points, tmp_path, {lead0})).values())[:3] == [
        (next_one, next_one), alone, (next_one, next_one)
    ]  # fmt: skip
    by_name = {point.name: point.config for point in points}
    held(tmp_path / "seed-0_method-independent", by_name["seed-0_method-independent"])  # goes on with its own
    held(tmp_path / "seed-1_method-dml", by_name["seed-1_method-dml"], baseline=True)  # there already
    arranged = baselines(arrange(points, tmp_path))
    going_on = "seed-0_method-independent"
    assert arranged[lead0] == arranged[next_one] == (going_on, going_on) and arranged[going_on] == alone
    assert arranged[lead1] == arranged["seed-1_method-independent"] == ("seed-1_method-dml", None)


def test_runs_without_a_baseline_and_with_one_named_are_left_alone(tmp_path: Path) -> None:
    without = read_grid("digits", ["seed=0", "method=wml,dml", "baseline=false"])
    named = read_grid("digits", ["seed=0", "method=wml,dml", "baseline_from=runs/digits"])
    for points in (without, named):
        assert set(baselines(arrange(points, tmp_path)).values()) == {(None, None)}


def test_a_dry_run_prints_the_grid_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sweep("digits", ["method=wml,dml", "seed=0"], out, dry_run=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["method-wml_seed-0", "to", "do", "trains", "it"] in lines
    assert ["method-dml_seed-0", "to", "do", "of", "method-wml_seed-0"] in lines
    sweep("digits", ["method=wml,dml", "seed=0"], out, dry_run=True, as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert first["settings"] == {"method": "wml", "seed": 0} and first["state"] == "to do"
    assert second["baseline_from"] == first["run"] == str(out / "method-wml_seed-0")
    assert not out.exists()


def test_methods_with_steps_share_a_baseline_only_where_it_is_trained_as_long() -> None:
    both = [point.config for point in read_grid("digits", ["method=wml,prune-finetune,kd", "steps=12", "start=x.pth"])]
    assert len({_makes_baseline(config) for config in both if config.method != "prune-finetune"}) == 1
    assert len({_makes_baseline(config) for config in both}) == 2
