"""Which network to ship, from what was measured: the Pareto front, and the best within bounds."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlc.console import say
from wmlc.errors import GateError, InputError
from wmlc.files import read_json
from wmlc.run import BASELINE, Run

Row = Mapping[str, Any]
SHIPPED = ("ort", "trt")  # engines whose files `wmlc ship` takes
NEEDED = {
    "peer", "name", "engine", "precision", "threads", "batch", "latency_ms", "speedup", "top1", "top1_drop",
    "file_bytes", "macs",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a network must keep to; None: whatever it is."""

    max_latency_ms: float | None = None  # 99th percentile of one call
    max_bytes: int | None = None  # of its file
    max_macs: float | None = None
    min_top1: float | None = None  # percent

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be above 0, got {value:g}")
        if all(value is None for value in vars(self).values()):
            raise InputError("name at least one bound: --max-latency-ms, --max-bytes, --max-macs or --min-top1")

    def misses(self, row: Row) -> list[tuple[float, str]]:
        """Each bound that a network misses: by which share of it, and in words."""
        measured = (
            (self.max_latency_ms, row["latency_ms"]["p99"], "takes {} ms (p99)", ".3g"),
            (self.max_bytes, row["file_bytes"], "has {} bytes", ",.0f"),
            (self.max_macs, row["macs"], "has {} MACs", ",.0f"),
        )
        missed = [
            (got / most - 1, f"{words.format(format(got, digits))}, {got - most:{digits}} above {most:{digits}}")
            for most, got, words, digits in measured
            if most is not None and got > most
        ]
        least, top1 = self.min_top1, row["top1"]
        if least is not None and top1 < least:
            missed.append((1 - top1 / least, f"has top-1 {top1:.2f}, {least - top1:.2g} points below {least:g}"))
        return missed


def pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The front over (p50, top-1) of each engine, threads and batch; marks its rows with `on_front`.

    A network is on the front where no other is at least as fast and as accurate, and better in one of the two.
    """
    fronts: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["latency_ms"] is not None and row["top1"] is not None:
            fronts.setdefault((row["engine"], row["threads"], row["batch"]), []).append(row)
    for group in fronts.values():
        for row in group:
            row["on_front"] = not any(_dominates(other, row) for other in group)
    return [
        {
            "engine": engine, "threads": threads, "batch": batch,
            "points": [
                {"name": row["name"], "peer": row["peer"], "precision": row["precision"],
                 "p50_ms": row["latency_ms"]["p50"], "top1": row["top1"]}
                for row in sorted(group, key=lambda row: row["latency_ms"]["p50"]) if row["on_front"]
            ],
        }
        for (engine, threads, batch), group in fronts.items()
    ]  # fmt: skip


def _dominates(one: Row, other: Row) -> bool:
    time, top1 = one["latency_ms"]["p50"], one["top1"]
    other_time, other_top1 = other["latency_ms"]["p50"], other["top1"]
    return time <= other_time and top1 >= other_top1 and (time < other_time or top1 > other_top1)


def choose(rows: Sequence[Row], bounds: Bounds, **wanted: Any) -> Row:
    """The row of the peer to ship: of those within the bounds the most accurate, of as accurate ones the fastest.

    With a bound on top-1 alone it is the fastest. Args: `engine`, `threads`, `batch` (None: the first that the
    bench has) and `precision` (None: any) that the choice is among. Raises `InputError` where no such peer was
    measured, and `GateError` where none fits, naming the nearest and by how much it misses.
    """
    peers = [row for row in narrow(rows, **wanted) if row["peer"] != BASELINE and row["latency_ms"]]
    if bounds.min_top1 is not None:
        peers = [row for row in peers if row["top1"] is not None]
    if not peers:
        raise InputError("this bench has no peer whose numbers the bounds could be held against; bench it again")
    fitting = [row for row in peers if not bounds.misses(row)]
    if not fitting:
        nearest = min(peers, key=lambda row: max(share for share, _ in bounds.misses(row)))
        words = " and ".join(words for _, words in bounds.misses(nearest))
        raise GateError(f"none of {len(peers)} networks fits; the nearest, {nearest['name']}, {words}")
    top1_alone = bounds.min_top1 is not None and bounds == Bounds(min_top1=bounds.min_top1)
    return min(fitting, key=_by_speed if top1_alone else _by_accuracy)


def narrow(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values: of an engine, threads and batch not named the first that there is."""
    for name, asked in wanted.items():
        there = list(dict.fromkeys(row[name] for row in rows))
        value = there[0] if asked is None and there and name != "precision" else asked  # precisions compete
        if value is not None and value not in there:
            known = ", ".join(map(str, there)) or "nothing"
            raise InputError(f"{name} {value} was not benched, {known} was; choose among that, or bench it")
        rows = [row for row in rows if value is None or row[name] == value]
    return list(rows)


