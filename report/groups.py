"""Runs by configuration for figures, and what their lines are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from wmlc.report.figures import Line
from wmlc.report.runs import TrainedRun, alike

TOLD = ("arch", "start", "data", "train_images", "epochs")  # always; the other facts where runs differ
QUIET = ("arch_args", "start_classes", "skip_broken")
UNSET = "none"

Groups = dict[str, list[TrainedRun]]


def differences(runs: Sequence[TrainedRun]) -> list[str]:
    """In which of data, training images, network, its start, epochs, and of what these depend on, the runs differ."""
    facts = [facts_of(run) for run in runs]
    return [name for name in facts[0] if len({its[name] for its in facts}) > 1]


def facts_of(run: TrainedRun) -> dict[str, str]:
    """What runs of one figure should have in common, by setting; `UNSET` for what is not set."""
    data, epochs = run.family.data, str(run.family.epochs)
    network = {"arch": run.family.arch, "start": run.start_name}
    told = network | {"data": run.data_name, "train_images": f"{data.train:,}", "epochs": epochs}
    quiet = {name: vars(run.settings)[name] for name in QUIET} | run.pixels | {"start_weights": run.start_weights}
    return told | {name: UNSET if value in (None, "") else str(value) for name, value in quiet.items()}


def labelled(runs: Sequence[TrainedRun], apart_from: Collection[str] = ()) -> Groups:
    """The runs by configuration as `alike` names them; data, network and epochs are told where they differ."""
    differing = differences(runs)
    if "data" in differing:  # the numbers of images then differ too, and tell no more
        differing = [name for name in differing if name != "train_images"]
    groups: Groups = {}
    for label, group in alike(runs, (*apart_from, "baseline_from")).items():  # whose levels tell baselines apart
        for run in group:
            facts = facts_of(run)
            more = [f"{name}={facts[name]}" for name in differing if f" {name}=" not in label]
            groups.setdefault(" ".join([label, *more]), []).append(run)
    return groups


def gather(
    groups: Groups, draw: Callable[[str, list[TrainedRun]], list[Line] | str]
) -> tuple[list[Line], list[TrainedRun], dict[str, list[str]]]:
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
