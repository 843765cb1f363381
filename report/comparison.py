"""What finished runs say beside each other: comparable runs in one table, seeds of a configuration as one row.

All accuracies are top-1 in percent on the test set; drops are points below the baseline, paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from wmlc.errors import InputError
from wmlc.files import read_json
from wmlc.report.trained import Trained, alike, configuration
from wmlc.run import Run

Number = float | None

# What a baseline is made of, the seed apart (and the data and the network): runs that differ here have another one.
TRAINING = {
    "epochs": "epochs", "batch size": "batch_size", "lr": "lr", "momentum": "momentum", "nesterov": "nesterov",
    "weight decay": "weight_decay", "schedule": "schedule", "warm-up epochs": "warmup_epochs", "clip": "clip",
}  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """A number a run: their mean, their standard deviation (n − 1; None for fewer than two), how many are known."""

    mean: Number
    sd: Number
    n: int
    values: list[Number]  # in the order of the row's seeds


@dataclass(frozen=True)
class Peer:
    """One peer of a configuration, over its seeds."""

    peer: int
    ratio: float  # asked for
    achieved_ratio: Spread
    params: Spread
    macs: Spread
    flops_drop: Spread  # percent below the unpruned network's
    top1: Spread
    top1_drop: Spread


@dataclass(frozen=True)
class Row:
    """One configuration, over its seeds."""

    name: str
    method: str
    settings: dict[str, Any]  # all that makes it what it is, as `configuration` has them
    runs: list[str]
    seeds: list[int]
    baseline: Spread
    peers: list[Peer]
    mean: Spread  # over the peers
    ensemble: Spread
    average_ensemble: Spread  # of equal weights
    flops_drop: Spread  # mean over the peers
    top1_drop: Spread  # of the mean over the peers
    seconds: Spread  # training of all peers, the baseline apart

    @property
    def n(self) -> int:
        """How many runs there are of it."""
        return len(self.runs)


@dataclass(frozen=True)
class Comparable:
    """Runs that may stand in one table."""

    settings: dict[str, Any]  # what they have in common, by the words for it
    filters: int | None  # of the unpruned network's stem
    rows: list[Row]
    runs: list[Trained]


def comparable(runs: Sequence[Trained]) -> list[Comparable]:
    """The runs by what makes them comparable (data, network, epochs, baseline), in the order in which they come."""
    sets: list[tuple[dict[str, Any], list[Trained]]] = []
    for run in runs:
        settings = common_settings(run)
        mine = next((members for theirs, members in sets if theirs == settings), None)
        if mine is None:
            sets.append((settings, [run]))
        else:
            mine.append(run)
    return [Comparable(settings, _filters(members), _rows(members), members) for settings, members in sets]


def common_settings(run: Trained) -> dict[str, Any]:
    """What must agree for a run to stand beside another, by the words for it; None for what its record lacks."""
    data, settings = run.family.get("data") or {}, run.settings
    names, shape = data.get("class_names") or [], data.get("input_shape") or []
    return {
        "network": run.family.get("arch", settings.get("arch")),
        "data": data.get("name", settings.get("data")),
        "classes": f"{len(names)} ({names[0]} … {names[-1]})" if names else None,
        "image size": "×".join(str(side) for side in shape[1:]) or None,
        "training images": data.get("train"),
        "held-out images": data.get("held_out"),
        "test images": test_images(run),
        **{words: settings.get(name) for words, name in TRAINING.items()},
    }


def test_images(run: Trained) -> int | None:
    """How many images the run's accuracies were measured on; None where that was not recorded."""
    spec = Run(run.root).network(1) / "spec.json"
    record = read_json(spec, "network's record", "train again") if spec.is_file() else {}
    found = (record.get("about") or run.family.get("baseline") or {}).get("test_images")
    return None if found is None else int(found)


def own_baseline(run: Trained) -> Number:
    """The top-1 of the baseline in the run's own record."""
    baseline = run.family.get("baseline")
    return None if baseline is None else float(baseline["top1"])


def baseline_top1(run: Trained, among: Sequence[Trained]) -> Number:
    """The run's own baseline, or that of its seed in a comparable run where there is exactly one."""
    own = own_baseline(run)
    if own is not None:
        return own
    seed = run.settings.get("seed")
    others = {own_baseline(other) for other in among if other.settings.get("seed") == seed} - {None}
    return others.pop() if len(others) == 1 else None


def spread(values: Sequence[Number]) -> Spread:
    """Mean and standard deviation of what is known among `values`."""
    known = [value for value in values if value is not None]
    return Spread(
        fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known), list(values)
    )  # fmt: skip


def less(high: Sequence[Number], low: Sequence[Number]) -> list[Number]:
    """High less low, pair by pair; None where either is."""
    return [None if a is None or b is None else a - b for a, b in zip(high, low, strict=True)]


def _rows(members: Sequence[Trained]) -> list[Row]:
    return [_row(name, group, members) for name, group in alike(members).items()]


def _row(name: str, group: Sequence[Trained], among: Sequence[Trained]) -> Row:
    baselines = [baseline_top1(run, among) for run in group]
    means = [fmean(peer["top1"] for peer in run.family["peers"]) for run in group]
    cuts = [fmean(_flops_drop(run, peer) for peer in run.family["peers"]) for run in group]
    return Row(
        name=name,
        method=str(group[0].settings["method"]),
        settings=configuration(group[0]),
        runs=[str(run.root) for run in group],
        seeds=[int(run.settings.get("seed", 0)) for run in group],
        baseline=spread(baselines),
        peers=[_peer(index, group, baselines) for index in range(len(group[0].family["peers"]))],
        mean=spread(means),
        ensemble=spread([run.family.get("ensemble_top1") for run in group]),
        average_ensemble=spread([run.family.get("average_ensemble_top1") for run in group]),
        flops_drop=spread(cuts),
        top1_drop=spread(less(baselines, means)),
        seconds=spread([run.family.get("seconds") for run in group]),
    )


def _peer(index: int, group: Sequence[Trained], baselines: Sequence[Number]) -> Peer:
    peers = [run.family["peers"][index] for run in group]
    top1 = [float(peer["top1"]) for peer in peers]
    return Peer(
        peer=peers[0]["peer"],
        ratio=peers[0]["ratio"],
        achieved_ratio=spread([peer["achieved_ratio"] for peer in peers]),
        params=spread([peer["params"] for peer in peers]),
        macs=spread([peer["macs"] for peer in peers]),
        flops_drop=spread([_flops_drop(run, peer) for run, peer in zip(group, peers, strict=True)]),
        top1=spread(top1),
        top1_drop=spread(less(baselines, top1)),
    )


def _flops_drop(run: Trained, peer: dict[str, Any]) -> float:
    full = (run.family.get("full") or {}).get("macs")
    if not full:
        raise InputError(f"{Run(run.root).family} is damaged: it has no MACs of the unpruned network; train again")
    return 100 * (1 - float(peer["macs"]) / float(full))


def _filters(members: Sequence[Trained]) -> int | None:
    """The stem's channels where a peer kept all of them; None where none did, or no record says."""
    for run in members:
        for peer in run.family["peers"]:
            stem = (peer.get("stage_channels") or {}).get("stem")
            if stem and peer["achieved_ratio"] == 0:
                return int(stem[0])
    return None
