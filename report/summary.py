"""What a run and its bench say, read for a page: the records, the cells that were benched, the headline in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wmlc.console import scaled
from wmlc.errors import InputError
from wmlc.files import read_json
from wmlc.run import BASELINE, Run, peer_name, read_config, read_epochs, read_family

NEAR = 1.0  # top-1 points below the baseline that count as "within a point"
TITLES = {"ort": "ONNX Runtime", "torch": "PyTorch", "trt": "TensorRT", "openvino": "OpenVINO"}  # of engines
UNKNOWN = "–"  # on a page

Cell = tuple[str, Any, Any]  # engine, threads, batch


@dataclass(frozen=True)
class Report:
    """The records of one run."""

    name: str  # what the page calls it
    root: Path
    family: Mapping[str, Any]
    config: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]  # a record an epoch, of the family
    baseline_epochs: Sequence[Mapping[str, Any]]
    bench: Mapping[str, Any] | None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the bench; an older one has its threads in the settings only, and on a GPU they do not matter."""
        if self.bench is None:
            return []
        threads = (self.bench.get("settings") or {}).get("threads")
        gpu = {"threads": None}
        return [
            {"threads": threads, **row, **(gpu if row.get("device") == "cuda" else {})} for row in self.bench["rows"]
        ]

    @property
    def test_images(self) -> int | None:
        """How many images its top-1 was measured on."""
        benched = ((self.bench or {}).get("data") or {}).get("test_images")
        return benched or (self.family.get("data") or {}).get("test")

    @property
    def networks(self) -> list[str]:
        """The networks that a colour stands for, in one order on the whole page."""
        own = ["baseline", *(peer_name(peer["peer"]) for peer in self.family["peers"]), "ensemble"]
        return list(dict.fromkeys([*own, *(network_of(row) for row in self.rows)]))


def read_reports(runs: Sequence[Run]) -> list[Report]:
    """The records of `runs`, each under a name of its own; `InputError` for one unfinished or damaged."""
    names = [run.root.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.root) for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"each run may be named once, got {', '.join(names)}")
    return [_read_report(run, name) for run, name in zip(runs, names, strict=True)]


def _read_report(run: Run, name: str) -> Report:
    bench, again = None, f"bench again with 'wmlc bench --run {run.root}'"
    if run.bench.exists():
        bench = read_json(run.bench, "bench record", again)
        rows = bench.get("rows")
        if not (isinstance(rows, list) and all(isinstance(row, dict) and "name" in row for row in rows)):
            raise InputError(f"{run.bench} is damaged: it holds no rows; {again}")
    return Report(
        name=name,
        root=run.root,
        family=asdict(read_family(run)),
        config=asdict(read_config(run)),
        epochs=[asdict(e) for e in read_epochs(run, "family")],
        baseline_epochs=[asdict(e) for e in read_epochs(run, "baseline")],
        bench=bench,
    )


