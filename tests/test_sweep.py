"""A sweep: the grid, what its directory says about each run, and that only what is missing is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from wmlc.compress.config import TrainConfig, config_from
from wmlc.compress.recipes import read_recipe
from wmlc.compress.sweep.engines import FAILED, FINISHED, NO_BASELINE, Job, Outcome, train_job
from wmlc.compress.sweep.grid import parse_set, read_grid
from wmlc.compress.sweep.session import Entry, plan_sweep, run_sweep
from wmlc.errors import InputError
from wmlc.run import Run, read_family, read_lines, read_settings

SMALL = {"train_images": 200, "epochs": 1, "batch_size": 64, "ratios": [0.5, 0.0], "ratio_of": "macs", "device": "cpu"}
GRID = (
    "ratios=0.9:0,0.5:0,0.3:0",
)  # 0.9 of the MACs is out of reach under the sharing tree, which only training finds
SWEEP = """
import sys; from pathlib import Path; from wmlc.compress.sweep.session import run_sweep
try: run_sweep(sys.argv[1], sys.argv[4:], Path(sys.argv[2]), 1, sys.argv[3], None, False, False)
except ValueError as error: print(error)
"""
BEYOND, FIRST, SECOND = "ratios-0.9-0", "ratios-0.5-0", "ratios-0.3-0"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


def sweep(recipe: str | None, sets: Sequence[str], out: Path, **options: Any) -> None:
    defaults = {"jobs": 1, "engine": "local", "address": None, "dry_run": False, "as_json": False}
    run_sweep(recipe, sets, out, **{**defaults, **options})


@dataclasses.dataclass(frozen=True)
class Swept:
    out: Path
    said: list[str]
    error: str


@pytest.fixture(scope="module")
def swept(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep whose first run, which was to train the baseline, cannot be."""
    out, said = tmp_path_factory.mktemp("sweep") / "grid", io.StringIO()
    with pytest.raises(InputError) as caught, contextlib.redirect_stdout(said):
        sweep(recipe, GRID, out, jobs=2)
    return Swept(out, said.getvalue().splitlines(), str(caught.value))


def states(entries: Sequence[Entry]) -> dict[str, str]:
    return {entry.point.name: entry.state for entry in entries}


def stamps(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def held(root: Path, config: TrainConfig, *, baseline: bool = False, finished: bool = False) -> None:
    """A run's directory as far as a sweep reads it."""
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps({"settings": dataclasses.asdict(config)}))
    if baseline:
        (root / "baseline").mkdir()
    if finished:
        fields = {"peer": 1, "ratio": 0.5, "achieved_ratio": 0.5, "params": 1, "macs": 1, "top1": 50.0}
        (root / "family.json").write_text(json.dumps({"peers": [fields], "ensemble_top1": 51.0}))


def test_the_grid_is_every_combination_and_the_last_key_varies_fastest() -> None:
    points = read_grid("digits", ["method=wml,dml", "seed=0,1", "lr=1e-3"])
    assert [point.name for point in points] == [
        "method-wml_seed-0_lr-0.001", "method-wml_seed-1_lr-0.001", "method-dml_seed-0_lr-0.001", "method-dml_seed-1_lr-0.001",
    ]  # fmt: skip
    assert points[3].varied == {"method": "dml", "seed": 1, "lr": 0.001}
    assert points[3].config == config_from({**read_recipe("digits"), **points[3].varied}, "x")
    assert [point.name for point in read_grid("digits", [])] == ["digits"]


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
        (["method=wml,kd"], "method must be one of wml, wml-p, dml, one, cl, self-distillation, independent, prune-finetune, got 'kd' (run method-kd)"),
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
    entries = plan_sweep(points, tmp_path)
    assert list(states(entries).values()) == ["finished", "unfinished", "refused", "to do", "refused", "unfinished"]
    other = f"{tmp_path}/seed-2 has other settings (epochs 3 there, 20 here); move it away, or choose another --out"
    assert entries[2].cause == other
    assert entries[4].cause == f"{tmp_path}/seed-4 exists and is no run; move it away, or choose another --out"


def test_a_run_that_measured_its_own_share_of_fine_tuning_is_known_again(tmp_path: Path) -> None:
    points = read_grid("digits", ["method=prune-finetune", "finetune_epochs=null,3"])
    held(tmp_path / points[0].name, dataclasses.replace(points[0].config, finetune_epochs=2), finished=True)
    held(tmp_path / points[1].name, dataclasses.replace(points[1].config, finetune_epochs=2), finished=True)
    assert list(states(plan_sweep(points, tmp_path)).values()) == ["finished", "refused"]


def baselines(entries: Sequence[Entry]) -> dict[str, tuple[str | None, str | None]]:
    return {e.point.name: (e.baseline.name if e.baseline else None, e.after) for e in entries}


