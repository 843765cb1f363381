"""Figures of each peer's top-1 over what it takes: ratio, MACs, measured latency."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from statistics import fmean, median

from wmlc.records import Peer, Row
from wmlc.report.cells import cell_of
from wmlc.report.cost import amount_text
from wmlc.report.figures import Figure, Level, Line, MeanPoint
from wmlc.report.groups import facts_of, gather, labelled
from wmlc.report.runs import TrainedRun, network_of
from wmlc.run import BASELINE, peer_name
from wmlc.settings import names_of
from wmlc.stats import Spread, spread

TEST = "top-1 on test images, %"
COST = "cost: MACs of training all peers, in epochs of the unpruned network"


def accuracy_over_ratio(runs: Sequence[TrainedRun]) -> Figure:
    """Figure 6: each peer's top-1 over the share of its parameters or MACs that was cut."""
    kinds = sorted({run.family.ratio_of for run in runs})
    what = " or ".join({"macs": "MACs", "params": "parameters"}.get(kind, kind) for kind in kinds)
    drawn = gather(labelled(runs), lambda label, group: [_over_size(label, group, lambda peer: peer.achieved_ratio)])
    title, x = "Top-1 of each peer over its ratio", f"ratio of {what} cut, as achieved"
    return Figure(title, x, TEST, *drawn, levels=baselines(runs), over="ratio")


def accuracy_over_macs(runs: Sequence[TrainedRun]) -> Figure:
    """Each peer's top-1 over what it computes, with what its method's training cost; the baseline as a point."""
    lines, used, left_out = gather(
        labelled(runs), lambda label, group: [_over_size(label, group, lambda peer: peer.macs, told=told_of(group))]
    )
    lines += [
        Line(name, name, [MeanPoint(fmean(run.family.full.macs for run in alike), _top1(alike))], baseline=True)
        for name, alike in _alike_baselines(runs).items()
    ]
    title, x = "Top-1 of each peer over its MACs", "MACs an image"
    return Figure(title, x, TEST, lines, used, left_out, baselines(runs), over="macs", remarks=_remarks(runs))


def _over_size(label: str, group: Sequence[TrainedRun], size: Callable[[Peer], float], told: str = "") -> Line:
    points = [
        MeanPoint(fmean(map(size, peers)), spread([peer.top1 for peer in peers]), peers[0].peer)
        for peers in zip(*(run.family.peers for run in group), strict=True)
    ]
    return Line(label, label, points, told=told)


def told_of(group: Sequence[TrainedRun], counts: Collection[int] = ()) -> str:
    """n = 3, cost 3.20: how many runs there are of a configuration, and what training one took.

    Args: how many of them have each point, where not all need to: n = 1 to 3.
    """
    cost, all_of_them = spread([run.cost for run in group]).mean, [len(group)]
    least, most = min(counts or all_of_them), max(counts or all_of_them)
    n = f"n = {most}" if least == most else f"n = {least} to {most}"
    return n + ("" if cost is None else f", cost {amount_text(cost)}")


def _counts(lines: Sequence[Line]) -> set[int]:
    return {len(point.y.values) for line in lines for point in line.points}


def _remarks(runs: Sequence[TrainedRun]) -> list[str]:
    if all(run.cost is None for run in runs):
        return []
    started = any(run.settings.start is not None for run in runs)
    return [COST + (", that of the start apart" if started else "")]


def baselines(runs: Sequence[TrainedRun]) -> list[Level]:
    """The baselines' top-1, one level for those trained alike; one that several runs have in common counts once."""
    return [Level(name, _top1(alike)) for name, alike in _alike_baselines(runs).items()]


def _alike_baselines(runs: Sequence[TrainedRun]) -> dict[str, list[TrainedRun]]:
    """The runs that have a baseline by how it was trained, under a name each that tells what sets them apart."""
    found: dict[tuple[tuple[str, str], ...], list[TrainedRun]] = {}
    for run in runs:
        if run.family.baseline:
            found.setdefault(tuple((_of_a_baseline(run) | facts_of(run)).items()), []).append(run)
    facts = [dict(its) for its in found]
    names = dict.fromkeys(name for its in facts for name in its)
    telling = [name for name in names if len({its[name] for its in facts if name in its}) > 1]
    return {
        " ".join(["baseline", *(f"{name}={its[name]}" if name else its[name] for name in telling if name in its)]): runs
        for its, runs in zip(facts, found.values(), strict=True)
    }


