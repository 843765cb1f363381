"""What the charts and tables of a page show: networks, points, lines and bars, taken from the records of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wmlc.arch import is_foreign, whole_name
from wmlc.console import digits, ms_text, scaled
from wmlc.layer_pairs import LayerPair, compare
from wmlc.records import Profile, Row, Scenario, Speedup, lost_without
from wmlc.report.cells import Cell, cell_of, profile_cell
from wmlc.report.runs import TrainedRun, network_of
from wmlc.run import BASELINE, peer_name
from wmlc.stats import positive_interval, top1_interval

UNKNOWN = "–"  # on a page
LABELS, START = "labels", "start"  # what a peer learns from, besides other peers

Lines = dict[str, list[tuple[int, float]]]  # by name, (epoch, value)


@dataclass(frozen=True)
class Entry:
    """A network on the page: as a bench measured it in a cell, or, without a `row`, as its training left it."""

    run: str
    name: str
    network: str  # whose colour it has: an int8 file that of its peer
    peer: int
    ratio: float | None
    achieved_ratio: float | None
    params: int
    macs: int | None
    top1: float | None
    top1_drop: float | None
    row: Row | None


@dataclass(frozen=True)
class Point:
    """An entry in a chart: its numbers, and as `…_text` what hovering tells."""

    run: str
    data: str  # what its top-1 was measured on
    network: str
    label: str
    number: str  # that stands beside it
    precision: str
    params: int
    macs: int | None
    p50: float | None
    low: float | None  # end of its 95 % interval
    high: float | None
    top1: float
    top1_low: float | None
    top1_high: float | None
    top1_text: str
    p50_text: str
    speedup_text: str
    params_text: str
    macs_text: str
    pruned_text: str


@dataclass(frozen=True)
class WidthBar:
    """The channels of a stage's layers in one network."""

    stage: str
    who: str
    number: str
    mean: float
    least: int
    most: int
    layers: str


@dataclass(frozen=True)
class GroupBar:
    """What a start's answers lose by about half of a channel group, and what peers keep of it."""

    group: str
    nats: float
    kept: str  # empty where a run did not record it: of parameters and MACs
    without: float | None  # nats that are lost without its residual block, at the block's first group


@dataclass(frozen=True)
class LayerRow:
    """A layer's two times, and in words what stands beside them."""

    layer: str
    op: str
    baseline_ms: float | None
    peer_ms: float | None
    no_faster: bool
    speed: str
    channels: str
    macs: str
    intensity: str


@dataclass(frozen=True)
class ScenarioBar:
    """A number that a network reached in a scenario; None where it reached none."""

    run: str
    who: str
    label: str
    value: float | None
    text: str


def entries(runs: Iterable[TrainedRun]) -> list[Entry]:
    """Every benched row; a run without a bench as its training left it."""
    return [entry for run in runs for entry in _benched(run) or _trained(run)]


def _benched(run: TrainedRun) -> list[Entry]:
    return [
        Entry(
            run=run.name, name=row.name, network=network_of(row.name, row.peer), peer=row.peer, ratio=row.ratio,
            achieved_ratio=row.achieved_ratio, params=row.params, macs=row.macs, top1=row.top1, top1_drop=row.top1_drop,
            row=row,
        )
        for row in run.rows
    ]  # fmt: skip


def _trained(run: TrainedRun) -> list[Entry]:
    baseline = run.family.baseline
    return [
        Entry(
            run=run.name, name=peer_name(network.peer), network=peer_name(network.peer), peer=network.peer,
            ratio=network.ratio, achieved_ratio=network.achieved_ratio, params=network.params, macs=network.macs,
            top1=network.top1, top1_drop=baseline.top1 - network.top1 if baseline else None, row=None,
        )
        for network in [*([baseline] if baseline else []), *run.family.peers]
    ]  # fmt: skip


