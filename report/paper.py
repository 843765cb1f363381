"""The paper's tables beside measured rows, and every setting in which the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from wmlc.errors import InputError
from wmlc.files import read_json
from wmlc.report.comparison import Comparable, Row, Spread, less, spread

TABLES = Path(__file__).with_name("paper.json")
KEYS = {"table6": "method", "table7": "saliency", "table8": "method"}  # what a published row is found by
NOTHING = spread([])


@dataclass(frozen=True)
class Line:
    """A published or a measured row, in the columns of the paper's table."""

    measured: bool
    network: str
    key: str | None  # method or saliency, None for a method that is not to be had here
    name: str
    baseline: Spread
    peers: list[Spread]
    mean: Spread  # over the peers
    ensemble: Spread
    top1: Spread  # of the table that has one accuracy a method
    top1_drop: Spread
    flops_drop: Spread
    differs: list[str]  # of a measured row: what no other measured row shares


@dataclass(frozen=True)
class Published:
    """One of the paper's tables with measured rows in it."""

    table: str
    title: str
    source: str
    differs: list[str]  # settings in which all measured rows differ from the paper's
    lines: list[Line]
    notes: list[str]


def check_table(name: str) -> None:
    """Raise `InputError` where the paper's table `name` is not known."""
    if name not in KEYS:
        raise InputError(f"--paper must be one of {', '.join(KEYS)}, got {name!r}")


def beside_paper(name: str, runs: Comparable) -> Published:
    """The rows of one comparable set with what the paper's table `name` has for their network and method.

    Where it does not have the network, its rows of the same methods on other networks stand there, under their own.
    """
    record = read_json(TABLES, "record of the paper's tables", "install wmlc again")
    table, key = record["tables"][name], KEYS[name]
    matched = [(row, _counterparts(row, name, runs, table["rows"])) for row in runs.rows]
    found = [(row, theirs) for row, theirs in matched if theirs]
    differing = [_differing(row, runs, table["settings"], theirs) for row, theirs in found]
    common = [words for words in (differing[0] if differing else []) if all(words in each for each in differing)]
    lines = [
        _measured(row, name, runs, [words for words in each if words not in common])
        for (row, _), each in zip(found, differing, strict=True)
    ]
    shown = _shown(table["rows"], key, found, runs)
    lines += [_published(row, key) for row in shown]
    notes = [row["note"] for row in shown if "note" in row]
    lacking = [row.name for row, theirs in matched if not theirs]
    notes += [f"{', '.join(lacking)}: no such row in the paper's table"] if lacking else []
    notes = [*notes, *_order(name, lines), f"the paper: {record['source']}"]
    return Published(name, table["title"], record["source"], common, lines, notes)


def _counterparts(row: Row, name: str, runs: Comparable, published: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The published rows for one of ours: of its network, or of any where the table lacks that."""
    pruned = row.settings.get("method") in ("wml", "wml-p") and row.peers[0].achieved_ratio.mean != 0
    if name == "table7" and not pruned:  # it has networks pruned by saliency only
        return []
    same = [theirs for theirs in published if theirs.get(KEYS[name]) == row.settings.get(KEYS[name])]
    return [theirs for theirs in same if theirs["network"] == runs.settings["network"]] or same


def _shown(
    published: Sequence[dict[str, Any]], key: str, found: Sequence[tuple[Row, list[Any]]], runs: Comparable
) -> list[dict[str, Any]]:
    """The counterparts of all our rows, and methods that are not to be had here, in the paper's order."""
    networks = {theirs["network"] for _, rows in found for theirs in rows}
    return [
        row
        for row in published
        if any(row is theirs for _, rows in found for theirs in rows)
        or (row.get(key) is None and row["network"] in networks)
    ]


def _differing(
    row: Row, runs: Comparable, settings: Mapping[str, Any], theirs: Sequence[Mapping[str, Any]]
) -> list[str]:
    networks = [each["network"] for each in theirs]
    network = runs.settings["network"]
    expected = {
        "network": network if network in networks else networks, **settings, **(theirs[0].get("settings") or {})
    }  # fmt: skip
    mine = {**row.settings, **runs.settings, "filters": runs.filters, "ratios": [peer.ratio for peer in row.peers]}
    return [
        f"{words} {in_words(mine.get(words))} (paper: {in_words(value)})"
        for words, value in expected.items()
        if mine.get(words) != value
    ]


def in_words(value: Any) -> str:
    """A setting as a person reads it."""
    if isinstance(value, list):
        return ", ".join(in_words(each) for each in value)
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _measured(row: Row, name: str, runs: Comparable, differs: list[str]) -> Line:
    first, last = row.peers[0], row.peers[-1]
    pruned = name == "table7"
    return Line(
        measured=True,
        network=str(runs.settings["network"]),
        key=row.settings.get(KEYS[name]),
        name=row.name,
        baseline=row.baseline,
        peers=[peer.top1 for peer in row.peers],
        mean=row.mean,
        ensemble=row.ensemble,
        top1=last.top1,
        top1_drop=first.top1_drop if pruned else row.top1_drop,
        flops_drop=first.flops_drop if pruned else row.flops_drop,
        differs=differs,
    )


def _published(row: Mapping[str, Any], key: str) -> Line:
    peers = row.get("peers") or []
    mean = spread([fmean(peers)]) if peers else NOTHING
    drop = [row["top1_drop"]] if "top1_drop" in row else less([row.get("baseline")], [mean.mean])
    return Line(
        measured=False,
        network=row["network"],
        key=row.get(key),
        name=row["name"],
        baseline=spread([row.get("baseline")]),
        peers=[spread([top1]) for top1 in peers],
        mean=mean,
        ensemble=spread([row.get("ensemble")]),
        top1=spread([row.get("top1")]),
        top1_drop=spread(drop),
        flops_drop=spread([row.get("flops_drop")]),
        differs=[],
    )


def _order(name: str, lines: Sequence[Line]) -> list[str]:
    """What each table's numbers mean, and in which order methods stand, here and there."""
    if name == "table7":
        return ["pruned is peer 1; the paper's drops are as printed"]
    if name == "table8":
        return ["which of the peers the paper's WML is has not been recorded; beside it stands our last peer"]
    notes = ["the paper's mean over peers and the drop to it are computed from its numbers"]
    orders: dict[str, list[str]] = {}
    for network in dict.fromkeys(line.network for line in lines if not line.measured):
        theirs = [line for line in lines if not line.measured and line.network == network]
        orders.setdefault(_ranked(theirs), []).append(network)
    ours = _ranked([line for line in lines if line.measured])
    if ">" in ours:
        published = "; ".join(f"{order} ({', '.join(networks)})" for order, networks in orders.items())
        notes.append(f"order by the mean over peers, measured: {ours}; published: {published}")
    return notes


def _ranked(lines: Sequence[Line]) -> str:
    return " > ".join(line.name for line in sorted(lines, key=lambda line: -(line.mean.mean or 0)))
