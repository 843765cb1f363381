"""Finished runs side by side: what each was trained with, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wmlc.console import note
from wmlc.errors import InputError
from wmlc.run import Run, find_run, read_config, read_epochs, read_family

# Settings that say where and how a run was computed, or which of several like it it is; not what was trained.
INCIDENTAL = ("seed", "device", "workers", "download", "data_root", "baseline", "baseline_from", "compile")


@dataclass(frozen=True)
class Trained:
    """One finished run."""

    root: Path
    settings: dict[str, Any]  # as in config.json
    family: dict[str, Any]  # family.json
    epochs: list[dict[str, Any]]  # metrics.jsonl
    baseline_epochs: list[dict[str, Any]]


def read_trained(names: Sequence[Path]) -> list[Trained]:
    """The finished runs called `names`; of those that are not finished a note says that they were left out.

    Raises `InputError` where one is missing, damaged or named twice, and where none is finished.
    """
    runs: list[Run] = []
    for name in names:
        run = find_run(name)
        if any(other.root.resolve() == run.root.resolve() for other in runs):
            raise InputError(f"{run.root} is named twice; name each run once")
        runs.append(run)
    finished = [run for run in runs if run.family.exists()]
    for run in runs:
        if finished and run not in finished:
            note(f"left out {run.root}: not finished; go on with 'wmlc train --resume --out {run.root}'")
    return [
        Trained(
            run.root,
            {**vars(read_config(run).settings), "ratios": list(read_config(run).settings.ratios)},
            asdict(read_family(run)),
            [asdict(e) for e in read_epochs(run, "family")],
            [asdict(e) for e in read_epochs(run, "baseline")],
        )
        for run in finished or runs
    ]


def configuration(run: Trained) -> dict[str, Any]:
    """What makes a run what it is, its seed and machine apart, without what is unset; `share` as it came out."""
    settings = {**run.settings, "share": run.family.get("share", run.settings.get("share"))}
    if settings["share"] == "none":
        settings.pop("join", None)  # nothing joins
    return {name: value for name, value in settings.items() if name not in INCIDENTAL and value is not None}


def alike(runs: Sequence[Trained]) -> dict[str, list[Trained]]:
    """The runs by configuration, under a name each: the method, and what tells apart those of one method.

    In the order in which the configurations first come; the runs of one differ in their seed.
    """
    groups: list[list[Trained]] = []
    for run in runs:
        mine = next((group for group in groups if configuration(group[0]) == configuration(run)), None)
        if mine is None:
            groups.append([run])
        else:
            mine.append(run)
    return {_name(group[0], [other[0] for other in groups]): group for group in groups}


def _name(run: Trained, others: Sequence[Trained]) -> str:
    method, mine = run.settings["method"], configuration(run)
    rivals = [configuration(other) for other in others if other.settings["method"] == method]
    joining = [rival for rival in rivals if "join" in rival]  # without shared stages there is none
    varying = [
        name for name in mine
        if any(rival.get(name) != mine[name] for rival in (joining if name == "join" else rivals))
    ]  # fmt: skip
    return " ".join([method, *(f"{name}={_shown(mine[name])}" for name in varying)])


def _shown(value: Any) -> str:
    return ",".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)
