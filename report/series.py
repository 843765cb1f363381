"""What the charts of a report draw: points, lines, bars and layers, taken from the records of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from wmlc.bench.profile import compare
from wmlc.console import digits, scaled
from wmlc.report.summary import UNKNOWN, Cell, Report, cell_of, cell_words, network_of, short
from wmlc.run import BASELINE, peer_name
from wmlc.stats import top1_interval

Record = Mapping[str, Any]
Lines = dict[str, list[tuple[int, float]]]  # by name, (epoch, value)


def point_of(report: Report, row: Record) -> dict[str, Any]:
    """One network as a point of a chart: its numbers, and as `…_text` what hovering tells."""
    times, interval = row.get("latency_ms") or {}, row.get("p50_interval") or {}
    speedup, drop, pruned = row.get("speedup"), row.get("top1_drop"), row.get("achieved_ratio")
    p50, low, high = times.get("p50"), interval.get("low"), interval.get("high")
    ends = "" if low is None else f" [{low:.3g}, {high:.3g}]"
    images = report.test_images
    bounds = top1_interval(row["top1"], images) if images else (None, None)
    top1_ends = f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if images else ""
    return {
        "run": report.name,
        "network": network_of(row),
        "label": str(row["name"]),
        "number": _mark(network_of(row)),
        "precision": row.get("precision") or "fp32",
        "params": row.get("params"),
        "macs": row.get("macs"),
        "p50": p50,
        "low": low,
        "high": high,
        "top1": row.get("top1"),
        "top1_low": bounds[0],
        "top1_high": bounds[1],
        "top1_text": f"{row['top1']:.2f} %{top1_ends}" + ("" if drop is None else f" (drop {drop:.2f})"),
        "p50_text": "not measured" if p50 is None else f"{p50:.3g} ms{ends}",
        "speedup_text": interval_text(speedup) if speedup else "not measured",
        "params_text": short(row.get("params")),
        "macs_text": short(row.get("macs")),
        "pruned_text": UNKNOWN if pruned is None else f"{pruned:.1%}",
    }


def _mark(network: str) -> str:
    """What stands at a network's point or bar: b, 1, 2 …; a foreign file's whole name."""
    return "b" if network == "baseline" else network.removeprefix("peer")


def interval_text(speedup: Record) -> str:
    """1.12 [1.10, 1.13]."""
    return f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def latency_points(reports: Iterable[Report], cell: Cell) -> list[dict[str, Any]]:
    """The networks that were timed in `cell` and whose top-1 was measured."""
    return [
        point_of(report, row)
        for report in reports
        for row in report.rows
        if cell_of(row) == cell and row.get("latency_ms") and row.get("top1") is not None
    ]


def size_points(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """Every network with a top-1 once, in its first cell; where no bench measured it, as the training left it."""
    found = []
    for report in reports:
        rows: dict[str, Record] = {}
        benched = [row for row in report.rows if row.get("top1") is not None]
        for row in benched or family_rows(report):
            if row.get("top1") is not None and row.get("params") and row.get("macs"):
                rows.setdefault(str(row["name"]), row)
        found += [point_of(report, row) for row in rows.values()]
    return found


def family_rows(report: Report) -> list[dict[str, Any]]:
    """The networks of a run as rows of a bench that was not made: what the training knows of them."""
    baseline = report.family.get("baseline")
    networks = [*([{**baseline, "peer": BASELINE}] if baseline else []), *report.family["peers"]]
    return [
        {
            **{key: network.get(key) for key in ("peer", "ratio", "achieved_ratio", "params", "macs", "top1")},
            "name": peer_name(network["peer"]),
            "top1_drop": baseline["top1"] - network["top1"] if baseline else None,
            "mac_ratio": baseline["macs"] / network["macs"] if baseline else None,
        }
        for network in networks
    ]


def pareto_front(points: Iterable[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """The points that no other one beats: none costs as little and scores as well."""
    front: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (p[cost], -p["top1"])):
        if not front or point["top1"] > front[-1]["top1"]:
            front.append(point)
    return front


def top1_lines(report: Report) -> Lines:
    """Held-out top-1 over the epochs: the baseline, every peer, the ensemble of several."""
    peers = report.family["peers"]
    lines = {"baseline": [(epoch["epoch"], epoch["top1"][0]) for epoch in report.baseline_epochs]}
    for index, peer in enumerate(peers):
        lines[peer_name(peer["peer"])] = [(epoch["epoch"], epoch["top1"][index]) for epoch in report.epochs]
    if len(peers) > 1:
        lines["ensemble"] = [(epoch["epoch"], epoch["ensemble_top1"]) for epoch in report.epochs]
    return {who: line for who, line in lines.items() if line}


def loss_lines(report: Report) -> Lines:
    """The training loss over the epochs, of the family and of the baseline."""
    lines = {
        "baseline": [(epoch["epoch"], epoch["train_loss"]) for epoch in report.baseline_epochs],
        "family": [(epoch["epoch"], epoch["train_loss"]) for epoch in report.epochs],
    }
    return {who: line for who, line in lines.items() if line}


def weight_lines(report: Report) -> Lines:
    """The peer weights ω over the epochs."""
    if not report.epochs:
        return {}
    return {
        peer_name(peer["peer"]): [(epoch["epoch"], epoch["peer_weights"][index]) for epoch in report.epochs]
        for index, peer in enumerate(report.family["peers"])
    }


def width_bars(report: Report) -> list[dict[str, Any]]:
    """A bar a network and stage: the mean, the least and the most channels of the stage's layers."""
    networks = [{**(report.family.get("baseline") or {}), "peer": BASELINE}, *report.family["peers"]]
    return [
        {
            "stage": stage,
            "who": peer_name(network["peer"]),
            "number": _mark(peer_name(network["peer"])),
            "mean": sum(channels) / len(channels),
            "least": min(channels),
            "most": max(channels),
            "layers": ", ".join(map(str, channels)),
        }
        for network in networks
        for stage, channels in (network.get("stage_channels") or {}).items()
        if channels
    ]


