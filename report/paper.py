"""The paper's tables beside measured configurations, and every setting in which the two differ."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from wmlc import records
from wmlc.errors import InputError
from wmlc.records import Record
from wmlc.report.configurations import Comparable, Configuration, less
from wmlc.stats import Spread, spread

TABLES = Path(__file__).with_name("paper.json")
KEYS = {"table6": "method", "table7": "saliency", "table8": "method"}  # the setting that a published row is found by
NOTHING = spread([])

Settings = dict[str, str | int | float | list[float]]  # by the words for them, as `Comparable` has them, or their names


@dataclass(frozen=True, kw_only=True)
class PaperRow(Record):
    """A published row; None where its table has no such column."""

    network: str
    name: str
    method: str | None = None  # None with `saliency` None: a method that is not to be had here
    saliency: str | None = None
    baseline: float | None = None
    peers: list[float] = field(default_factory=list)  # top-1
    ensemble: float | None = None
    top1: float | None = None
    top1_drop: float | None = None  # as printed
    flops_drop: float | None = None
    settings: Settings = field(default_factory=dict)
    note: str | None = None

    @property
    def key(self) -> str | None:
        """What it is found by."""
        return self.saliency or self.method


@dataclass(frozen=True, kw_only=True)
class PaperTable(Record):
    """One of the paper's tables, with the settings of all its rows."""

    title: str
    settings: Settings
    rows: list[PaperRow]


@dataclass(frozen=True, kw_only=True)
class Paper(Record):
    """paper.json."""

    source: str
    tables: dict[str, PaperTable]


def read_paper() -> Paper:
    """The tables as the paper prints them."""
    return records.read(TABLES, Paper, "record of the paper's tables", "install wmlc again")


@dataclass(frozen=True)
class PaperEntry:
    """A published row or a measured configuration, in the columns of the paper's table."""

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
    differs: list[str]  # of a measured one: what no other measured one shares


@dataclass(frozen=True)
class Published:
    """One of the paper's tables with measured configurations in it."""

    table: str
    title: str
    source: str
    differs: list[str]  # settings in which all measured ones differ from the paper's
    lines: list[PaperEntry]
    notes: list[str]


def check_table(name: str) -> None:
    """Raise `InputError` where the paper's table `name` is not known."""
    if name not in KEYS:
        raise InputError(f"--paper must be one of {', '.join(KEYS)}, got {name!r}")


def beside_paper(name: str, runs: Comparable) -> Published:
    """The configurations of one comparable set with what the paper's table `name` has for their network and method.

    Where it does not have the network, its rows of the same methods on other networks stand there, under their own.
    """
    paper = read_paper()
    table = paper.tables[name]
    matched = [(own, _counterparts(own, name, runs, table.rows)) for own in runs.configurations]
    found = [(own, theirs) for own, theirs in matched if theirs]
    differing = [_differing(own, runs, table.settings, theirs) for own, theirs in found]
    common = [words for words in (differing[0] if differing else []) if all(words in each for each in differing)]
    lines = [
        _measured(own, name, runs, [words for words in each if words not in common])
        for (own, _), each in zip(found, differing, strict=True)
    ]
    shown = _shown(table.rows, [row for _, theirs in found for row in theirs])
    lines += [_published(row) for row in shown]
    notes = [row.note for row in shown if row.note]
    lacking = [own.name for own, theirs in matched if not theirs]
    notes += [f"{', '.join(lacking)}: no such row in the paper's table"] if lacking else []
    notes = [*notes, *_order(name, lines), f"the paper: {paper.source}"]
    return Published(name, table.title, paper.source, common, lines, notes)


def _counterparts(own: Configuration, name: str, runs: Comparable, published: Sequence[PaperRow]) -> list[PaperRow]:
    """The published rows for one of ours: of its network, or of any where the table lacks that."""
    pruned = own.method in ("wml", "wml-p") and own.peers[0].achieved_ratio.mean != 0
    if name == "table7" and not pruned:  # it has networks pruned by saliency only
        return []
    same = [row for row in published if row.key == own.settings[KEYS[name]]]
    return [row for row in same if row.network == runs.settings["network"]] or same


def _shown(published: Sequence[PaperRow], counterparts: Sequence[PaperRow]) -> list[PaperRow]:
    """The counterparts of ours, and on their networks methods that are not to be had here, in the paper's order."""
    networks = {row.network for row in counterparts}
    return [row for row in published if row in counterparts or (row.key is None and row.network in networks)]


def _differing(
    own: Configuration, runs: Comparable, settings: Mapping[str, Any], theirs: Sequence[PaperRow]
) -> list[str]:
    networks, network = [row.network for row in theirs], runs.settings["network"]
    expected = {"network": network if network in networks else networks, **settings, **theirs[0].settings}
    mine = {**own.settings, **runs.settings, "filters": runs.filters, "ratios": [peer.ratio for peer in own.peers]}
    return [
        f"{words} {in_words(mine.get(words))} (paper: {in_words(value)})"
        for words, value in expected.items()
        if mine.get(words) != value
    ]


def in_words(value: Any, nothing: str = "unknown") -> str:
    """A setting as a person reads it; `nothing` stands for what is unset, or was not recorded."""
    if isinstance(value, list):
        return ", ".join(in_words(each) for each in value)
    if value is None or value == "":
        return nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _measured(own: Configuration, name: str, runs: Comparable, differs: list[str]) -> PaperEntry:
    first, last = own.peers[0], own.peers[-1]
    pruned = name == "table7"
    return PaperEntry(
        measured=True,
        network=str(runs.settings["network"]),
        key=own.settings[KEYS[name]],
        name=own.name,
        baseline=own.baseline,
        peers=[peer.top1 for peer in own.peers],
        mean=own.mean,
        ensemble=own.ensemble,
        top1=last.top1,
        top1_drop=first.top1_drop if pruned else own.top1_drop,
        flops_drop=first.flops_drop if pruned else own.flops_drop,
        differs=differs,
    )


def _published(row: PaperRow) -> PaperEntry:
    mean = spread([fmean(row.peers)]) if row.peers else NOTHING
    drop = [row.top1_drop] if row.saliency else less([row.baseline], [mean.mean])  # only table 7 prints drops
    return PaperEntry(
        measured=False,
        network=row.network,
        key=row.key,
        name=row.name,
        baseline=spread([row.baseline]),
        peers=[spread([top1]) for top1 in row.peers],
        mean=mean,
        ensemble=spread([row.ensemble]),
        top1=spread([row.top1]),
        top1_drop=spread(drop),
        flops_drop=spread([row.flops_drop]),
        differs=[],
    )


def _order(name: str, lines: Sequence[PaperEntry]) -> list[str]:
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


def _ranked(lines: Sequence[PaperEntry]) -> str:
    """The methods by their means, the best first; those with the same mean stand side by side."""
    ordered = itertools.groupby(sorted(lines, key=lambda line: -(line.mean.mean or 0)), lambda line: line.mean.mean)
    return " > ".join(" = ".join(line.name for line in alike) for _, alike in ordered)
