"""`wmlc plot`: the paper's figures from any finished runs, as pictures with the numbers drawn beside them.

Runs of one configuration are averaged, and their spread is ± one standard deviation (n − 1).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from wmlc.console import note, say
from wmlc.errors import InputError
from wmlc.files import check_writable, new_file, refuse_existing, write_json
from wmlc.report.comparison import spread
from wmlc.report.pictures import Figure, Line, figure_spec, level_text, render
from wmlc.report.trained import Trained, alike, read_trained
from wmlc.run import provenance
from wmlc.settings import names_of

Groups = dict[str, list[Trained]]
Point = dict[str, Any]

HELD_OUT, TEST = "top-1 on held-out images, %", "top-1 on test images, %"
NO_EPOCHS, FIXED = "no epochs in metrics.jsonl", "peer weights equal throughout"


def plot_runs(names: Sequence[Path], out: Path, which: tuple[str, ...], force: bool) -> None:
    """Write NAME.svg, NAME.png and NAME.json into the directory `out` for each figure in `which` (empty: all).

    A figure that the runs can't feed is left out, with a line that says why. `InputError` for runs that are missing or
    unfinished, unknown figures, files that exist (unless `force`), and where nothing can be drawn.
    """
    wanted = _wanted(which)
    if not names:
        raise InputError("no run is named; name one or several, such as runs/NAME ('wmlc list' shows them)")
    runs = read_trained(names)
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
    pictures = {name: render(figure_spec(figure, _subtitle(figure, groups[name]))) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        for suffix, picture in zip(("svg", "png"), pictures[name], strict=True):
            with new_file(out / f"{name}.{suffix}") as aside:
                aside.write_bytes(picture)
        write_json(out / f"{name}.json", _record(name, figure, groups[name]))
        say(f"wrote {out / name}.svg, .png and .json")


def _wanted(which: Iterable[str]) -> list[str]:
    """The figures asked for, each once."""
    for name in which:
        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"unknown figure {name!r}; {hint}allowed are {', '.join(FIGURES)}")
    return list(dict.fromkeys(which)) or list(FIGURES)


def differences(runs: Sequence[Trained]) -> list[str]:
    """In which of data, training images, network and epochs the runs differ."""
    facts = [_facts(run) for run in runs]
    return [name for name in facts[0] if len({its[name] for its in facts}) > 1]


def _facts(run: Trained) -> dict[str, str]:
    data = run.family["data"]
    name = data["name"] if data["name"] != "imagefolder" else f"imagefolder of {len(data['class_names'])} classes"
    epochs = str(run.family["epochs"])
    return {"arch": run.family["arch"], "data": name, "train_images": f"{data['train']:,}", "epochs": epochs}


def labelled(runs: Sequence[Trained]) -> Groups:
    """The runs by configuration as `alike` names them; data, network and epochs are told where they differ."""
    differing = differences(runs)
    if "data" in differing:  # the numbers of images then differ too, and tell no more
        differing = [name for name in differing if name != "train_images"]
    groups: Groups = {}
    for label, group in alike(runs).items():
        for run in group:
            facts = _facts(run)
            more = [f"{name}={facts[name]}" for name in differing if f" {name}=" not in label]
            groups.setdefault(" ".join([label, *more]), []).append(run)
    return groups


def _groups(figure: Figure, runs: Sequence[Trained]) -> Groups:
    """The runs that a figure draws, by their configurations among all `runs`."""
    groups = {label: [run for run in group if run in figure.runs] for label, group in labelled(runs).items()}
    return {label: group for label, group in groups.items() if group}


def _subtitle(figure: Figure, groups: Groups) -> list[str]:
    """What the runs of a figure were trained on, how many there are of each configuration, and what a spread is."""
    facts, differing = _facts(figure.runs[0]), differences(figure.runs)
    words = {"train_images": "{} training images", "epochs": "{} epochs"}
    told = [words.get(name, "{}").format(value) for name, value in facts.items() if name not in differing]
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
    if any(point["sd"] is not None for line in figure.lines for point in line.points):
        seeds += f"; {'bands' if figure.over == 'epochs' else 'bars'}: ± 1 standard deviation over seeds"
    levels = ["; ".join(map(level_text, figure.levels))] if len(figure.levels) > 1 else []
    return ["; ".join(training), seeds, *levels]


def _seeds(runs: Sequence[Trained]) -> str:
    """n = 3 (seeds 0, 1, 2); a seed that was trained twice stands there twice."""
    seeds = sorted(run.settings["seed"] for run in runs)
    return f"n = {len(seeds)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _record(name: str, figure: Figure, groups: Groups) -> dict[str, Any]:
    """The numbers of a figure, as its JSON file holds them."""
    return {
        "figure": name,
        "title": figure.title,
        "x": figure.x,
        "y": figure.y,
        "lines": [asdict(line) for line in figure.lines],
        "levels": figure.levels,
        "left_out": figure.left_out,
        "runs_differ_in": differences(figure.runs),
        "runs": [
            {"run": str(run.root), "configuration": label, "seed": run.settings["seed"]}
            for label, runs in groups.items()
            for run in runs
        ],
        "environment": vars(provenance()),
    }


def point(x: float, values: Sequence[float]) -> Point:
    """A point of a line: the mean of `values`, and their standard deviation where there are several."""
    return {"x": x, **asdict(spread(values))}


def over_epochs(runs: Sequence[Trained], value: Callable[[Mapping[str, Any]], float]) -> list[Point]:
    """A point an epoch, from the runs that have that epoch."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for record in run.epochs:
            found.setdefault(record["epoch"], []).append(value(record))
    return [point(epoch, values) for epoch, values in sorted(found.items())]