def point_of(run: TrainedRun, entry: Entry) -> Point:
    """One network with a top-1 as a point."""
    row, top1, drop = entry.row, entry.top1 or 0.0, entry.top1_drop
    p50 = row.latency_ms.p50 if row and row.latency_ms else None
    ends_of_p50 = row.p50_interval if row else None
    interval = positive_interval(p50, ends_of_p50.low, ends_of_p50.high) if p50 and ends_of_p50 else None
    ends = f" [{ms_text(interval[0])}, {ms_text(interval[1])}]" if interval else ""
    images = run.top1_images
    low, high = top1_interval(top1, images) if images else (None, None)
    top1_ends = f" [{low:.1f}, {high:.1f}]" if images else ""
    return Point(
        run=run.name,
        data=run.data_name,
        network=entry.network,
        label=entry.name,
        number=_mark(entry.network),
        precision=row.precision if row else "fp32",
        params=entry.params,
        macs=entry.macs,
        p50=p50,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        top1=top1,
        top1_low=low,
        top1_high=high,
        top1_text=f"{top1:.2f} %{top1_ends}" + ("" if drop is None else f" (drop {drop:.2f})"),
        p50_text="not measured" if p50 is None else f"{ms_text(p50)} ms{ends}",
        speedup_text=interval_text(row.speedup) if row and row.speedup else "not measured",
        params_text=scaled(entry.params),
        macs_text=UNKNOWN if entry.macs is None else scaled(entry.macs),
        pruned_text=UNKNOWN if entry.achieved_ratio is None else f"{entry.achieved_ratio:.1%}",
    )


def _mark(network: str) -> str:
    """What stands at a network's point or bar: b, 1, 2 …; a foreign file's whole name."""
    return "b" if network == "baseline" else network.removeprefix("peer")


def interval_text(speedup: Speedup) -> str:
    """1.12 [1.10, 1.13]."""
    return f"{speedup.median:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


def latency_points(runs: Iterable[TrainedRun], cell: Cell) -> list[Point]:
    """The networks that were timed in `cell` and whose top-1 was measured."""
    return [
        point_of(run, entry)
        for run in runs
        for entry in _benched(run)
        if entry.row and cell_of(entry.row) == cell and entry.row.latency_ms and entry.top1 is not None
    ]


def size_points(runs: Iterable[TrainedRun]) -> list[Point]:
    """Every network with a top-1 once, in its first cell; where no bench measured it, as the training left it.

    Beside a bench's numbers the training's stand only where the baseline's are fp32, as the training's are.
    """
    found = []
    for run in runs:
        known = [entry for entry in _benched(run) if entry.top1 is not None]
        if not known or any(each.row and each.row.precision == "fp32" for each in known if each.peer == BASELINE):
            known += _trained(run)
        first: dict[str, Entry] = {}
        for entry in known:
            if entry.params and entry.macs:
                first.setdefault(entry.name, entry)
        found += [point_of(run, entry) for entry in first.values()]
    return found


def top1_lines(run: TrainedRun) -> Lines:
    """Held-out top-1 over the epochs: the baseline, every peer, the ensemble of several."""
    peers = run.trained_peers
    lines = {"baseline": [(epoch.epoch, epoch.top1[0]) for epoch in run.baseline_epochs]}
    for index, peer in enumerate(peers):
        lines[peer_name(peer.peer)] = [(epoch.epoch, epoch.top1[index]) for epoch in run.epochs]
    if len(peers) > 1:
        lines["ensemble"] = [(epoch.epoch, epoch.ensemble_top1) for epoch in run.epochs]
    return {who: line for who, line in lines.items() if line}


def loss_lines(run: TrainedRun) -> Lines:
    """The training loss over the epochs, of the baseline and of the family, there the mean over peers."""
    phases = {"baseline": run.baseline_epochs, "family": run.epochs}
    lines = {who: [(epoch.epoch, epoch.mean_loss) for epoch in epochs] for who, epochs in phases.items()}
    return {who: line for who, line in lines.items() if line}


def weight_lines(run: TrainedRun) -> Lines:
    """The peer weights ω over the epochs."""
    if not run.epochs:
        return {}
    return {
        peer_name(peer.peer): [(epoch.epoch, epoch.peer_weights[index]) for epoch in run.epochs]
        for index, peer in enumerate(run.trained_peers)
    }