def _of_a_baseline(run: TrainedRun) -> dict[str, str]:
    """What a run's baseline is, and the settings that it depends on: of a start as it stands not how peers learn."""
    names = names_of("data", "network") if run.as_it_started else names_of("data", "network", "training")
    what = {"": "(the start as it stands)" if run.as_it_started else "(trained)"}
    return what | {name: str(value) for name, value in vars(run.settings).items() if name in names}


def _top1(runs: Sequence[TrainedRun]) -> Spread:
    return _of_each(runs, [run.baseline_top1 for run in runs])


def _of_each(runs: Sequence[TrainedRun], top1: Sequence[float | None]) -> Spread:
    """The spread of the baselines' `top1`, where one that several runs have in common counts once."""
    once: dict[tuple[int, float, int], float | None] = {}
    for run, value in zip(runs, top1, strict=True):
        if baseline := run.family.baseline:
            seed = 0 if run.as_it_started else baseline.seed
            once.setdefault((seed, baseline.top1, baseline.best_epoch), value)
    return spread([*once.values()])


def accuracy_over_latency(runs: Sequence[TrainedRun]) -> Figure:
    """Each peer's top-1 over its measured p50, a panel a cell and precision; the baseline as a point.

    Latency is the median over the runs; accuracy is what the engine gave, as an int8 file has a top-1 of its own.
    """
    lines, used, left_out = list[Line](), list[TrainedRun](), dict[str, list[str]]()
    machines = {_machine(run, row) for run in runs for row in run.rows}
    for label, group in labelled(runs).items():
        benched = [run for run in group if any(_whole(row) for row in run.rows)]
        if len(benched) < len(group):
            who = [str(run.root) for run in group if run not in benched] if benched else [label]
            left_out.setdefault("not benched with top-1; 'wmlc bench --run RUN' does it", []).extend(who)
        drawn = _timed_lines(label, benched, len(machines) > 1)
        lines += [replace(line, told=told_of(benched, _counts(drawn))) for line in drawn]
        used += benched
    for name, alike in _alike_baselines(used).items():
        lines += [replace(line, baseline=True) for line in _timed_lines(name, alike, len(machines) > 1, [BASELINE])]
    title, x = "Top-1 of each peer over its latency", "p50 latency, ms"
    remarks = ["latency: median over runs", *_remarks(used)]
    return Figure(title, x, TEST, lines, used, left_out, over="latency", panels=True, remarks=remarks)


def _timed_lines(
    name: str, group: Sequence[TrainedRun], several_machines: bool, peers: Sequence[int] | None = None
) -> list[Line]:
    """A line a panel through what the runs of a `group` measured of these `peers`, by default all of the family."""
    found: dict[str, list[MeanPoint]] = {}
    for peer in peers or [peer.peer for group_run in group[:1] for peer in group_run.family.peers]:
        timed: dict[str, list[tuple[TrainedRun, float, float | None]]] = {}
        for run in group:
            for row in run.rows:
                if network_of(row.name, row.peer) == peer_name(peer) and _whole(row) and row.latency_ms:
                    machine = f", {_machine(run, row)}" if several_machines else ""
                    panel = f"{cell_of(row).words}, {row.precision}{machine}"
                    timed.setdefault(panel, []).append((run, row.latency_ms.p50, row.top1))
        for panel, each in timed.items():
            top1 = [score for _, _, score in each]
            y = _of_each([run for run, _, _ in each], top1) if peer == BASELINE else spread(top1)
            found.setdefault(panel, []).append(MeanPoint(median(p50 for _, p50, _ in each), y, peer))
    return [Line(name, name, points, panel) for panel, points in found.items()]


def _whole(row: Row) -> bool:
    """Whether both of its coordinates were measured."""
    return row.latency_ms is not None and row.top1 is not None


def _machine(run: TrainedRun, row: Row) -> str:
    """What the row was timed on."""
    environment = run.bench.environment if run.bench else None
    found = environment and (environment.gpu if row.device == "cuda" else environment.cpu)
    return found or "an unknown machine"