def network_of(row: Mapping[str, Any]) -> str:
    """The network that a row is about, whatever its precision; a foreign file is its own."""
    peer = row.get("peer")
    if isinstance(peer, int) and str(row["name"]).split(" ")[0] == peer_name(peer):
        return peer_name(peer)
    return str(row["name"])


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Under which conditions a row was measured."""
    return str(row.get("engine")), row.get("threads"), row.get("batch")


def all_cells(rows: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """Every cell once, in the order of the rows."""
    return list(dict.fromkeys(cell_of(row) for row in rows))


def cell_words(cell: Cell) -> str:
    """ONNX Runtime, 1 thread, batch 8."""
    engine, threads, batch = cell
    count = "" if threads is None else f"{threads} thread{'s' * (threads != 1)}, "
    return f"{TITLES.get(engine, engine)}, {count}batch {batch}"


def short(count: float | None) -> str:
    """272474 -> 272k; a dash for what is not known."""
    return UNKNOWN if count is None else scaled(count)


def headline(report: Report) -> str:
    """What the run gave, the smallest pruned peer within a point of the baseline, and its speed-up."""
    return f"{_given(report)} {_found(report)}".replace(" %", "\u00a0%")


def _given(report: Report) -> str:
    family = report.family
    sizes = [peer["params"] for peer in family["peers"]]
    arch, data = family.get("arch"), (family.get("data") or {}).get("name")
    what = f" of {arch}{f' on {data}' if data else ''}" if arch else ""
    if len(sizes) == 1:
        return f"One training run{what} gave a network of {short(sizes[0])} parameters."
    return (
        f"One training run{what} gave {len(sizes)} networks of {short(min(sizes))} to {short(max(sizes))} parameters."
    )


def _found(report: Report) -> str:
    baseline, peers = report.family.get("baseline"), report.family["peers"]
    if baseline is None:
        return (
            "There is no baseline to compare with, so neither a drop nor a speed-up is known; "
            "'wmlc train' without --no-baseline trains one."
        )
    pruned = [peer for peer in peers if peer["achieved_ratio"] > 0]
    if not pruned:
        return "None of them is pruned, so none can be faster; 'wmlc train --ratios' takes how much to cut."
    top1 = {peer["peer"]: _top1(report, peer) for peer in [*pruned, {**baseline, "peer": BASELINE}]}
    drop = {peer["peer"]: round(top1[BASELINE] - top1[peer["peer"]], 6) for peer in pruned}
    near = [peer for peer in pruned if drop[peer["peer"]] <= NEAR]
    peer = min(near, key=lambda p: p["params"]) if near else min(pruned, key=lambda p: drop[p["peer"]])
    number = peer["peer"]
    scores = f"top-1 {top1[number]:.2f} % against {top1[BASELINE]:.2f} %"
    if near:
        less = f"{1 - peer['params'] / baseline['params']:.0%} fewer parameters".replace("%", " %")
        start = f"Peer {number}, with {less}, is the smallest within a point of the baseline ({scores})"
    else:
        start = (
            f"No pruned peer is within a point of the baseline: the nearest is peer {number}, "
            f"{drop[number]:.2f} points below ({scores}), which misses the point by {drop[number] - NEAR:.2f}"
        )
    return start + _speed(report, number, joint=", and " if near else ". It is ")


def _top1(report: Report, network: Mapping[str, Any]) -> float:
    """Through the engine where that was measured, else as after training; both on the test set."""
    row = first_row(report, network["peer"])
    measured = row.get("top1") if row else None
    return float(network["top1"] if measured is None else measured)


def first_row(report: Report, peer: int) -> dict[str, Any] | None:
    """The peer's row in the first cell, in the precision that all are compared in."""
    rows = report.rows
    return next((r for r in rows if cell_of(r) == cell_of(rows[0]) and network_of(r) == peer_name(peer)), None)


def _speed(report: Report, peer: int, joint: str) -> str:
    """How the headline ends: what is known of the peer's speed; `joint` leads to a speed-up that was shown."""
    command = f"'wmlc bench --run {report.root}'"
    if report.bench is None:
        return f". Nothing was timed yet: {command} measures the speed-up."
    row = first_row(report, peer)
    if row is None:
        return f". The bench has no times of it: {command} measures the speed-up."
    speedup = row.get("speedup")
    if speedup is None:
        reason = "; ".join(row.get("notes") or []) or f"{command} measures it"
        return f". Its speed-up was not measured: {reason}."
    where = f"95 % interval {speedup['low']:.2f} to {speedup['high']:.2f}; {cell_words(cell_of(row))}"
    times = f"{speedup['median']:.2f} times as fast ({where})"
    if speedup["low"] > 1:
        return f"{joint}{times}."
    if speedup["high"] < 1:
        return f". It is not faster but slower: {times}."
    return f". It is not shown to be faster: {times}."
