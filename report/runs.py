"""The one reader of finished runs, for the page, `compare` and `plot`; and which of them are of one configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wmlc import records
from wmlc.console import note
from wmlc.errors import InputError
from wmlc.records import Bench, Epoch, Family, NetworkSpec, Peer, Row, RunRecord
from wmlc.report.cost import in_epochs
from wmlc.run import Run, find_run, own_code, peer_name, read_config, read_epochs, read_family
from wmlc.settings import TRAINED_ON, TrainConfig, names_of

# What makes a run what it is: not which of several like it, and not where it was computed.
OF_A_CONFIGURATION = (*names_of("data", "network", "training", "family", "method"), "start_weights", "baseline_from")
RANDOM = "random weights"  # in a start's place
HASH = 8  # letters of a hash that tell it from the few others


@dataclass(frozen=True)
class TrainedRun:
    """All records of one finished run."""

    root: Path
    name: str  # among the runs that it was read with
    record: RunRecord
    family: Family
    epochs: list[Epoch]
    baseline_epochs: list[Epoch]
    test_images: int | None  # that its accuracies were measured on; None where that was not recorded
    bench: Bench | None
    start_weights: str | None = None  # the first letters of their hash, where runs from one path began with others
    control: bool = False  # its baseline is the start, trained on, where that of others is the start as it stands

    @property
    def settings(self) -> TrainConfig:
        """What it was trained with."""
        return self.record.settings

    @property
    def seed(self) -> int:
        """Which it is of several runs that are otherwise alike."""
        return self.settings.seed

    @property
    def baseline_top1(self) -> float | None:
        """Its own baseline's, if it has one."""
        return None if self.family.baseline is None else self.family.baseline.top1

    @property
    def cost(self) -> float | None:
        """What training its peers took, in epochs of the unpruned network; None where that was not counted."""
        return in_epochs(self.family.training_macs, self.family)

    @property
    def start_name(self) -> str:
        """What it began from: the end of a path, pretrained, or random weights."""
        return RANDOM if self.settings.start is None else str(Path(*Path(self.settings.start).parts[-2:]))

    @property
    def pixels(self) -> dict[str, str]:
        """What is done to pictures, whatever was said of it in so many words; the images' own mean differs by seed."""
        own, framing = self.settings, self.family.data.framing
        crop = 1.0 if framing.shorter_side is None else round(min(framing.size) / framing.shorter_side, 3)
        return {
            "normalise": own.normalise or "data",
            "interpolation": own.interpolation or framing.interpolation,
            "crop": f"{crop if own.crop is None else own.crop:g}",
        }

    @property
    def named(self) -> str:
        """The options by which a command finds it, and its network's code where that is the caller's own."""
        return f"--run {self.root}{own_code(Run(self.root))}"

    @property
    def data_name(self) -> str:
        """The data set, and of a folder its number of classes."""
        data = self.family.data
        return data.name if data.name != "imagefolder" else f"imagefolder of {len(data.class_names)} classes"

    @property
    def as_it_started(self) -> bool:
        """Whether its baseline is the start, not trained on."""
        baseline = self.family.baseline
        return self.settings.start is not None and baseline is not None and not baseline.best_epoch

    @property
    def head_is_whole(self) -> bool:
        """Whether it is known to have begun with the start's own head, not with a new one for its classes."""
        own = self.settings
        return self.as_it_started or own.baseline_from == TRAINED_ON or own.teacher == "frozen" or own.method == "kd"

    @property
    def trained_peers(self) -> list[Peer]:
        """The peers that its epochs tell of: the first ones."""
        return self.family.peers[: len(self.epochs[0].top1)] if self.epochs else []

    @property
    def top1_images(self) -> int | None:
        """How many test images its top-1 was measured on: the bench's, else the training's; None: not recorded."""
        return self.bench.data.test_images if self.bench and self.bench.data else self.test_images

    @property
    def rows(self) -> list[Row]:
        """The rows of its bench."""
        return self.bench.rows if self.bench else []


