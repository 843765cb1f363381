"""`wmlc plot`: the paper's figures from any finished runs, as pictures with the numbers drawn beside them.

Runs of one configuration are averaged, and their spread is ± one standard deviation (n − 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from wmlc.console import note, say
from wmlc.errors import InputError
from wmlc.files import check_writable, new_file, refuse_existing, write_json
from wmlc.records import Epoch, Peer
from wmlc.report.charts import Spec
from wmlc.report.figures import Figure, Line, MeanPoint, figure_spec, render
from wmlc.report.groups import TOLD, Groups, differences, facts_of, gather, labelled
from wmlc.report.runs import RANDOM, TrainedRun, finished_runs, read_runs
from wmlc.report.sizes import TEST, accuracy_over_latency, accuracy_over_macs, accuracy_over_ratio
from wmlc.run import provenance
from wmlc.stats import spread

HELD_OUT = "top-1 on held-out images, %"
NO_EPOCHS, FIXED = "no epochs in metrics.jsonl", "peer weights equal throughout"


def plot_runs(names: Sequence[Path], out: Path, which: tuple[str, ...], force: bool) -> None:
    """Write NAME.svg, NAME.png and NAME.json into the directory `out` for each figure in `which` (empty: all).

    A figure that the runs can't feed is left out, with a line that says why. `InputError` for runs that are missing or
    unfinished, unknown figures, files that exist (unless `force`), and where nothing can be drawn.
    """
    wanted = _wanted(which)
    if not names:
        raise InputError("no run is named; name one or several, such as runs/NAME ('wmlc list' shows them)")
    runs = read_runs(finished_runs(names), with_bench="accuracy-over-latency" in wanted)
    if differing := differences(runs):
        note(f"the runs differ in {', '.join(differing)}, so figures with several of them compare more than methods")
    figures = {name: FIGURES[name](runs) for name in wanted}
    for name, figure in figures.items():
        if reasons := "; ".join(f"{why} ({', '.join(who)})" for why, who in figure.left_out.items()):
            note(f"{name}: left out: {reasons}" if figure.lines else f"{name}: not drawn: {reasons}")
    drawn = {name: figure for name, figure in figures.items() if figure.lines}
    if not drawn:
        raise InputError(
            f"nothing of {', '.join(wanted)} can be drawn from these runs; name other runs or another figure"
        )
    for name in drawn:
        for suffix in ("svg", "png", "json"):
            refuse_existing(out / f"{name}.{suffix}", force)
    check_writable(out / "figures")
    groups = {name: _groups(figure, runs) for name, figure in drawn.items()}
    pictures = {name: render(spec_of(figure, runs)) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        for suffix, picture in zip(("svg", "png"), pictures[name], strict=True):
            with new_file(out / f"{name}.{suffix}") as aside:
                aside.write_bytes(picture)
        write_json(out / f"{name}.json", _record(name, figure, groups[name]))
        say(f"wrote {out / name}.svg, .png and .json")


def spec_of(figure: Figure, runs: Sequence[TrainedRun]) -> Spec:
    """A figure with its small print, its configurations named among all `runs`."""
    return figure_spec(figure, _subtitle(figure, _groups(figure, runs)))


def _wanted(which: Iterable[str]) -> list[str]:
    """The figures asked for, each once."""
    for name in which:
        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"unknown figure {name!r}; {hint}allowed are {', '.join(FIGURES)}")
    return list(dict.fromkeys(which)) or list(FIGURES)


def _groups(figure: Figure, runs: Sequence[TrainedRun]) -> Groups:
    """The runs that a figure draws, by their configurations among all `runs`."""
    groups = {label: [run for run in group if run in figure.runs] for label, group in labelled(runs).items()}
    return {label: group for label, group in groups.items() if group}


def _subtitle(figure: Figure, groups: Groups) -> list[str]:
    """What the runs of a figure were trained on, how many there are of each configuration, and what a spread is."""
    facts, differing = facts_of(figure.runs[0]), differences(figure.runs)
    words = {"train_images": "{} training images", "epochs": "{} epochs", "start": "from {}"}
    told = [
        words.get(name, "{}").format(value)
        for name, value in facts.items()
        if name in TOLD and name not in differing and value != RANDOM
    ]
    training = [", ".join(told)] if told else []
    if differing:
        training.append(f"the runs differ in {', '.join(differing)}")
    counts: dict[str, list[str]] = {}
    for label, runs in groups.items():
        counts.setdefault(_seeds(runs), []).append(label)
    several = len(counts) > 1
    seeds = "; ".join(f"{', '.join(labels)}: {count}" if several else count for count, labels in counts.items())
    if not several and len(groups) > 1:
        seeds += " each"
    if any(point.y.sd is not None for line in figure.lines for point in line.points):
        seeds += f"; {'bands' if figure.over == 'epochs' else 'bars'}: ± 1 standard deviation over seeds"
    levels = ["; ".join(level.words for level in figure.levels)] if len(figure.levels) > 1 else []
    aside = ["points that would lie on one another are drawn side by side"] if figure.side_by_side else []
    return ["; ".join(training), seeds, *levels, "; ".join([*figure.remarks, *aside])]


def _seeds(runs: Sequence[TrainedRun]) -> str:
    """n = 3 (seeds 0, 1, 2); a seed that was trained twice stands there twice."""
    seeds = sorted(run.seed for run in runs)
    return f"n = {len(seeds)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _record(name: str, figure: Figure, groups: Groups) -> dict[str, Any]:
    """The numbers of a figure, as its JSON file holds them."""
    return {
        "figure": name,
        "title": figure.title,
        "x": figure.x,
        "y": figure.y,
        "lines": [
            {"configuration": line.configuration, "name": line.name, "panel": line.panel or None}
            | {"points": [_point_record(point) for point in line.points]}
            for line in figure.lines
        ],
        "levels": [{"name": level.name, **asdict(level.y)} for level in figure.levels],
        "left_out": figure.left_out,
        "runs_differ_in": differences(figure.runs),
        "runs": [
            {
                "run": str(run.root),
                "configuration": label,
                "seed": run.seed,
                "seconds": run.family.seconds,
                "training_macs": run.family.training_macs,
                "cost_epochs": run.cost,
            }
            for label, runs in groups.items()
            for run in runs
        ],
        "environment": vars(provenance()),
    }


def _point_record(point: MeanPoint) -> dict[str, Any]:
    peer = {} if point.peer is None else {"peer": point.peer}
    return {**peer, "x": point.x, **asdict(point.y)}


def over_epochs(runs: Sequence[TrainedRun], value: Callable[[Epoch], float], first: int = 0) -> list[MeanPoint]:
    """A point an epoch, from the runs that have that epoch; `first` epochs came before."""
    found: dict[int, list[float | None]] = {}
    for run in runs:
        for epoch in run.epochs:
            found.setdefault(epoch.epoch, []).append(value(epoch))
    return [MeanPoint(first + epoch, spread(values)) for epoch, values in sorted(found.items())]


def fixed_weights(runs: Sequence[TrainedRun]) -> bool:
    """Whether all peers weighed the same in every epoch."""
    spans = (max(epoch.peer_weights) - min(epoch.peer_weights) for run in runs for epoch in run.epochs)
    return all(span < 1e-9 for span in spans)


def ensembles(runs: Sequence[TrainedRun]) -> Figure:
    """Figure 5: the ω-weighted ensemble (ONE's gated one) against the plain average of the peers, where they differ."""

    def draw(label: str, group: list[TrainedRun]) -> list[Line] | str:
        if not any(run.epochs for run in group):
            return NO_EPOCHS
        if len(group[0].family.peers) < 2:
            return "one peer is no ensemble"
        weighted = over_epochs(group, lambda epoch: epoch.ensemble_top1)
        average = over_epochs(group, lambda epoch: epoch.average_ensemble_top1)
        if fixed_weights(group) and weighted == average:
            return FIXED
        return [Line(label, "weighted ensemble", weighted), Line(label, "average ensemble", average)]

    title = "Weighted and average ensemble of the peers"
    return Figure(title, "epoch", HELD_OUT, *gather(labelled(runs), draw), panels=True)


def accuracy_over_epochs(runs: Sequence[TrainedRun]) -> Figure:
    """The mean top-1 over the peers that are trained; names tell where these are the cut ones alone.

    The epochs of `prune-finetune` follow the baseline's.
    """

    def draw(label: str, group: list[TrainedRun]) -> list[Line] | str:
        cut = group[0].settings.method == "prune-finetune" and group[0].settings.start is None
        points = over_epochs(group, lambda epoch: fmean(epoch.top1), first=group[0].family.epochs if cut else 0)
        trained = {len(run.trained_peers) for run in group if run.epochs}
        fewer = trained != {len(group[0].family.peers)}  # an uncut peer that is the start is not trained
        name = f"{label} (cut peers, after the baseline)" if cut else f"{label} (cut peers)" if fewer else label
        return [Line(label, name, points)] if points else NO_EPOCHS

    return Figure("Top-1, mean over the peers", "epoch", HELD_OUT, *gather(labelled(runs), draw))


def weights(runs: Sequence[TrainedRun]) -> Figure:
    """Figures 6 and 7: the trace of ω, from configurations in which it moves."""
    moving = [run.family.peers for run in runs if not fixed_weights([run])]
    alike_cut = len({tuple(peer.ratio for peer in peers) for peers in moving}) == 1

    def name(peer: Peer) -> str:
        return f"peer {peer.peer}" + (f" (ratio {peer.ratio:g})" if alike_cut else "")

    def weight_of(k: int) -> Callable[[Epoch], float]:
        return lambda epoch: epoch.peer_weights[k]

    def draw(label: str, group: list[TrainedRun]) -> list[Line] | str:
        if fixed_weights(group):
            return FIXED if any(run.epochs for run in group) else NO_EPOCHS
        peers = min((run.trained_peers for run in group if run.epochs), key=len)
        return [Line(label, name(peer), over_epochs(group, weight_of(k))) for k, peer in enumerate(peers)]

    return Figure("Peer weights ω", "epoch", "peer weight ω", *gather(labelled(runs), draw), panels=True)


def accuracy_over_eta(runs: Sequence[TrainedRun]) -> Figure:
    """Figure 7: top-1 against η, from runs that differ in nothing but η and the seed."""

    def draw(label: str, group: list[TrainedRun]) -> list[Line] | str:
        if any(run.epochs for run in group) and fixed_weights(group):
            return FIXED
        etas = sorted({run.settings.weight_lr or 0.0 for run in group} - {0.0})  # which a log axis doesn't have
        if len(etas) < 2:
            return "one η above 0"
        same = {eta: [run.family for run in group if run.settings.weight_lr == eta] for eta in etas}
        whole = [MeanPoint(eta, spread([one.ensemble_top1 for one in its])) for eta, its in same.items()]
        mean = [MeanPoint(eta, spread([fmean(p.top1 for p in one.peers) for one in its])) for eta, its in same.items()]
        return [Line(label, "weighted ensemble", whole), Line(label, "mean over the peers", mean)]

    lines, used, left_out = gather(labelled(runs, apart_from=("weight_lr",)), draw)
    if zero := [str(run.root) for run in used if not run.settings.weight_lr]:
        left_out["η is 0, which a log axis doesn't have"] = zero
    drawn = [run for run in runs if run in used and run.settings.weight_lr]
    title, x = "Top-1 over η, the step of the peer weights", "η, log scale"
    return Figure(title, x, TEST, lines, drawn, left_out, over="eta", panels=True)


FIGURES: dict[str, Callable[[Sequence[TrainedRun]], Figure]] = {
    "ensembles": ensembles,
    "accuracy-over-epochs": accuracy_over_epochs,
    "accuracy-over-ratio": accuracy_over_ratio,
    "accuracy-over-macs": accuracy_over_macs,
    "accuracy-over-latency": accuracy_over_latency,
    "accuracy-over-eta": accuracy_over_eta,
    "weights": weights,
}