def test_one_run_of_those_that_agree_trains_the_baseline(tmp_path: Path) -> None:
    points = read_grid("digits", ["seed=0,1", "method=wml,dml,independent"])
    alone, lead0, lead1 = (None, None), "seed-0_method-wml", "seed-1_method-wml"
    assert baselines(plan_sweep(points, tmp_path)) == {
        lead0: alone, "seed-0_method-dml": (lead0, lead0), "seed-0_method-independent": (lead0, lead0),
        lead1: alone, "seed-1_method-dml": (lead1, lead1), "seed-1_method-independent": (lead1, lead1),
    }  # fmt: skip
    next_one = "seed-0_method-dml"
    assert list(baselines(plan_sweep(points, tmp_path, {lead0})).values())[:3] == [
        (next_one, next_one), alone, (next_one, next_one)
    ]  # fmt: skip
    by_name = {point.name: point.config for point in points}
    held(tmp_path / "seed-0_method-independent", by_name["seed-0_method-independent"])  # goes on with its own
    held(tmp_path / "seed-1_method-dml", by_name["seed-1_method-dml"], baseline=True)  # there already
    planned = baselines(plan_sweep(points, tmp_path))
    going_on = "seed-0_method-independent"
    assert planned[lead0] == planned[next_one] == (going_on, going_on) and planned[going_on] == alone
    assert planned[lead1] == planned["seed-1_method-independent"] == ("seed-1_method-dml", None)


def test_runs_without_a_baseline_and_with_one_named_are_left_alone(tmp_path: Path) -> None:
    without = read_grid("digits", ["seed=0", "method=wml,dml", "baseline=false"])
    named = read_grid("digits", ["seed=0", "method=wml,dml", "baseline_from=runs/digits"])
    for points in (without, named):
        assert set(baselines(plan_sweep(points, tmp_path)).values()) == {(None, None)}


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


def test_a_failed_run_is_listed_with_its_cause_and_the_others_are_trained(swept: Swept) -> None:
    assert swept.error == (
        f"1 of 3 runs failed, their logs are {swept.out}/.sweep/NAME.log; mend the cause and pass the same command again"
    )
    assert swept.said[-2] == f"side by side: wmlc compare {swept.out / FIRST} {swept.out / SECOND}"
    assert swept.said[-1].startswith(f"failed {BEYOND}: peer 1 cannot lose 90% of its macs under --share tree: ")
    assert not (swept.out / BEYOND).exists()
    for name in (FIRST, SECOND):
        family = read_family(Run(swept.out / name))
        mean, ensemble = sum(peer["top1"] for peer in family["peers"]) / 2, family["ensemble_top1"]
        line = next(line for line in swept.said if f" finished {name} after " in line)
        assert line.endswith(f" minutes: mean top-1 {mean:.2f}, ensemble {ensemble:.2f}")


def test_where_the_first_failed_the_next_trains_the_baseline_and_only_that_one(swept: Swept) -> None:
    trained = [len(read_lines(Run(swept.out / name).metrics("baseline"))) for name in (FIRST, SECOND)]
    assert trained == [1, 0]
    assert read_settings(Run(swept.out / SECOND))["baseline_from"] == str((swept.out / FIRST).resolve())
    one, other = (swept.out / name / "baseline" / "weights.safetensors" for name in (FIRST, SECOND))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_has_the_settings_of_its_point(swept: Swept, recipe: str) -> None:
    point = next(point for point in read_grid(recipe, GRID) if point.name == SECOND)
    settings = config_from(read_settings(Run(swept.out / SECOND)), "run")
    assert dataclasses.replace(settings, baseline_from=None) == point.config