def read_runs(runs: Sequence[Run], *, with_bench: bool) -> list[TrainedRun]:
    """The records of `runs`, each under a name of its own; `InputError` for one unfinished, damaged or named twice."""
    names = [run.root.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.root) for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"each run may be named once, got {', '.join(names)}")
    return told_by_start([_read_run(run, name, with_bench) for run, name in zip(runs, names, strict=True)])


def told_by_start(runs: Sequence[TrainedRun]) -> list[TrainedRun]:
    """The runs, each with what tells it from others whose start has the same path: its weights, its baseline."""
    groups: dict[Any, list[TrainedRun]] = {}
    for run in runs:
        groups.setdefault(_path_of_start(run), []).append(run)
    return [_told_among(run, groups[_path_of_start(run)]) for run in runs]


def _path_of_start(run: TrainedRun) -> tuple[str | None, ...]:
    own = run.settings
    classes = "\n".join(run.family.data.class_names)  # for others the head is another
    return own.start, own.start_classes, own.arch, own.arch_args, run.family.data.name, classes


def _told_among(run: TrainedRun, others: Sequence[TrainedRun]) -> TrainedRun:
    """The run, told apart from `others` whose start has the same path.

    A head that is new is part of what is hashed, and is another one for each seed, so that there only runs of one seed
    are held against each other. What an older run did not record stays unknown.
    """
    if run.settings.start is None:
        return run
    whole = any(other.head_is_whole for other in others)
    hashes: dict[int, set[str]] = {}
    for other in others:
        if other.record.start_weights is not None:
            hashes.setdefault(0 if whole else other.seed, set()).add(other.record.start_weights)
    own = (run.record.start_weights or "unknown")[:HASH]
    return replace(
        run,
        start_weights=own if any(len(found) > 1 for found in hashes.values()) else None,
        control=bool(run.family.baseline and not run.as_it_started and any(other.as_it_started for other in others)),
    )


def _read_run(run: Run, name: str, with_bench: bool) -> TrainedRun:
    family, epochs, record = read_family(run), read_epochs(run, "family"), read_config(run)
    if not family.full.macs:
        raise InputError(f"{run.family} is damaged: it has no MACs of the unpruned network; train again")
    counts = {len(family.peers)}
    if record.settings.start is not None or record.settings.method == "prune-finetune":  # an uncut peer is done before
        counts.add(sum(peer.ratio > 0 for peer in family.peers))
    for epoch in epochs:
        if not len(epoch.top1) == len(epoch.peer_weights) == len(epochs[0].top1) or len(epoch.top1) not in counts:
            damaged = f"{run.metrics('family')} is damaged: epoch {epoch.epoch} is not of {len(family.peers)} peers"
            raise InputError(f"{damaged}; train the run again with --force")
    return TrainedRun(
        root=run.root,
        name=name,
        record=record,
        family=family,
        epochs=epochs,
        baseline_epochs=read_epochs(run, "baseline"),
        test_images=_test_images(run, family),
        bench=read_bench(run) if with_bench and run.bench.exists() else None,
    )


def read_bench(run: Run) -> Bench:
    """The newest bench of a run; `InputError` where it is damaged."""
    return records.read(
        run.bench, Bench, "bench record", f"bench again with 'wmlc bench --run {run.root}{own_code(run)}'"
    )


def _test_images(run: Run, family: Family) -> int | None:
    spec = run.network(1) / "spec.json"
    kept = records.read(spec, NetworkSpec, "network record", "train again").about if spec.exists() else None
    if kept and kept.test_images:
        return kept.test_images
    return family.baseline.test_images if family.baseline else None