def _by_accuracy(row: Row) -> tuple[float, float]:
    return -(row["top1"] or 0.0), row["latency_ms"]["p99"]


def _by_speed(row: Row) -> tuple[float, float]:
    return row["latency_ms"]["p99"], -(row["top1"] or 0.0)


def print_choice(run: Run | None, bench: Path, bounds: Bounds, *, as_json: bool, **wanted: Any) -> None:
    """Name the peer to ship, what it gives, and how to ship it, where the bench is that of a `run`; see `choose`."""
    again = f"run 'wmlc bench{f' --run {run.root}' if run else ''}'"
    record = read_json(bench, "bench", f"{again} first")
    rows = record.get("rows")
    if not (isinstance(rows, list) and rows and all(row.keys() >= NEEDED for row in rows)):
        raise InputError(f"{bench} is damaged, or of an older wmlc; {again} again")
    row = choose(rows, bounds, **wanted)
    command = ship_command(run, record, row) if run and bench == run.bench else None
    unknown = "top-1 was not measured, so this is the fastest" if row["top1"] is None else None
    if as_json:
        say(json.dumps({**row, "command": command, "note": unknown}, indent=2))
        return
    say(f"{row['name']}: {described(row)}")
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    say(f"measured with {row['engine']}, {threads}, batch {row['batch']}, in {bench}")
    if unknown:
        say(unknown)
    baseline = next((r for r in narrow(rows, **{**wanted, "precision": None}) if r["peer"] == BASELINE), None)
    if baseline and baseline["latency_ms"] and not bounds.misses(baseline):
        say(f"the unpruned baseline fits too: {described(baseline)}")
    if command:
        say(f"ship it: {command}")


def ship_command(run: Run, record: Mapping[str, Any], row: Row) -> str | None:
    """The command that ships this very row; None where `wmlc ship` would take another one, or none.

    It goes by the first row of a peer, engine and precision at the smallest batch size.
    """
    key = ("peer", "engine", "precision")
    same = [other for other in record["rows"] if all(other[name] == row[name] for name in key)]
    if row["engine"] not in SHIPPED or row is not min(same, key=lambda other: other["batch"]):
        return None
    words = ["wmlc", "ship", "--run", str(run.root), "--peer", str(row["peer"]), "--engine", row["engine"]]
    words += ["--precision", row["precision"]]
    target = (record.get("settings") or {}).get("target")
    return shlex.join(words + (["--target", target] if target and row["precision"] == "int8" else []))


def described(row: Row) -> str:
    """What a network gives, in words."""
    top1 = "top-1 not measured" if row["top1"] is None else f"top-1 {row['top1']:.2f}"
    drop = "" if row["top1_drop"] is None else f" ({row['top1_drop']:.2f} below the baseline)"
    times = f"p50 {row['latency_ms']['p50']:.3g} ms, p99 {row['latency_ms']['p99']:.3g} ms"
    faster = f", {row['speedup']['median']:.2f} times as fast" if row["speedup"] else ""
    return f"{times}{faster}, {top1}{drop}, {row['file_bytes']:,} bytes, {row['macs']:,} MACs"
