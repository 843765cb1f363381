"""What a person reads of a bench: a table a batch size, the notes, and the gates that were missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmlc.bench.config import BenchConfig
from wmlc.console import say
from wmlc.run import BASELINE

HEADER = ("network", "ratio, %", "params", "MACs", "size", "p50 ms", "p99 ms", "img/s", "speed-up", "top-1", "drop")
UNKNOWN = "-"


def print_bench(record: Mapping[str, Any], out: Path) -> None:
    """Everything in the record that a decision needs, within 100 columns."""
    environment, rows = record["environment"], record["rows"]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        say(f"\nbatch {batch}, {environment['engine']} on {environment['gpu'] or environment['cpu']}")
        for line in _aligned([HEADER, *(_cells(row) for row in rows if row["batch"] == batch)]):
            say(line)
    for row in rows:
        if row["compute_ms"]:
            inside = row["compute_ms"]
            say(
                f"{row['name']}, batch {row['batch']}, without transfers: p50 {_digits(inside['p50'])} ms, "
                f"p99 {_digits(inside['p99'])} ms, n = {inside['n']}"
            )
    say("ratio: pruned, asked/got; speed-up: median [95 % interval]; top-1 in %, drop in points")
    for note in [*record["notes"], *_grouped_notes(rows)]:
        say(f"note: {note}")
    say(f"wrote {out}")


def missed_gates(rows: Sequence[Mapping[str, Any]], config: BenchConfig) -> list[str]:
    """Each peer that missed a gate and by how much, by the median speed-up; what was not measured never passes."""
    missed, dropped = [], set()
    for row in rows:
        if row["peer"] == BASELINE:
            continue
        if config.max_drop is not None and row["name"] not in dropped:
            dropped.add(row["name"])  # top-1 is the same at every batch size
            missed += _missed_drop(row, config.max_drop)
        if config.min_speedup is not None and row["achieved_ratio"] != 0:  # an unpruned peer is as fast as it was
            missed += _missed_speedup(row, config.min_speedup)
    return missed


def _missed_drop(row: Mapping[str, Any], most: float) -> list[str]:
    drop = row["top1_drop"]
    if drop is None:
        return [f"{row['name']}: top-1 drop was not measured, so --max-drop {most:g} is not met"]
    if drop > most:
        return [f"{row['name']}: top-1 drop {drop:.2f} is above --max-drop {most:g} by {drop - most:.2g} points"]
    return []


def _missed_speedup(row: Mapping[str, Any], least: float) -> list[str]:
    name = f"{row['name']} at batch {row['batch']}"
    if row["speedup"] is None:
        return [f"{name}: speed-up was not measured, so --min-speedup {least:g} is not met"]
    median = row["speedup"]["median"]
    if median < least:
        return [f"{name}: speed-up {median:.2f} is below --min-speedup {least:g} by {least - median:.2g}"]
    return []


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    times, speedup = row["latency_ms"] or {}, row["speedup"]
    return (
        row["name"],
        UNKNOWN if row["peer"] == BASELINE else f"{_percent(row['ratio'])}/{_percent(row['achieved_ratio'])}",
        _scaled(row["params"]),
        _scaled(row["macs"]),
        _scaled(row["file_bytes"]) + "B",
        _digits(times.get("p50")),
        _digits(times.get("p99")),
        _digits(row["throughput_per_s"]),
        f"{speedup['median']:.2f} [{speedup['low']:.2f},{speedup['high']:.2f}]" if speedup else UNKNOWN,
        UNKNOWN if row["top1"] is None else f"{row['top1']:.2f}",
        UNKNOWN if row["top1_drop"] is None else f"{row['top1_drop']:.2f}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and numbers to the right, whole at any width of the terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _grouped_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each note once, after the networks that it is about, and the batch if not about all of them."""
    about: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        for note in row["notes"]:
            about.setdefault(note, {}).setdefault(row["name"], []).append(row["batch"])
    batches = len({row["batch"] for row in rows})
    everyone = {row["name"] for row in rows}
    lines = []
    for note, found in about.items():
        names = [
            name if len(at) == batches else f"{name} at batch {', '.join(map(str, at))}" for name, at in found.items()
        ]
        lines.append(f"{'all' if set(names) == everyone else ', '.join(names)}: {note}")
    return lines


def _percent(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{100 * ratio:.3g}"


def _digits(value: float | None) -> str:
    """Three significant digits or more: 0.120, 12.3, 123.4, 1,234."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:#.3g}"


def _scaled(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5 or unit == "G":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")
