"""`wmlc sweep`: a grid of runs in one directory. What is finished is left, what was killed goes on, what fails is told.

How far a run is, its directory alone says; a sweep keeps no record of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from wmlc.arch import needs_caller
from wmlc.compress.config import SweepConfig, settle, untaught, with_absolute_paths, without_channels, without_teacher
from wmlc.compress.sweep.engines import (
    FAILED,
    FINISHED,
    NO_BASELINE,
    Job,
    Outcome,
    cores,
    local_engine,
    plan_job,
    ray_engine,
)
from wmlc.compress.sweep.grid import Point, may_be_named, read_grid
from wmlc.console import UNKNOWN, say, say_exactly
from wmlc.errors import InputError, Stopped
from wmlc.files import new_file
from wmlc.run import BASELINE, RUNS, Run, read_config, read_family
from wmlc.settings import LATENCY, OF_A_BASELINE, OF_WIDTHS, TRAINED_ON, TrainConfig, names_of, names_under
from wmlc.table import Table

SIDE = ".sweep"  # beside the runs, and hidden, so that OUT/* are runs only
UNFINISHED, TO_DO, REFUSED = "unfinished", "to do", "refused"  # how far a run is, besides FINISHED
OF_A_TEACHER = ("teacher", "reuse_teacher", "feature_loss", "feature_weight")
OF_A_START = ("normalise", "interpolation", "crop", "image_size")  # a start says how it wants its pixels


@dataclass(frozen=True)
class Entry:
    """A run of the grid, how far it is, and where its baseline comes from."""

    point: Point
    run: Run
    state: str
    cause: str = ""  # why it is refused
    baseline: Path | None = None  # the run of the sweep whose baseline it takes
    after: str | None = None  # the name of the run that trains that one now


def run_sweep(
    recipe: str | None, sets: Sequence[str], out: Path | None, config: SweepConfig, *, dry_run: bool, as_json: bool
) -> None:
    """Train every run of a grid that is not finished yet in `out`/NAME, and say how each ended.

    Args: a recipe's name or file; texts KEY=VALUE,VALUE,… (see `read_grid`); `out`, by default runs/RECIPE. With Ray
    every machine must see it, the data and the working directory under the same paths. In `out`/.sweep lie NAME.yaml, a
    run's settings, and NAME.log, what it printed. Raises `InputError` before anything starts for settings that cannot
    be, and at the end where a run failed.
    """
    if as_json and not dry_run:
        raise InputError("--json goes with --dry-run; a finished run's record is its family.json")
    out = out or RUNS / (Path(recipe).stem if recipe else "sweep")
    points = as_named_there(read_grid(recipe, sets), out)
    entries = arrange(points, out)
    if dry_run:
        _print_json(entries, out) if as_json else _print_grid(entries, out)
        return
    failed = {entry.point.name: entry.cause for entry in entries if entry.state == REFUSED}
    for entry in entries:
        if entry.state == FINISHED:
            say(f"skipped {entry.point.name}: finished")
    try:
        with _ending_is_interrupt():
            _train_all(points, entries, out, config, failed)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on where it was") from None
    done = [shlex.quote(str(out / point.name)) for point in points if point.name not in failed]
    if done:
        say(f"side by side: wmlc compare {' '.join(done)}")
    if failed:
        for name, cause in failed.items():
            say(f"failed {name}: {cause}", "red")
        raise InputError(
            f"{len(failed)} of {len(points)} runs failed, their logs are {out / SIDE}/NAME.log; "
            "mend the cause and pass the same command again"
        )


def as_named_there(points: Sequence[Point], out: Path) -> list[Point]:
    """The points, each called as its run in `out` is, where a sweep with keys or values in another order named it."""
    there = {directory.name for directory in out.iterdir()} if out.is_dir() else set()
    found = []
    for point in points:
        others = {name for name in there if may_be_named(point.varied, name)}
        names = [point.name, *sorted(others - {point.name})]
        entries = [_entry(point, Run(out / name)) for name in names]
        known = [entry.run.root.name for entry in entries if entry.state in (FINISHED, UNFINISHED)]
        found.append(replace(point, name=known[0]) if known else point)
    return found


def arrange(points: Sequence[Point], out: Path, failed: Collection[str] = ()) -> list[Entry]:
    """How far each run is, and whose baseline it takes; of runs that `failed`, none is waited for.

    Runs that agree in all that makes a baseline train it once: the first of them, unless one has it already or is
    about to go on with its own.
    """
    entries = [_entry(point, Run(out / point.name)) for point in points]
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        if entry.point.config.baseline and entry.point.config.baseline_from is None and entry.state != REFUSED:
            groups.setdefault(_makes_baseline(entry.point.config), []).append(entry)
    takes: dict[str, Entry] = {}
    for members in groups.values():
        there = next((m for m in members if m.run.network(BASELINE).is_dir()), None)
        able = [m for state in (UNFINISHED, TO_DO) for m in members if m.state == state and m.point.name not in failed]
        for first in [there] if there else able[:1]:
            for member in members:
                if member.state == TO_DO and member is not first:
                    after = None if there else first.point.name
                    takes[member.point.name] = replace(member, baseline=first.run.root, after=after)
    return [takes.get(entry.point.name, entry) for entry in entries]


def _entry(point: Point, run: Run) -> Entry:
    """A run as its directory shows it; refused where that holds something else."""
    remedy = "move it away, or choose another --out"
    if not run.root.exists():
        return Entry(point, run, TO_DO)
    if not run.config.exists():
        return Entry(point, run, REFUSED, f"{run.root} exists and is no run; {remedy}")
    try:
        held = _compared(settle(vars(read_config(run).settings), str(run.config)))
    except InputError as error:
        return Entry(point, run, REFUSED, str(error))
    if differing := _differing(held, point.config):
        return Entry(point, run, REFUSED, f"{run.root} has other settings ({'; '.join(differing)}); {remedy}")
    with contextlib.suppress(InputError):
        read_family(run)
        return Entry(point, run, FINISHED)
    return Entry(point, run, UNFINISHED)


def _differing(held: dict[str, Any], config: TrainConfig) -> list[str]:
    """The settings in which what a run holds is not what `config` asks for, but for what the run found out itself."""
    found = ["steps", *(OF_A_START if config.start is not None else ())]
    wanted = {name: value for name, value in _compared(config).items() if value is not None or name not in found}
    for name in ("lr", "finetune_lr", "steps") if config.lr_auto else ():
        wanted.pop(name, None)
    if config.max_latency_ms:  # it holds what they came to
        wanted.pop("ratios")
    elif config.ratio_of == LATENCY:
        wanted["ratios"] = tuple(round(ratio, 4) for ratio in config.ratios)
    for less in (without_teacher, without_channels) if config.start is not None else ():  # whether that can teach
        alone = vars(less(config))
        if all(held[name] == alone[name] for name in OF_A_TEACHER):
            wanted |= {name: alone[name] for name in OF_A_TEACHER}
    return [f"{key} {held[key]} there, {value} here" for key, value in wanted.items() if held[key] != value]


def _compared(config: TrainConfig) -> dict[str, Any]:
    """The settings in which a run of the same name must agree."""
    incidental = names_of("incidental")
    recorded = with_absolute_paths(config)  # as a run records them
    control = TRAINED_ON if config.baseline_from == TRAINED_ON else None  # and not which run's baseline is taken
    compared = {name: value for name, value in vars(recorded).items() if name not in incidental}
    return compared | {"baseline_from": control}


def _makes_baseline(config: TrainConfig) -> tuple[Any, ...]:
    settings = _compared(untaught(config))
    return tuple(settings[name] for name in ("data_root", *names_of(*OF_A_BASELINE)))


def _makes_plan(config: TrainConfig) -> tuple[Any, ...]:
    """What the widths of a run hang on that asks for milliseconds; a start's are the same for every method and seed."""
    settings = _compared(config)
    names = {"data_root", "seed", *names_of("data"), *names_under(*OF_WIDTHS)}
    return tuple(settings[name] for name in sorted(names - ({"method", "seed"} if config.start is not None else set())))


