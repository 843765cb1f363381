"""A sweep's runs: only what is missing is trained, what fails is told, and what is ended goes on."""

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
from typing import IO, Any

import pytest
import yaml
from click.testing import CliRunner
from training import sweep

from wmlc.cli import main
from wmlc.compress.config import settle, without_teacher
from wmlc.compress.sweep import engines
from wmlc.compress.sweep.engines import FAILED, FINISHED, NO_BASELINE, Job, Outcome, local_engine, train_job
from wmlc.compress.sweep.grid import read_grid
from wmlc.compress.sweep.session import _compared, _differing
from wmlc.errors import InputError
from wmlc.run import Run, read_config, read_epochs, read_family

RECIPE = {"train_images": 200, "epochs": 1, "batch_size": 64, "ratios": [0.5, 0.0], "ratio_of": "macs", "device": "cpu"}
GRID = (
    "ratios=0.9:0,0.5:0,0.3:0",
)  # 0.9 of the MACs is out of reach under the sharing tree, which only training finds
SWEEP = """
import sys; from pathlib import Path; from wmlc.compress.sweep.session import run_sweep
from wmlc.compress.config import SweepConfig
config = SweepConfig(engine=sys.argv[3])
try: run_sweep(sys.argv[1], sys.argv[4:], Path(sys.argv[2]), config, dry_run=False, as_json=False)
except ValueError as error: print(error)
"""
TWO_NODES = """
import contextlib, sys, threading, time; from pathlib import Path
from ray.cluster_utils import Cluster
from wmlc.compress.config import SweepConfig
from wmlc.compress.sweep.session import run_sweep
recipe, out, grid = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
try:
    node = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": soon})
    second = cluster.add_node(**node, env_vars={"WMLC_TEST_NODE": "second"})
except Exception as error:
    sys.exit(print("Ray did not start here:", error))
def trained_there(name):
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if name.encode() in (process / "cmdline").read_bytes():
                if b"WMLC_TEST_NODE=second" in (process / "environ").read_bytes(): return True
def kill():
    states = {name: out / name / "checkpoint" / "state.json" for name in ("ratios-0.3-0", "ratios-0.4-0")}
    while not any(state.exists() and trained_there(name) for name, state in states.items()): time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)
threading.Thread(target=kill, daemon=True).start()
config = SweepConfig(engine="ray", address=cluster.address)
try: run_sweep(recipe, grid, out, config, dry_run=False, as_json=False)
finally: cluster.shutdown()
"""
BEYOND, FIRST, SECOND, THIRD = (f"ratios-{ratio}-0" for ratio in (0.9, 0.5, 0.3, 0.4))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def train_here(patch: pytest.MonkeyPatch) -> None:
    """Let the local engine's runs be trained in this process, one after another."""

    def run_child(command: Sequence[str], log: IO[bytes], *_: object) -> int:
        result = CliRunner().invoke(main, list(command[3:]))
        log.write(result.output.encode())
        return result.exit_code

    def work(jobs: Sequence[Job], report: Callable[[Outcome], None]) -> None:
        for job in jobs:
            report(train_job(job))

    patch.setattr(engines, "_run_child", run_child)
    patch.setattr("wmlc.compress.sweep.session.local_engine", engine_that(work))


@dataclasses.dataclass(frozen=True)
class Swept:
    out: Path
    said: list[str]
    error: str


