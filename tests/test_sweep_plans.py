"""What a sweep's runs share: milliseconds, measured while nothing runs beside that, and a start as the baseline."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from training import sweep

from wmlc.compress.sweep import engines, session
from wmlc.compress.sweep.engines import FAILED, FINISHED, Job, Outcome
from wmlc.errors import InputError
from wmlc.files import one_at_a_time
from wmlc.run import BASELINE, Run

OF_TIME = ("ratio_of=latency", "ratios=0.5,0.3:0", "arch=resnet20")
FROM_A_START = (*OF_TIME, "start=net.safetensors", "method=wml,prune-finetune", "seed=0,1")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a sweep does, in its order: its processes are not started, and no run of seed 9 can be planned."""
    said: list[str] = []

    def plan(job: Job) -> Outcome:
        said.append(f"plan {job.name}")
        settings = yaml.safe_load(job.recipe.read_text())
        assert settings["baseline_from"] is None, "its baseline is not trained yet"
        return Outcome(job.name, FAILED, 0, "out of reach") if settings["seed"] == 9 else Outcome(job.name, FINISHED)

    def work(jobs: Sequence[Job], report: Callable[[Outcome], None]) -> None:
        said.extend(f"train {job.name}" for job in jobs)
        for job in jobs:
            report(Outcome(job.name, FAILED, 0, "nothing is trained here"))

    def engine(at_once: int) -> Any:
        return contextlib.nullcontext(work)

    monkeypatch.setattr(session, "plan_job", plan)
    monkeypatch.setattr(session, "local_engine", engine)
    return said


def test_a_start_is_planned_once_for_all_methods_and_seeds(done: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^8 of 8 runs failed"):
        sweep(None, FROM_A_START, tmp_path)
    of_each = "ratio_of-latency_ratios-{}_arch-resnet20_start-net.safetensors_method-wml_seed-0"
    assert done[:2] == [f"plan {of_each.format(ratios)}" for ratios in ("0.5", "0.3-0")]
    assert len(done) == 10 and all(what.startswith("train ") for what in done[2:])


def test_random_weights_are_planned_by_seed_and_what_fails_is_not_trained(done: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^2 of 2 runs failed"):
        sweep(None, [*OF_TIME[:1], "ratios=0.3:0", "seed=0,9"], tmp_path)
    of_each = "ratio_of-latency_ratios-0.3-0_seed-"
    assert done == [f"plan {of_each}0", f"plan {of_each}9", f"train {of_each}0"]


def test_ratios_of_macs_need_no_plan(done: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^1 of 1 runs failed"):
        sweep(None, ["ratio_of=macs", "ratios=0.3:0"], tmp_path)
    assert done == ["train ratio_of-macs_ratios-0.3-0"]


def test_a_run_begins_when_the_baseline_that_it_takes_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is one from the beginning of its run, which goes on meanwhile."""
    here, begun, order = tmp_path / "first", threading.Event(), list[str]()

    def fake(job: Job, threads: int | None, stopped: Callable[[], bool]) -> Outcome:
        order.append(job.name)
        if job.after is None:
            Run(here).network(BASELINE).mkdir(parents=True)
            assert begun.wait(10), "the second one waits for the end of the first"
        begun.set()
        order.append(f"{job.name} is done")
        return Outcome(job.name, FINISHED)

    monkeypatch.setattr(engines, "train_job", fake)
    first = Job("first", here, here, here, tmp_path, baseline=None, after=None, on_gpu=False)
    second = replace(first, name="second", baseline=here, after="first")
    with engines.local_engine(2) as work:
        work([first, second], lambda outcome: None)
    assert order[:2] == ["first", "second"] and sorted(order[2:]) == ["first is done", "second is done"]


def test_who_comes_second_waits_in_words_and_goes_on_when_the_first_is_done(tmp_path: Path) -> None:
    file, told = tmp_path / "cache" / "lock", threading.Event()
    order: list[str] = []

    def second() -> None:
        with one_at_a_time(file, lambda: (order.append("waits"), told.set())):  # type: ignore[func-returns-value]
            order.append("second")

    thread = threading.Thread(target=second)
    with one_at_a_time(file, lambda: order.append("nobody is there")):
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["waits", "first", "second"] and not file.exists()


def test_without_a_place_for_a_lock_one_goes_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with one_at_a_time(tmp_path / "file" / "lock", lambda: pytest.fail("nobody is there")):
        assert (tmp_path / "file").read_text() == ""