def _train_all(
    points: Sequence[Point], entries: Sequence[Entry], out: Path, config: SweepConfig, failed: dict[str, str]
) -> None:
    """Do all that is to do; a run whose baseline failed to come is arranged again, until none is left."""
    done = 0

    def open_entries() -> list[Entry]:
        arranged = arrange(points, out, failed)
        return [e for e in arranged if e.state in (UNFINISHED, TO_DO) and e.point.name not in failed]

    def report(outcome: Outcome) -> None:
        nonlocal done
        if outcome.state == NO_BASELINE:
            say(f"{outcome.name} waits: the run that was to train its baseline failed")
            return
        done += 1
        if outcome.state == FINISHED and not Run(out / outcome.name).family.exists():  # it would be trained for ever
            why = f"finished where {out} is another directory; choose an --out that every machine sees"
            outcome = replace(outcome, state=FAILED, text=why)
        if outcome.state == FAILED:
            failed[outcome.name] = outcome.text
        say(f"[{done}/{total}] {outcome.state} {outcome.name} after {outcome.minutes:.1f} minutes: {outcome.text}")

    todo = open_entries()
    total = len(todo)
    if not todo:
        return
    _say_counts(entries, config.jobs, config.engine)
    for entry in _to_plan(todo):
        planned = plan_job(_job(entry, out))
        if planned.state == FAILED:
            report(planned)
        else:
            say(f"planned {planned.name} after {planned.minutes:.1f} minutes")
    todo = open_entries()
    engine = ray_engine(config.address, config.jobs) if config.engine == "ray" else local_engine(config.jobs)
    with engine as work:
        while todo:
            first = [e for e in todo if e.after is None] + [e for e in todo if e.after is not None]
            work([_job(entry, out) for entry in first], report)
            todo = open_entries()