@pytest.fixture(scope="module")
def swept(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep whose first run, which was to train the baseline, cannot be."""
    out, said = tmp_path_factory.mktemp("sweep") / "grid", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as caught:
        train_here(patch)
        with contextlib.redirect_stdout(said):
            sweep(recipe, GRID, out)
    return Swept(out, said.getvalue().splitlines(), str(caught.value))


def stamps(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_a_failed_run_is_listed_with_its_cause_and_the_others_are_trained(swept: Swept) -> None:
    assert swept.error == (
        f"1 of 3 runs failed, their logs are {swept.out}/.sweep/NAME.log; mend the cause and pass the same command again"
    )
    assert swept.said[-2] == f"side by side: wmlc compare {swept.out / FIRST} {swept.out / SECOND}"
    assert swept.said[-1].startswith(f"failed {BEYOND}: peer 1 cannot lose 90% of its macs under --share tree: ")
    assert not (swept.out / BEYOND).exists()
    for name in (FIRST, SECOND):
        family = read_family(Run(swept.out / name))
        mean, ensemble = sum(peer.top1 for peer in family.peers) / 2, family.ensemble_top1
        line = next(line for line in swept.said if f" finished {name} after " in line)
        assert line.endswith(f" minutes: mean top-1 {mean:.2f}, ensemble {ensemble:.2f}")


def test_where_the_first_failed_the_next_trains_the_baseline_and_only_that_one(swept: Swept) -> None:
    trained = [len(read_epochs(Run(swept.out / name), "baseline")) for name in (FIRST, SECOND)]
    assert trained == [1, 0]
    assert read_config(Run(swept.out / SECOND)).settings.baseline_from == str((swept.out / FIRST).resolve())
    one, other = (swept.out / name / "baseline" / "weights.safetensors" for name in (FIRST, SECOND))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_has_the_settings_of_its_point(swept: Swept, recipe: str) -> None:
    point = next(point for point in read_grid(recipe, GRID) if point.name == SECOND)
    settings = read_config(Run(swept.out / SECOND)).settings
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
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ["epochs=3000", "baseline=false"]
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, recipe, str(tmp_path), "local", *sets], stdout=subprocess.PIPE, text=True
    )
    run = Run(tmp_path / "epochs-3000_baseline-false")
    deadline = time.monotonic() + 240
    while not (run.checkpoint / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert said.splitlines()[-1] == "stopped; the same command goes on where it was"
    with (tmp_path / ".sweep" / f"{run.root.name}.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it: the process that trained is gone
    done = len(read_epochs(run, "family"))
    assert 1 <= done < 3000
    record = json.loads(run.config.read_text())
    record["settings"]["epochs"] = done + 1  # so that going on is short
    run.config.write_text(json.dumps(record))
    goes_on = tmp_path / f"epochs-{done + 1}_baseline-false"
    run.root.rename(goes_on)
    train_here(monkeypatch)
    sweep(recipe, [f"epochs={done + 1}", "baseline=false"], tmp_path)
    said = capsys.readouterr().out
    assert f"resumed {goes_on.name}" in said
    assert "resuming the family after epoch " in (tmp_path / ".sweep" / f"{goes_on.name}.log").read_text()
    assert [epoch.epoch for epoch in read_epochs(Run(goes_on), "family")] == list(range(1, done + 2))


def test_what_a_run_found_out_for_itself_is_no_other_setting() -> None:
    """That its start cannot teach, and what shares its budgets in milliseconds came to."""
    taught = settle({"start": "x", "reuse_teacher": 0})
    assert taught.teacher == "frozen" and _differing(_compared(without_teacher(taught)), taught) == []
    timed = settle({"max_latency_ms": [20.0, 12.0]})
    assert _differing(_compared(dataclasses.replace(timed, ratios=(0.61, 0.3211))), timed) == []
    shares = settle({"ratio_of": "latency", "ratios": [1 / 3]})
    assert _differing(_compared(dataclasses.replace(shares, ratios=(0.3333,))), shares) == []
    for config in (taught, timed):
        assert _differing(_compared(dataclasses.replace(config, epochs=3)), config) == [
            f"epochs 3 there, {config.epochs} here"
        ]
    assert _differing(_compared(dataclasses.replace(taught, teacher="none")), taught) == [
        "teacher none there, frozen here"
    ]


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


def test_a_job_waits_for_the_one_that_trains_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def fake(job: Job, threads: int | None, stopped: Callable[[], bool]) -> Outcome:
        if job.after is None:
            time.sleep(0.05)  # the others would be first
        ended.append(job.name)
        return Outcome(job.name, FINISHED)

    monkeypatch.setattr(engines, "train_job", fake)
    reported: list[str] = []
    jobs = [a_job(tmp_path, name="first"), *(a_job(tmp_path, name=name, after="first") for name in ("second", "third"))]
    with local_engine(3) as work:
        work(jobs, lambda outcome: reported.append(outcome.name))
    assert ended[0] == "first" and sorted(ended) == sorted(reported) == ["first", "second", "third"]


def test_at_once_they_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int | None] = []

    def fake(job: Job, threads: int | None, stopped: Callable[[], bool]) -> Outcome:
        given.append(threads)
        return Outcome(job.name, FINISHED)

    monkeypatch.setattr(engines, "train_job", fake)
    monkeypatch.setattr(engines, "cores", lambda: 6)
    for at_once in (1, 2, 4, 12):
        with local_engine(at_once) as work:
            work([a_job(tmp_path)], lambda outcome: None)
    assert given == [None, 3, 1, 1]


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
    settings = settle(yaml.safe_load((tmp_path / ".sweep" / "seed-3.yaml").read_text()), "recipe")
    assert settings == read_grid("digits", ["seed=3"])[0].config


def test_ray_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        sweep("digits", ["seed=0"], tmp_path, engine="ray")
    assert str(caught.value) == (
        "--engine ray needs the package ray, which is not installed (pip install 'wmlc[sweep]'); install it, or use --engine local"
    )


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@needs_ray
def test_ray_trains_the_baseline_once_and_a_machine_that_it_loses_loses_no_run(tmp_path: Path) -> None:
    """A grid over two nodes of one cluster. Takes 40 s.

    The first run trains the baseline for all. Then the others run side by side, and one node is killed when the run on
    it has a checkpoint.
    """
    settings = {**RECIPE, "train_images": 128, "epochs": 8}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "grid"
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path / "small.yaml"), str(out), "ratios=0.5:0,0.3:0,0.4:0"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "Ray did not start here" in done.stdout:
        pytest.skip(done.stdout)
    assert "Ray: machines 2, GPUs 0; a run takes cores 1" in done.stdout, done.stdout + done.stderr
    names = (FIRST, SECOND, THIRD)
    logs = [(out / ".sweep" / f"{name}.log").read_text() for name in names]
    assert sorted("resuming the family after epoch " in log for log in logs) == [False, False, True]
    assert "resuming" not in logs[0]
    assert [len(read_epochs(Run(out / name), "baseline")) for name in names] == [8, 0, 0]
    for name in names:
        assert [epoch.epoch for epoch in read_epochs(Run(out / name), "family")] == list(range(1, 9))
        assert read_config(Run(out / name)).settings.baseline_from in (None, str(out / FIRST))
        assert f"finished {name} after " in done.stdout


@needs_ray
def test_a_ray_cluster_that_is_not_there_is_refused_in_words(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^no Ray cluster at auto \(.*\); start one with 'ray start', or mend --address$"
    ):
        sweep(recipe, ["seed=0"], tmp_path, engine="ray", address="auto")