def test_again_skips_what_is_finished(swept: Swept, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(swept.out)
    sweep(recipe, ["ratios=0.5:0,0.3:0"], swept.out)
    assert capsys.readouterr().out.splitlines() == [
        f"skipped {FIRST}: finished", f"skipped {SECOND}: finished",
        f"side by side: wmlc compare {swept.out / FIRST} {swept.out / SECOND}",
    ]  # fmt: skip
    assert stamps(swept.out) == before


def test_a_run_with_other_settings_fails_and_is_left(
    swept: Swept, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(swept.out / FIRST, tmp_path / "epochs-2")
    before = stamps(tmp_path)
    with pytest.raises(InputError, match=r"^1 of 1 runs failed"):
        sweep(recipe, ["epochs=2"], tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        f"failed epochs-2: {tmp_path}/epochs-2 has other settings (epochs 1 there, 2 here); move it away, or choose another --out"
    ]
    assert stamps(tmp_path) == before


def test_a_sweep_that_is_ended_ends_its_runs_and_goes_on_with_them(
    swept: Swept, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["epochs=3000", "baseline=false"]
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, recipe, str(tmp_path), "local", *sets], stdout=subprocess.PIPE, text=True
    )
    run = Run(tmp_path / "epochs-3000_baseline-false")
    deadline = time.monotonic() + 120
    while not (run.checkpoint / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert said.splitlines()[-1] == "stopped; the same command goes on where it was"
    with (tmp_path / ".sweep" / f"{run.root.name}.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it: the process that trained is gone
    done = len(read_lines(run.metrics("family")))
    assert 1 <= done < 3000
    record = json.loads(run.config.read_text())
    record["settings"]["epochs"] = done + 1  # so that going on is short
    run.config.write_text(json.dumps(record))
    goes_on = tmp_path / f"epochs-{done + 1}_baseline-false"
    run.root.rename(goes_on)
    sweep(recipe, [f"epochs={done + 1}", "baseline=false"], tmp_path)
    said = capsys.readouterr().out
    assert f"resumed {goes_on.name}" in said
    assert "resuming the family after epoch " in (tmp_path / ".sweep" / f"{goes_on.name}.log").read_text()
    assert [line["epoch"] for line in read_lines(Run(goes_on).metrics("family"))] == list(range(1, done + 2))


def a_job(root: Path, **changes: Any) -> Job:
    job = Job(
        name="one", root=root / "one", recipe=root / "one.yaml", log=root / "one.log", folder=root, baseline=None,
        after=None, on_gpu=False,
    )  # fmt: skip
    return dataclasses.replace(job, **changes)


def test_a_run_that_another_process_trains_is_not_touched(tmp_path: Path) -> None:
    with (tmp_path / "one.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        outcome = train_job(a_job(tmp_path))
    assert (outcome.state, outcome.text) == (FAILED, "another process is training it; end that one, or wait for it")
    assert [path.name for path in tmp_path.iterdir()] == ["one.log"]


def test_a_run_whose_baseline_is_missing_is_not_started(tmp_path: Path) -> None:
    assert train_job(a_job(tmp_path, baseline=tmp_path / "other")).state == NO_BASELINE
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_this_machine_cannot_see_is_a_failure_in_words(tmp_path: Path) -> None:
    outcome = train_job(a_job(tmp_path / "nowhere"))
    assert (outcome.state, outcome.text) == (FAILED, f"No such file or directory: {tmp_path}/nowhere/one.log")


def engine_that(work: Callable[[Sequence[Job], Callable[[Outcome], None]], None]) -> Any:
    return lambda at_once: contextlib.nullcontext(work)


def test_a_run_that_finished_elsewhere_is_not_trained_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wmlc.compress.sweep.session.local_engine", engine_that(
        lambda jobs, report: [report(Outcome(job.name, FINISHED)) for job in jobs] and None
    ))  # fmt: skip
    with pytest.raises(InputError, match=r"^1 of 1 runs failed"):
        sweep("digits", ["seed=3"], tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"failed seed-3: finished where {tmp_path} is another directory; choose an --out that every machine sees"
    )


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(jobs: Sequence[Job], report: Callable[[Outcome], None]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wmlc.compress.sweep.session.local_engine", engine_that(stop))
    with pytest.raises(InputError, match=r"^stopped; the same command goes on where it was$"):
        sweep("digits", ["seed=3"], tmp_path)
    settings = config_from(yaml.safe_load((tmp_path / ".sweep" / "seed-3.yaml").read_text()), "recipe")
    assert settings == read_grid("digits", ["seed=3"])[0].config


def test_ray_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        sweep("digits", ["seed=0"], tmp_path, engine="ray")
    assert str(caught.value) == (
        "--engine ray needs the package ray, which is not installed (pip install 'wmlc[sweep]'); install it, or use --engine local"
    )


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_trains_the_grid_and_the_baseline_once(recipe: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", SWEEP, recipe, str(tmp_path), "ray", "ratios=0.5:0,0.3:0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    if "Ray did not start here" in done.stdout:
        pytest.skip(done.stdout)
    said = done.stdout.splitlines()
    assert said[1].startswith("Ray: machines 1, GPUs ") and len(said) == 5, said
    assert done.stderr == ""
    assert [len(read_lines(Run(tmp_path / name).metrics("baseline"))) for name in (FIRST, SECOND)] == [1, 0]
    assert all(read_family(Run(tmp_path / name))["baseline"] for name in (FIRST, SECOND))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_cluster_that_is_not_there_is_refused_in_words(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^no Ray cluster at auto \(.*\); start one with 'ray start', or mend --address$"
    ):
        sweep(recipe, ["seed=0"], tmp_path, engine="ray", address="auto")