def _to_plan(todo: Sequence[Entry]) -> list[Entry]:
    """The runs whose milliseconds are measured first, while nothing runs beside that: one of those that ask alike."""
    asking = [e for e in todo if e.state == TO_DO and e.point.config.ratio_of == LATENCY]
    first = {_makes_plan(entry.point.config): entry for entry in reversed(asking)}
    return [replace(entry, baseline=None, after=None) for entry in reversed(first.values())]


def _say_counts(entries: Sequence[Entry], at_once: int, engine: str) -> None:
    states = [entry.state for entry in entries]
    counts = ", ".join(f"{states.count(s)} {s}" for s in (FINISHED, UNFINISHED, TO_DO, REFUSED) if s in states)
    how = ""
    if engine == "local" and at_once > 1:
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, cores() // at_once)
        how = f"; {at_once} at once, OMP_NUM_THREADS {threads} each"
    say(f"{len(entries)} runs: {counts}{how}")


def _job(entry: Entry, out: Path) -> Job:
    """What an engine needs to know; writes the recipe of a run that is not there yet."""
    root, config = out.resolve(), entry.point.config
    name, baseline = entry.point.name, entry.baseline and entry.baseline.resolve()
    recipe = root / SIDE / f"{name}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    if entry.state == TO_DO:
        settings = {**vars(config), "ratios": list(config.ratios)}
        settings |= {"baseline_from": str(baseline)} if baseline else {}
        if needs_caller(config.arch):  # named on the command line, as a recipe may not
            del settings["arch"]
        with new_file(recipe) as aside:
            aside.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return Job(
        name=name, root=root / name, recipe=recipe, log=root / SIDE / f"{name}.log", folder=Path.cwd(),
        baseline=baseline, after=entry.after, on_gpu=config.device != "cpu",
        arch=config.arch if needs_caller(config.arch) else None,
    )  # fmt: skip


@contextlib.contextmanager
def _ending_is_interrupt() -> Iterator[None]:
    """Being ended from outside is as Ctrl-C, so that the runs' own processes are ended too."""
    kinds = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    former = {kind: handler for kind in kinds if (handler := signal.getsignal(kind)) != signal.SIG_IGN}  # nohup's stays
    for kind in former:
        signal.signal(kind, signal.default_int_handler)
    try:
        yield
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


def _baseline_words(entry: Entry) -> str:
    config = entry.point.config
    if not config.baseline:
        return "none"
    if config.baseline_from == TRAINED_ON:
        return "its start, trained on"
    if config.baseline_from is not None:
        return f"of {config.baseline_from}"
    if entry.baseline is not None:
        return f"of {entry.baseline.name}"
    if entry.state == REFUSED:
        return UNKNOWN
    if entry.run.network(BASELINE).is_dir():
        return "there"
    return "trains it" if config.start is None else "its start"


def _print_grid(entries: Sequence[Entry], out: Path) -> None:
    rows = [[entry.point.name, entry.state, _baseline_words(entry)] for entry in entries]
    Table(["run", "state", "baseline"], rows, f"{len(entries)} runs in {out}", words=3).show()
    for entry in entries:
        if entry.cause:
            say(f"{entry.point.name}: {entry.cause}")


def _print_json(entries: Sequence[Entry], out: Path) -> None:
    rows = [
        {
            "run": str(out / entry.point.name), "settings": entry.point.varied, "state": entry.state,
            "cause": entry.cause or None, "baseline": _baseline_words(entry),
            "baseline_from": str(entry.baseline) if entry.baseline else entry.point.config.baseline_from,
        }
        for entry in entries
    ]  # fmt: skip
    say_exactly(json.dumps(rows, indent=2))
