"""Where a network's time goes, layer by layer, and why a smaller one is not as much faster as it is smaller.

Works on what `bench.json` keeps in "profiles", so that nothing here needs an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from wmlc.bench.layers import OTHER, attribute, read_layers
from wmlc.console import UNKNOWN, scaled

PAID_OUT = 0.8  # of the MAC ratio, as speed-up; below it, `where_lost` speaks
NO_FASTER = 0.95  # of the baseline's time, that a layer with fewer MACs has to get under
APART = 0.1  # of the time of layers that are the same, between two profiles, that needs a word
LEAST_SHARE = 0.05  # of what was lost, to be named
MOST_PLACES, MOST_LAYERS = 3, 5  # named in one line
LONGEST_NAME = 24
HEADER = ("layer", "channels", "MACs", "FLOP/byte", "ms", "times", "")

Record = Mapping[str, Any]  # one network's profile, as `profile_record` makes it


def profile_record(
    *, name: str, peer: int, precision: str, engine: str, threads: int, batch: int, onnx_file: Path,
    nodes: Sequence[tuple[str, str, float]], p50_ms: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One network's profile for `bench.json`.

    Args: the ONNX file of the network that the engine ran, for torch and TensorRT too; what the engine's `profile`
    told; the p50 of its calls while nothing was profiled. `profiled_ms` is the sum of the layers: profilers add some
    microseconds a node, so it may be above `p50_ms`, and what a call costs outside of the nodes is not in it.
    """
    layers = {layer.name: layer for layer in read_layers(onnx_file)}
    rows = []
    for row in attribute(onnx_file, nodes):
        layer = layers.get(row["layer"])
        rows.append({
            **row,
            "channels": list(layer.channels) if layer else None,
            "macs": layer.macs if layer else 0,
            "bytes": layer.bytes_moved(batch) if layer else None,
            "intensity": layer.intensity(batch) if layer else None,
        })  # fmt: skip
    return {
        "engine": engine, "threads": threads, "batch": batch, "peer": peer, "precision": precision, "name": name,
        "profiled_ms": sum(row["ms"] for row in rows), "p50_ms": p50_ms, "layers": rows,
    }  # fmt: skip


def merge(records: Sequence[Record]) -> dict[str, Any]:
    """One profile of several of the same network: the median time of each layer.

    Profile the networks by turns and merge each one's, so that what slows the machine for a while slows them all.
    """
    times: dict[str, list[float]] = {}
    for record in records:
        for row in record["layers"]:
            times.setdefault(row["layer"], []).append(row["ms"])
    known = {row["layer"]: row for record in records for row in record["layers"]}
    rows = [{**known[layer], "ms": median(times[layer])} for layer in times]
    return {**records[0], "profiled_ms": sum(row["ms"] for row in rows), "layers": rows}


def joined_by(baseline: Record, peer: Record) -> str | None:
    """How the layers of two networks find each other: "name", "position" or, for two that are not alike, None.

    By position where they share no name and have the same operators in the same order, as files from elsewhere may.
    """
    ours, theirs = ([row for row in record["layers"] if row["macs"]] for record in (baseline, peer))
    if {row["layer"] for row in ours} & {row["layer"] for row in theirs}:
        return "name"
    return "position" if [row["op"] for row in ours] == [row["op"] for row in theirs] else None


def compare(baseline: Record, peer: Record) -> list[dict[str, Any]]:
    """The layers of two profiles side by side, each value a pair [baseline's, peer's]; None where one lacks the layer.

    `times_faster` is the baseline's milliseconds over the peer's. `shared`: the peer's layer has as many MACs;
    `no_faster`: it has fewer and took more than 0.95 of the time. Operators without MACs are joined by name, always.
    """
    theirs = {row["layer"]: row for row in peer["layers"]}
    if joined_by(baseline, peer) == "position":
        places = iter([row for row in peer["layers"] if row["macs"]])
        theirs = {row["layer"]: next(places) for row in baseline["layers"] if row["macs"]}
        theirs |= {row["layer"]: row for row in peer["layers"] if not row["macs"]}
    pairs = [(row, theirs.pop(row["layer"], None)) for row in baseline["layers"]]
    return [_joined(*pair) for pair in [*pairs, *((None, row) for row in theirs.values())]]


def _joined(base: Record | None, peer: Record | None) -> dict[str, Any]:
    known = base or peer or {}
    pairs = {key: [row and row.get(key) for row in (base, peer)] for key in ("channels", "macs", "intensity", "ms")}
    joined = {"layer": known["layer"], "op": known["op"], **pairs}
    if not base or not peer:
        return {**joined, "times_faster": None, "shared": False, "no_faster": False}
    return {
        **joined,
        "times_faster": base["ms"] / peer["ms"] if peer["ms"] else None,
        "shared": 0 < base["macs"] == peer["macs"],
        "no_faster": peer["macs"] < base["macs"] and peer["ms"] > NO_FASTER * base["ms"],
    }