def finished_runs(names: Sequence[Path]) -> list[Run]:
    """The finished ones of the runs called `names`; a note says which were left out.

    Where none is finished all come back, for the reader to say so. `InputError` where one is missing or named twice.
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
            note(f"left out {run.root}: not finished; go on with 'wmlc train --resume --out {run.root}{own_code(run)}'")
    return finished or runs


def network_names(run: TrainedRun) -> list[str]:
    """The networks that a colour stands for, in one order on the whole page."""
    own = ["baseline", *(peer_name(peer.peer) for peer in run.family.peers), "ensemble"]
    return list(dict.fromkeys([*own, *(network_of(row.name, row.peer) for row in run.rows)]))


def network_of(name: str, peer: int) -> str:
    """The network that a row or a profile is about, whatever its precision; a foreign file is its own."""
    return peer_name(peer) if name.split(" ")[0] == peer_name(peer) else name


def configuration(run: TrainedRun, apart_from: Collection[str] = ()) -> dict[str, Any]:
    """What makes a run what it is, by setting, without what is unset; `share` as it came out.

    What a run found for itself is not part of it, as it may differ from seed to seed: the rate that `--lr auto` chose,
    the shares that budgets in milliseconds came to, and the steps that cost as much as another method would.
    """
    settings = {**vars(run.settings), "share": run.family.share, "lr_auto": None}
    if settings["share"] == "none":
        settings["join"] = None  # nothing joins
    if run.settings.lr_auto:
        settings |= {"lr": "auto", "finetune_lr": None}
    if settings["max_latency_ms"]:  # what they came to
        settings["ratios"] = None
    if settings["as_long_as"] is not None:
        settings |= {"steps": None, "finetune_epochs": None}
    settings |= run.pixels | {"start_weights": run.start_weights, "baseline_from": TRAINED_ON if run.control else None}
    of_it = [name for name in settings if name in OF_A_CONFIGURATION and name not in apart_from]
    return {name: settings[name] for name in of_it if settings[name] is not None}


def alike(runs: Sequence[TrainedRun], apart_from: Collection[str] = ()) -> dict[str, list[TrainedRun]]:
    """The runs by configuration, under a name each: the method, and what tells apart those of one method.

    In the order in which the configurations first come; the runs of one differ in their seed, and in the settings
    called `apart_from`. Rates are told wherever any two differ, as a method may be ahead by its rate alone.
    """
    groups: list[tuple[dict[str, Any], list[TrainedRun]]] = []
    for run in runs:
        own, count = configuration(run, apart_from), len(run.family.peers)
        mine = next((g for theirs, g in groups if theirs == own and len(g[0].family.peers) == count), None)
        if mine is None:
            groups.append((own, [run]))
        else:
            mine.append(run)
    return {_name(own, [theirs for theirs, _ in groups]): group for own, group in groups}


def _name(mine: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    rivals = [other for other in others if other["method"] == mine["method"]]
    among = {
        "join": [rival for rival in rivals if "join" in rival],  # without shared stages there is none
        "lr": others,
        "start": others,
        "start_weights": others,
    }
    varying = [name for name in mine if any(other.get(name) != mine[name] for other in among.get(name, rivals))]
    told = {name: _shown(mine[name], [other.get(name) for other in others]) for name in varying}
    if "start" in told:
        told["start"] = shortest_end(mine["start"], [other["start"] for other in others if "start" in other])
    return " ".join([mine["method"], *(f"{name}={value}" for name, value in told.items())])


def shortest_end(path: str, others: Sequence[str]) -> str:
    """As little of the end of `path` as no other one ends in."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        if not any(Path(other).parts[-count:] == parts[-count:] for other in others if other != path):
            return str(Path(*parts[-count:]))
    return path


def _shown(value: Any, others: Sequence[Any]) -> str:
    """A setting in a name; numbers in all their digits where six do not tell them from those of the `others`."""
    if not isinstance(value, tuple):
        return str(value)
    short = _listed(value, "g")
    alike = any(isinstance(other, tuple) and other != value and _listed(other, "g") == short for other in others)
    return _listed(value, "") if alike else short


def _listed(values: Sequence[float], form: str) -> str:
    return ",".join(format(value, form).removesuffix(".0") for value in values)