def fixed_weights(runs: Sequence[Trained]) -> bool:
    """Whether all peers weighed the same in every epoch."""
    spans = (max(record["peer_weights"]) - min(record["peer_weights"]) for run in runs for record in run.epochs)
    return all(span < 1e-9 for span in spans)


def gather(
    groups: Groups, draw: Callable[[str, list[Trained]], list[Line] | str]
) -> tuple[list[Line], list[Trained], dict[str, list[str]]]:
    """The lines that `draw` makes of each group, and the runs they are from; the groups left out, by its reason."""
    lines, runs, left_out = [], [], dict[str, list[str]]()
    for label, group in groups.items():
        drawn = draw(label, group)
        if isinstance(drawn, str):
            left_out.setdefault(drawn, []).append(label)
        else:
            lines += drawn
            runs += group
    return lines, runs, left_out


def ensembles(runs: Sequence[Trained]) -> Figure:
    """Figure 5: the ω-weighted ensemble (ONE's gated one) against the plain average of the peers, where they differ."""

    def draw(label: str, group: list[Trained]) -> list[Line] | str:
        records = [record for run in group for record in run.epochs]
        averaged = all("average_ensemble_top1" in record for record in records)
        if not records:
            return NO_EPOCHS
        if len(group[0].family["peers"]) < 2:
            return "one peer is no ensemble"
        weighted = over_epochs(group, lambda record: record["ensemble_top1"])
        average = over_epochs(group, lambda record: record["average_ensemble_top1"]) if averaged else weighted
        if fixed_weights(group) and weighted == average:
            return FIXED
        if not averaged:
            return "no average ensemble in metrics.jsonl, as older runs lack it"
        return [Line(label, "weighted ensemble", weighted), Line(label, "average ensemble", average)]

    title = "Weighted and average ensemble of the peers"
    return Figure(title, "epoch", HELD_OUT, *gather(labelled(runs), draw), panels=True)


def accuracy_over_epochs(runs: Sequence[Trained]) -> Figure:
    """The mean top-1 over the peers; `prune-finetune`'s are its cut ones, whose epochs follow the baseline's."""

    def draw(label: str, group: list[Trained]) -> list[Line] | str:
        points = over_epochs(group, lambda record: fmean(record["top1"]))
        if group[0].settings["method"] == "prune-finetune":
            before = group[0].family["epochs"]
            finetuned = [one | {"x": before + one["x"]} for one in points]
            return [Line(label, f"{label} (cut peers, after the baseline)", finetuned)] if points else NO_EPOCHS
        return [Line(label, label, points)] if points else NO_EPOCHS

    return Figure("Top-1, mean over the peers", "epoch", HELD_OUT, *gather(labelled(runs), draw))


def weights(runs: Sequence[Trained]) -> Figure:
    """Figures 6 and 7: the trace of ω, from configurations in which it moves."""
    moving = [run.family["peers"] for run in runs if not fixed_weights([run])]
    alike_cut = len({tuple(peer["ratio"] for peer in peers) for peers in moving}) == 1

    def name(peer: Mapping[str, Any]) -> str:
        return f"peer {peer['peer']}" + (f" (ratio {peer['ratio']:g})" if alike_cut else "")

    def draw(label: str, group: list[Trained]) -> list[Line] | str:
        if fixed_weights(group):
            return FIXED if any(run.epochs for run in group) else NO_EPOCHS
        return [
            Line(label, name(peer), over_epochs(group, functools.partial(_weight, k)))
            for k, peer in enumerate(group[0].family["peers"])
        ]

    return Figure("Peer weights ω", "epoch", "peer weight ω", *gather(labelled(runs), draw), panels=True)


