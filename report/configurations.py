"""What finished runs say beside each other: comparable runs in one table, seeds of a configuration as one entry.

All accuracies are top-1 in percent on the test set; drops are points below the baseline, paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from wmlc.records import Peer
from wmlc.report.runs import RANDOM, TrainedRun, alike, configuration
from wmlc.settings import names_of
from wmlc.stats import Spread, spread

OF_A_ROW = ("lr", "lr_auto", "steps")  # where a baseline does not depend on them
IN_NUMBERS = (  # told by what they came to
    "data", "image_size", "train_images", "held_out", "arch", "start", "interpolation", "crop",
)  # fmt: skip
UNRECORDED = ("test images",)  # None for want of a record; what else is None is unset
WORDS = {"warmup_epochs": "warm-up epochs"}  # for a setting, where they are not its name


@dataclass(frozen=True)
class PeerSpread:
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
class Configuration:
    """A method with its settings, over its seeds."""

    name: str
    method: str
    settings: dict[str, Any]  # all that makes it what it is, as `runs.configuration` has them
    runs: list[str]
    seeds: list[int]
    baseline: Spread
    peers: list[PeerSpread]
    mean: Spread  # over the peers
    ensemble: Spread
    average_ensemble: Spread  # of equal weights
    flops_drop: Spread  # mean over the peers
    top1_drop: Spread  # of the mean over the peers
    seconds: Spread  # training of all peers, the baseline apart
    training_macs: Spread  # of what `seconds` are
    cost: Spread  # the same, in epochs of the unpruned network

    @property
    def n(self) -> int:
        """How many runs there are of it."""
        return len(self.runs)


@dataclass(frozen=True)
class Comparable:
    """Runs that may stand in one table."""

    settings: dict[str, Any]  # what they have in common, by the words for it
    filters: int | None  # of the unpruned network's stem
    configurations: list[Configuration]
    runs: list[TrainedRun]


def comparable(runs: Sequence[TrainedRun]) -> list[Comparable]:
    """The runs by what makes them comparable (data, network, epochs, baseline), in the order in which they come."""
    sets: list[tuple[dict[str, Any], list[TrainedRun]]] = []
    for run in runs:
        settings = common_settings(run)
        mine = next((members for theirs, members in sets if theirs == settings), None)
        if mine is None:
            sets.append((settings, [run]))
        else:
            mine.append(run)
    return [
        Comparable(
            settings, _filters(members), [_over_seeds(*named, members) for named in alike(members).items()], members
        )
        for settings, members in sets
    ]


def common_settings(run: TrainedRun) -> dict[str, Any]:
    """What must agree for a run to stand beside another, by the words for it; None for what is unset or `UNRECORDED`.

    All that a baseline depends on is among them, the seed apart. Not the rate and the steps of a run from a trained
    start: its baseline is the start, and each method may be given the rate that suits it.
    """
    data, names, own = run.family.data, run.family.data.class_names, run.settings
    of_a_baseline = names_of("data", "network", "training")
    settings = {name: vars(own)[name] for name in of_a_baseline if name not in (*OF_A_ROW, *IN_NUMBERS)} | run.pixels
    if own.start is None:
        taken = own.steps if own.as_long_as is None else None  # else they follow from what the peers' MACs are
        settings |= {"lr": "auto" if own.lr_auto else own.lr, "steps": taken or "whole epochs"}
    return {
        "network": run.family.arch,
        "start": own.start or RANDOM,
        "start weights": run.start_weights,
        "data": data.name,
        "classes": f"{len(names)} ({names[0]} … {names[-1]})",
        "image size": "×".join(str(side) for side in data.input_shape[1:]),
        "training images": data.train,
        "held-out images": data.held_out,
        "test images": run.test_images,
        **{WORDS.get(name, name.replace("_", " ")): value for name, value in settings.items()},
    }


def baseline_top1(run: TrainedRun, among: Sequence[TrainedRun]) -> float | None:
    """The run's own baseline's, or that of its seed in a comparable run where there is exactly one."""
    if run.baseline_top1 is not None:
        return run.baseline_top1
    others = {other.baseline_top1 for other in among if other.seed == run.seed} - {None}
    return others.pop() if len(others) == 1 else None


def less(high: Sequence[float | None], low: Sequence[float | None]) -> list[float | None]:
    """High less low, pair by pair; None where either is."""
    return [None if a is None or b is None else a - b for a, b in zip(high, low, strict=True)]


def _over_seeds(name: str, group: Sequence[TrainedRun], among: Sequence[TrainedRun]) -> Configuration:
    baselines = [baseline_top1(run, among) for run in group]
    families = [run.family for run in group]
    means = [fmean(peer.top1 for peer in family.peers) for family in families]
    return Configuration(
        name=name,
        method=group[0].settings.method,
        settings=configuration(group[0]),
        runs=[str(run.root) for run in group],
        seeds=[run.seed for run in group],
        baseline=spread(baselines),
        peers=[_peer(index, group, baselines) for index in range(len(families[0].peers))],
        mean=spread(means),
        ensemble=spread([family.ensemble_top1 for family in families]),
        average_ensemble=spread([family.average_ensemble_top1 for family in families]),
        flops_drop=spread([fmean(_flops_drop(run, peer) for peer in run.family.peers) for run in group]),
        top1_drop=spread(less(baselines, means)),
        seconds=spread([family.seconds for family in families]),
        training_macs=spread([family.training_macs for family in families]),
        cost=spread([run.cost for run in group]),
    )


def _peer(index: int, group: Sequence[TrainedRun], baselines: Sequence[float | None]) -> PeerSpread:
    peers = [run.family.peers[index] for run in group]
    top1 = [peer.top1 for peer in peers]
    return PeerSpread(
        peer=peers[0].peer,
        ratio=peers[0].ratio,
        achieved_ratio=spread([peer.achieved_ratio for peer in peers]),
        params=spread([peer.params for peer in peers]),
        macs=spread([peer.macs for peer in peers]),
        flops_drop=spread([_flops_drop(run, peer) for run, peer in zip(group, peers, strict=True)]),
        top1=spread(top1),
        top1_drop=spread(less(baselines, top1)),
    )


def _flops_drop(run: TrainedRun, peer: Peer) -> float:
    return 100 * (1 - peer.macs / run.family.full.macs)


def _filters(members: Sequence[TrainedRun]) -> int | None:
    """The stem's channels where a peer kept all of them; None where none did."""
    for run in members:
        for peer in run.family.peers:
            if peer.achieved_ratio == 0 and (stem := peer.stage_channels.get("stem")):
                return stem[0]
    return None