def where_lost(baseline: Record, peer: Record, speedup_median: float | None, mac_ratio: float | None) -> str | None:
    """One line on a peer whose speed-up is under 0.8 of its MAC ratio; None for any other.

    A layer that kept the share r_l = MACs_peer / MACs_baseline should take r_l of the baseline's time, and what has no
    MACs the share R of the whole network: lost_l = t_peer − r_l t_baseline. The third part of

        T_peer − R T_baseline = Σ_layers lost_l + Σ_others lost_o + Σ_layers (r_l − R) t_baseline

    is what is lost by cutting where a MAC costs less time than elsewhere, every layer as fast as it should be. Shares
    are of the sum of all that was lost: what was won elsewhere is not set against it. Where the profile itself shows
    nothing of the loss, the line says so instead.
    """
    if not speedup_median or not mac_ratio or speedup_median >= PAID_OUT * mac_ratio:
        return None
    said = (
        f"{speedup_median:.2f} times as fast where its MACs are {mac_ratio:.2f} times fewer "
        f"({speedup_median / mac_ratio:.2f} paid out)"
    )
    if joined_by(baseline, peer) is None:
        return f"{said}; its layers are not those of {baseline['name']}, so where it was lost is not known"
    rows = compare(baseline, peer)
    base_ms, peer_ms = (sum(row["ms"] for row in record["layers"]) for record in (baseline, peer))
    if base_ms >= PAID_OUT * mac_ratio * peer_ms:
        return (
            f"{said}; not in the layers, whose times went from {base_ms:.3g} to {peer_ms:.3g} ms: outside of them, or "
            "the machine was busy"
        )
    lost_ms = {place: ms for place, ms in _losses(rows, 1 / mac_ratio).items() if ms > 0}
    whole = sum(lost_ms.values())
    worst = sorted(lost_ms, key=lambda place: -lost_ms[place])[:MOST_PLACES]
    shown = [place for place in worst if place == worst[0] or lost_ms[place] >= LEAST_SHARE * whole]
    said += "; lost: " + ", ".join(f"{100 * lost_ms[place] / whole:.0f} % {place}" for place in shown)
    slow = sorted((row for row in rows if row["no_faster"]), key=_lost_ms, reverse=True)
    if slow:
        said += f"; no faster: {_listed([row['layer'] for row in slow])}"
    return said + _apart_words(rows)


def _lost_ms(row: Mapping[str, Any]) -> float:
    """Of a layer that both have: the peer's time less as much of the baseline's as it kept of the MACs."""
    (base_ms, peer_ms), (base_macs, peer_macs) = row["ms"], row["macs"]
    return float(peer_ms - base_ms * peer_macs / base_macs)


def _apart_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """A warning where the machine was not as fast in both profiles, by the times of layers that are the same."""
    same = [row["ms"] for row in rows if row["shared"] and row["channels"][0] == row["channels"][1]]
    base_ms, peer_ms = (sum(times[side] for times in same) for side in (0, 1))
    if not base_ms or abs(peer_ms / base_ms - 1) <= APART:
        return ""
    return (
        f"; not firm, as layers that are the same took {peer_ms / base_ms:.2f} times as long in its profile: "
        "close other programs and profile again"
    )


def _losses(rows: Sequence[Mapping[str, Any]], kept: float) -> dict[str, float]:
    """Place, in words → milliseconds lost there, negative where won; `kept` is R, the peer's share of all MACs."""
    lost: dict[str, float] = {}
    without: dict[str, float] = {}
    unevenly = 0.0
    for row in rows:
        base_ms, peer_ms = (ms or 0.0 for ms in row["ms"])
        base_macs, peer_macs = (macs or 0 for macs in row["macs"])
        if base_macs:
            place = f"in {_stage(row['layer'])}"
            unevenly += (peer_macs / base_macs - kept) * base_ms
            lost[place] = lost.get(place, 0.0) + peer_ms - base_ms * peer_macs / base_macs
        elif peer_macs:  # a layer of the peer's own
            place = f"in {_stage(row['layer'])}"
            lost[place] = lost.get(place, 0.0) + peer_ms
        else:
            without[row["op"]] = peer_ms - kept * base_ms
    most = sorted((op for op in without if without[op] > 0), key=lambda op: -without[op])[:MOST_PLACES]
    lost[f"in operators without MACs ({', '.join(most)})"] = sum(without.values())
    lost["by cutting where a MAC takes less time than elsewhere"] = unevenly
    return lost


def _stage(layer: str) -> str:
    """stage1 of "stage1.0.conv1", layer1 of "/layer1/layer1.0/conv1/Conv"."""
    return layer.strip("/").split("/")[0].split(".")[0]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_LAYERS
    return ", ".join(names[:MOST_LAYERS]) + (f" and {more} more" if more > 0 else "")


def profiled_words(record: Record) -> str:
    """What the profile adds up to beside the call that was timed without it, in one line."""
    said = f"{record['name']}: its layers add up to {record['profiled_ms']:.3g} ms"
    if not record.get("p50_ms"):
        return f"{said}, with what the profiler itself takes"
    return f"{said} with the profiler on, a call takes {record['p50_ms']:.3g} ms without it (p50)"


def profile_table(baseline: Record, peer: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A terminal table's header and rows, within 100 columns: the baseline's → the peer's, once where equal."""
    rows = compare(baseline, peer)
    return HEADER, [
        (
            short_name(row["layer"].removeprefix(OTHER)),
            _pair(row["channels"], lambda channels: ",".join(map(str, channels))),
            _pair([macs or None for macs in row["macs"]], scaled),
            _pair(row["intensity"], lambda value: f"{value:#.3g}".rstrip(".")),
            _pair(row["ms"], _milliseconds),
            UNKNOWN if row["times_faster"] is None else f"{row['times_faster']:.2f}",
            "no faster" if row["no_faster"] else "",
        )
        for row in rows
    ]


def _pair(values: Sequence[Any], shown: Any) -> str:
    """64→48, once where both are shown alike."""
    texts = [UNKNOWN if value is None else shown(value) for value in values]
    return texts[0] if texts[0] == texts[1] else "→".join(texts)


def short_name(name: str) -> str:
    """The end of a long name, which tells layers and files apart."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