def _weight(k: int, record: Mapping[str, Any]) -> float:
    return float(record["peer_weights"][k])


def accuracy_over_ratio(runs: Sequence[Trained]) -> Figure:
    """Figure 6: each peer's top-1 over the share of its parameters or MACs that was cut."""
    kinds = sorted({run.family["ratio_of"] for run in runs})
    what = " or ".join({"macs": "MACs", "params": "parameters"}[kind] for kind in kinds)
    title, x = "Top-1 of each peer over its ratio", f"ratio of {what} cut, as achieved"
    return Figure(title, x, TEST, *_over_size(runs, "achieved_ratio"), levels=baselines(runs), over="ratio")


def accuracy_over_macs(runs: Sequence[Trained]) -> Figure:
    """Each peer's top-1 over what it computes: peers of one ratio need not be of one speed."""
    title = "Top-1 of each peer over its MACs"
    return Figure(title, "MACs an image", TEST, *_over_size(runs, "macs"), levels=baselines(runs), over="macs")


def _over_size(runs: Sequence[Trained], size: str) -> tuple[list[Line], list[Trained], dict[str, list[str]]]:
    def draw(label: str, group: list[Trained]) -> list[Line] | str:
        points = []
        for same in zip(*(run.family["peers"] for run in group), strict=True):
            place = fmean(peer[size] for peer in same)
            points.append({"peer": same[0]["peer"], **point(place, [peer["top1"] for peer in same])})
        return [Line(label, label, points)]

    return gather(labelled(runs), draw)


def baselines(runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """The baselines' top-1, one level for those trained alike; one that several runs have in common counts once."""
    found: dict[tuple[tuple[str, str], ...], dict[tuple[Any, ...], float]] = {}
    for run in runs:
        if baseline := run.family.get("baseline"):
            settings = {name: str(run.settings.get(name)) for name in names_of("data", "network", "training")} | _facts(
                run
            )
            which = tuple(baseline.get(name) for name in ("seed", "top1", "best_epoch"))
            found.setdefault(tuple(settings.items()), {})[which] = baseline["top1"]
    common = set.intersection(*map(set, found)) if found else set()
    levels = []
    for its, each in found.items():
        name = " ".join(["baseline", *(f"{key}={value}" for key, value in its if (key, value) not in common)])
        levels.append({"name": name} | {key: value for key, value in point(0, [*each.values()]).items() if key != "x"})
    return levels


def accuracy_over_eta(runs: Sequence[Trained]) -> Figure:
    """Figure 7: top-1 against η, from runs that differ in nothing but η and the seed."""
    etas = {run.root: float(run.settings["weight_lr"]) for run in runs}
    without = [replace(r, settings={k: v for k, v in r.settings.items() if k != "weight_lr"}) for r in runs]

    def draw(label: str, group: list[Trained]) -> list[Line] | str:
        if any(run.epochs for run in group) and fixed_weights(group):
            return FIXED
        different = sorted({etas[run.root] for run in group} - {0.0})  # which a log axis doesn't have
        if len(different) < 2:
            return "one η above 0"
        same = {eta: [run.family for run in group if etas[run.root] == eta] for eta in different}
        whole = [point(eta, [one["ensemble_top1"] for one in its]) for eta, its in same.items()]
        mean = [point(eta, [fmean(p["top1"] for p in one["peers"]) for one in its]) for eta, its in same.items()]
        return [Line(label, "weighted ensemble", whole), Line(label, "mean over the peers", mean)]

    lines, used, left_out = gather(labelled(without), draw)
    roots = {run.root for run in used}
    if zero := [str(run.root) for run in used if not etas[run.root]]:
        left_out["η is 0, which a log axis doesn't have"] = zero
    drawn = [run for run in runs if run.root in roots and etas[run.root]]
    title, x = "Top-1 over η, the step of the peer weights", "η, log scale"
    return Figure(title, x, TEST, lines, drawn, left_out, over="eta", panels=True)


FIGURES: dict[str, Callable[[Sequence[Trained]], Figure]] = {
    "ensembles": ensembles,
    "accuracy-over-epochs": accuracy_over_epochs,
    "accuracy-over-ratio": accuracy_over_ratio,
    "accuracy-over-macs": accuracy_over_macs,
    "accuracy-over-eta": accuracy_over_eta,
    "weights": weights,
}
