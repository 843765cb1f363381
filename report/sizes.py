"""Figures of each peer's top-1 over what it takes: ratio, MACs, measured latency."""

from __future__ import annotations

def accuracy_over_ratio(runs: Sequence[TrainedRun]) -> Figure:
    """Figure 6: each peer's top-1 over the share of its parameters or MACs that was cut."""
    kinds = sorted({run.family.ratio_of for run in runs})
    what = " or ".join({"macs": "MACs", "params": "parameters"}[kind] for kind in kinds)
    title, x = "Top-1 of each peer over its ratio", f"ratio of {what} cut, as achieved"
    return Figure(
        title, x, TEST, *_over_size(runs, lambda peer: peer.achieved_ratio), levels=baselines(runs), over="ratio"
    )


def accuracy_over_macs(runs: Sequence[TrainedRun]) -> Figure:
    """Each peer's top-1 over what it computes: peers of one ratio need not be of one speed."""
    title = "Top-1 of each peer over its MACs"
    return Figure(
        title, "MACs an image", TEST, *_over_size(runs, lambda peer: peer.macs), levels=baselines(runs), over="macs"
    )


def _over_size(
    runs: Sequence[TrainedRun], size: Callable[[Peer], float]
) -> tuple[list[Line], list[TrainedRun], dict[str, list[str]]]:
    def draw(label: str, group: list[TrainedRun]) -> list[Line] | str:
        points = [
            MeanPoint(fmean(map(size, peers)), spread([peer.top1 for peer in peers]), peers[0].peer)
            for peers in zip(*(run.family.peers for run in group), strict=True)
        ]
        return [Line(label, label, points)]

    return gather(labelled(runs), draw)


def baselines(runs: Sequence[TrainedRun]) -> list[Level]:
    """The baselines' top-1, one level for those trained alike; one that several runs have in common counts once."""
    found: dict[tuple[tuple[str, str], ...], dict[tuple[int, float, int], float]] = {}
    for run in runs:
        if baseline := run.family.baseline:
            its = {name: str(vars(run.settings)[name]) for name in names_of("data", "network", "training")}
            which = (baseline.seed, baseline.top1, baseline.best_epoch)
            found.setdefault(tuple((its | _facts(run)).items()), {})[which] = baseline.top1
    common = set.intersection(*map(set, found)) if found else set()
    levels = []
    for its_facts, each in found.items():
        apart = [f"{key}={value}" for key, value in its_facts if (key, value) not in common]
        levels.append(Level(" ".join(["baseline", *apart]), spread([*each.values()])))
    return levels