def profile_pairs(report: Report) -> list[tuple[str, Record, Record]]:
    """(words, the baseline's profile, a network's) for each network profiled in a cell where the baseline was."""
    profiles = (report.bench or {}).get("profiles") or []
    pairs = []
    for profile in profiles:
        same = [p for p in profiles if p.get("peer") == BASELINE and cell_of(p) == cell_of(profile)]
        if same and profile is not same[0]:
            pairs.append((f"{profile['name']}, {cell_words(cell_of(profile))}", same[0], profile))
    return pairs


def layer_rows(baseline: Record, peer: Record) -> list[dict[str, Any]]:
    """`compare`'s layers with their two times, and in words what stands beside them."""
    return [
        {
            "layer": row["layer"],
            "op": row["op"],
            "baseline_ms": row["ms"][0],
            "peer_ms": row["ms"][1],
            "no_faster": row["no_faster"],
            "speed": _speed_text(row),
            "channels": _both(row["channels"], lambda channels: "→".join(map(str, channels))),
            "macs": _both([macs or None for macs in row["macs"]], scaled),
            "intensity": _both(row["intensity"], lambda value: f"{value:.3g}"),
        }
        for row in compare(baseline, peer)
    ]


def _speed_text(row: Record) -> str:
    """Times as fast: ▲ for a layer that was cut and got no faster, △ for one that was not cut."""
    if row["times_faster"] is None:
        return UNKNOWN
    mark = "▲ " if row["no_faster"] else "△ " if row["shared"] else ""
    return f"{mark}{row['times_faster']:.2f}×"


def _both(values: Sequence[Any], words: Callable[[Any], str]) -> str:
    """The baseline's value and the peer's, once where they are the same."""
    texts = [UNKNOWN if value is None else words(value) for value in values]
    return texts[0] if texts[0] == texts[1] else " | ".join(texts)


def scenario_bars(reports: Iterable[Report], cell: Cell, scenario: str, key: str) -> list[dict[str, Any]]:
    """A bar a network that was asked for `scenario` in `cell`: its `key`, None where it has none."""
    return [
        {
            "run": report.name,
            "who": network_of(row),
            "label": str(row["name"]),
            "value": found.get(key),
            "text": "none" if found.get(key) is None else digits(found[key]),
        }
        for report in reports
        for row in report.rows
        if cell_of(row) == cell and (found := (row.get("scenarios") or {}).get(scenario))
    ]