def teaching_lines(run: TrainedRun) -> dict[str, Lines]:
    """Of each peer that learns by weights of its own, the weights of its sources over the epochs."""
    told = [(epoch.epoch, epoch.teaching) for epoch in run.epochs if epoch.teaching]
    peers = [peer_name(peer.peer) for peer in run.trained_peers] if told else []
    taught = bool(told) and len(told[0][1][0]) == 2 + len(peers)  # by a frozen teacher too
    sources = list(enumerate([LABELS, *([START] if taught else []), *peers]))
    return {
        peer: {name: [(epoch, w[student][place]) for epoch, w in told] for place, name in sources if name != peer}
        for student, peer in enumerate(peers)
    }


def width_bars(run: TrainedRun) -> list[WidthBar]:
    """A bar a peer and stage: the mean, the least and the most channels of the stage's layers."""
    return [
        WidthBar(
            stage=stage,
            who=peer_name(peer.peer),
            number=_mark(peer_name(peer.peer)),
            mean=sum(channels) / len(channels),
            least=min(channels),
            most=max(channels),
            layers=", ".join(map(str, channels)),
        )
        for peer in run.family.peers
        for stage, channels in peer.stage_channels.items()
        if channels
    ]


def group_bars(run: TrainedRun) -> list[GroupBar]:
    """A bar a channel group of a run whose widths were chosen by its start's answers, in the network's order."""
    plan = run.family.latency
    losses = plan.sensitivity if plan else run.record.sensitivity
    blocks = lost_without(losses)
    named = whole_name if is_foreign(run.settings.arch) else str
    return [
        GroupBar(
            group=named(own.group),
            nats=own.by_half,
            kept=f"{', '.join(str(peer.counts[own.group]) for peer in plan.peers)} of {own.units[-1]}" if plan else "",
            without=blocks.pop(own.block, None),
        )
        for own in losses
    ]


def profile_pairs(run: TrainedRun) -> list[tuple[str, Profile, Profile]]:
    """(words, the baseline's profile, a network's) for each network profiled in a cell where the baseline was."""
    profiles = run.bench.profiles if run.bench else []
    pairs = []
    for profile in profiles:
        cell = profile_cell(profile)
        same = [p for p in profiles if p.peer == BASELINE and profile_cell(p) == cell]
        if same and profile is not same[0]:
            pairs.append((f"{profile.name}, {cell.words}", same[0], profile))
    return pairs


def layer_rows(baseline: Profile, peer: Profile) -> list[LayerRow]:
    """The layers of two profiles side by side."""
    return [
        LayerRow(
            layer=pair.known.layer,
            op=pair.known.op,
            baseline_ms=pair.base.ms if pair.base else None,
            peer_ms=pair.peer.ms if pair.peer else None,
            no_faster=pair.no_faster,
            speed=_speed_text(pair),
            channels=" | ".join(pair.channels("→", UNKNOWN)),
            macs=" | ".join(pair.told(lambda layer: layer.macs or None, scaled, UNKNOWN)),
            intensity=" | ".join(pair.told(lambda layer: layer.intensity, lambda value: f"{value:.3g}", UNKNOWN)),
        )
        for pair in compare(baseline, peer)
    ]


def _speed_text(pair: LayerPair) -> str:
    """Times as fast: ▲ for a layer that was cut and got no faster, △ for one that was not cut."""
    if pair.times_faster is None:
        return UNKNOWN
    mark = "▲ " if pair.no_faster else "△ " if pair.shared else ""
    return f"{mark}{pair.times_faster:.2f}×"


def scenario_bars(
    runs: Iterable[TrainedRun], cell: Cell, scenario: str, rate: Callable[[Scenario], float | None]
) -> list[ScenarioBar]:
    """A bar a network that was asked for `scenario` in `cell`: its `rate`."""
    return [
        ScenarioBar(
            run=run.name,
            who=network_of(row.name, row.peer),
            label=row.name,
            value=rate(row.scenarios[scenario]),
            text=_rate_text(rate(row.scenarios[scenario])),
        )
        for run in runs
        for row in run.rows
        if cell_of(row) == cell and scenario in row.scenarios
    ]


def _rate_text(rate: float | None) -> str:
    return "none" if rate is None else digits(rate)
