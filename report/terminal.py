"""What a person reads of a bench in a terminal: two tables a cell and the notes; or Markdown, CSV, JSON of the same."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmlc.bench.profile import profile_table, profiled_words, short_name
from wmlc.console import UNKNOWN, digits, note, say, scaled
from wmlc.run import BASELINE

SPEED = ("network", "ratio, %", "params", "MACs", "p50 ms", "±%", "p99 ms", "n", "speed-up", "top-1", "drop")
COST = ("network", "file", "load ms", "first ms", "memory", "img/s", "MACs saved", "paid out")
LEGEND = (
    "ratio: pruned, asked/got; ±: half the 95 % interval of p50; speed-up: median [95 % interval];",
    "top-1 in %, drop in points; load: opening the file; first: the first inference; memory: the engine's",
    "process at most; MACs saved: times fewer than the baseline's; paid out: speed-up over that",
)
WIDTH = 100  # columns
UNITS = ("latency_ms", "compute_ms", "speedup", "p50_interval")  # nested records, a CSV column for each field

Row = Mapping[str, Any]


def print_bench(record: Mapping[str, Any], out: Path, shown: str) -> None:
    """The record as `shown`: table, md, csv or json; for the latter two nothing else goes to standard output."""
    if shown == "json":
        say(json.dumps(record, indent=2))
    elif shown == "csv":
        say(as_csv(record["rows"]).rstrip("\n"))
    else:
        _print_tables(record, markdown=shown == "md")
    (note if shown in ("csv", "json") else say)(f"wrote {out}")


def _print_tables(record: Mapping[str, Any], markdown: bool) -> None:
    environment, rows = record["environment"], record["rows"]
    cells = dict.fromkeys((row["engine"], row["threads"], row["batch"], row["device"]) for row in rows)
    for engine, threads, batch, device in cells:
        machine = environment["gpu"] if device == "cuda" else environment["cpu"]
        title = f"batch {batch}, {engine} on {machine}" + (f", threads: {threads}" if device == "cpu" else "")
        _head(title, markdown)
        inside = [r for r in rows if (r["engine"], r["threads"], r["batch"]) == (engine, threads, batch)]
        print_aligned(SPEED, [speed_cells(row) for row in inside], markdown, [_colour(row) for row in inside])
        say("")
        print_aligned(COST, [cost_cells(row) for row in inside], markdown)
        front = sorted((row for row in inside if row["on_front"]), key=lambda row: row["latency_ms"]["p50"])
        if front:
            say(f"\nPareto front over p50 and top-1: {', '.join(row['name'] for row in front)}")
        _print_scenarios(inside, markdown)
        compute = [(row["name"], row["compute_ms"]) for row in inside if row["compute_ms"]]
        if compute:
            _head("without transfers", markdown)
            lines = [(name, digits(each["p50"]), digits(each["p99"]), str(each["n"])) for name, each in compute]
            print_aligned(("network", "p50 ms", "p99 ms", "n"), lines, markdown)
    if record["settings"]["profile"]:
        _print_profiles(record["profiles"], markdown)
    say("")
    for line in LEGEND:
        say(line)
    if markdown:
        say("")
    for line in [*record["notes"], *grouped_notes(rows)]:
        say(f"- {line}" if markdown else textwrap.fill(f"note: {line}", WIDTH, subsequent_indent="      "))


def _head(title: str, markdown: bool) -> None:
    """A line above a table; a Markdown table needs an empty line before it."""
    say(f"\n**{title}**\n" if markdown else f"\n{title}")


def speed_cells(row: Row) -> tuple[str, ...]:
    """A row of the first table."""
    times, speedup, interval = row["latency_ms"] or {}, row["speedup"], row["p50_interval"]
    return (
        short_name(row["name"]),
        UNKNOWN if row["peer"] == BASELINE else f"{_percent(row['ratio'])}/{_percent(row['achieved_ratio'])}",
        scaled(row["params"]),
        scaled(row["macs"]),
        digits(times.get("p50")),
        f"{50 * (interval['high'] - interval['low']) / times['p50']:.1f}" if interval else UNKNOWN,
        digits(times.get("p99")),
        f"{times['n']}" if times else UNKNOWN,
        f"{speedup['median']:.2f} [{speedup['low']:.2f},{speedup['high']:.2f}]" if speedup else UNKNOWN,
        UNKNOWN if row["top1"] is None else f"{row['top1']:.2f}",
        UNKNOWN if row["top1_drop"] is None else f"{row['top1_drop']:.2f}",
    )


def cost_cells(row: Row) -> tuple[str, ...]:
    """A row of the second table."""
    return (
        short_name(row["name"]),
        scaled(row["file_bytes"]) + "B",
        digits(row["load_ms"]),
        digits(row["first_ms"]),
        UNKNOWN if row["peak_memory_bytes"] is None else scaled(row["peak_memory_bytes"]) + "B",
        digits(row["throughput_per_s"]),
        UNKNOWN if row["mac_ratio"] is None else f"{row['mac_ratio']:.2f}",
        UNKNOWN if row["paid_out"] is None else f"{row['paid_out']:.2f}",
    )


def _print_scenarios(rows: Sequence[Row], markdown: bool) -> None:
    """A table for each scenario of MLPerf Inference that was run."""
    for name in dict.fromkeys(name for row in rows for name in row["scenarios"]):
        results = [(row, row["scenarios"][name]) for row in rows if name in row["scenarios"]]
        _head(name + (f", p99 ≤ {results[0][1]['latency_bound_ms']:g} ms" if name == "server" else ""), markdown)
        if name == "offline":
            cells = [(row["name"], _starred(found, "samples_per_s"), str(found["n"])) for row, found in results]
            print_aligned(("network", "img/s", "n"), cells, markdown)
        elif name == "server":
            rates = [
                (row["name"], _starred(found, "rate_per_s"),
                 *(digits(found[key]) for key in ("failed_rate_per_s", "p50_ms", "p99_ms")), str(found["n"] or UNKNOWN))
                for row, found in results
            ]  # fmt: skip
            print_aligned(("network", "held img/s", "failed img/s", "p50 ms", "p99 ms", "n"), rates, markdown)
        else:
            times = [
                (row["name"], *(_starred(found, key) for key in ("p50_ms", "p90_ms", "p99_ms")), str(found["n"]))
                for row, found in results
            ]
            print_aligned(("network", "p50 ms", "p90 ms", "p99 ms", "n"), times, markdown)

    if any(found.get("valid") is False for row in rows for found in row["scenarios"].values()):
        say("\n*: of too few queries for LoadGen to vouch for it; raise --seconds")


def _starred(found: Row, key: str) -> str:
    return digits(found[key]) + ("*" if found.get("valid") is False and found[key] is not None else "")


def _print_profiles(profiles: Sequence[Mapping[str, Any]], markdown: bool) -> None:
    """Baseline and peer side by side, layer by layer."""
    for own in profiles:
        same = [p for p in profiles if all(p[key] == own[key] for key in ("engine", "threads", "batch"))]
        baseline = next((p for p in same if p["peer"] == BASELINE), None)
        if own is baseline:
            continue
        beside = f" beside {baseline['name']}" if baseline else ""
        _head(f"{own['name']}{beside}, {own['engine']}, batch {own['batch']}, threads {own['threads']}", markdown)
        print_aligned(*profile_table(baseline or own, own), markdown)
        say(f"\n{profiled_words(own)}")


def as_csv(rows: Sequence[Row]) -> str:
    """A line a row; nested records give a column for each of their fields, notes are joined by semicolons."""
    flat = []
    for row in rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if key == "notes":
                line[key] = "; ".join(value)
            elif key == "scenarios":
                line |= {f"{name}_{k}": v for name, found in value.items() for k, v in found.items() if k != "trials"}
            elif key in UNITS:
                line |= {f"{key}_{k}": v for k, v in (value or {}).items()}
            elif not isinstance(value, dict):
                line[key] = value
        flat.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in flat for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def print_aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool, colours: Sequence[str] = ()
) -> None:
    """Lines with the first column to the left and numbers to the right, whole at any width of the terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(r, widths, strict=True))
        ]
        for r in [header, *rows]
    ]
    if markdown:
        rule = ["-" * width if i == 0 else "-" * max(width - 1, 1) + ":" for i, width in enumerate(widths)]
        for line in [lines[0], rule, *lines[1:]]:
            say(f"| {' | '.join(line)} |")
        return
    for line, colour in zip(lines, ["bold", *(colours or [""] * len(rows))], strict=True):
        say("  ".join(line).rstrip(), colour)


def _colour(row: Row) -> str:
    """Green where a peer is faster beyond doubt, red where it is slower, yellow where neither is shown."""
    speedup = row["speedup"]
    if row["peer"] == BASELINE or speedup is None:
        return ""
    return "green" if speedup["low"] > 1 else "red" if speedup["high"] < 1 else "yellow"


def grouped_notes(rows: Sequence[Row]) -> list[str]:
    """Each note once, after the networks that it is about, and the cells if not about all of them."""
    about: dict[str, dict[str, list[str]]] = {}
    cells = dict.fromkeys(_cell(row) for row in rows)
    for row in rows:
        for line in row.get("notes") or []:
            about.setdefault(line, {}).setdefault(str(row["name"]), []).append(_cell(row))
    everyone = {str(row["name"]) for row in rows}
    shown = _shortest({cell: cell.split(", ") for cell in cells})
    lines = []
    for line, found in about.items():
        names = [
            name if len(at) == len(cells) else f"{name} ({' and '.join(shown[cell] for cell in at)})"
            for name, at in found.items()
        ]
        lines.append(f"{'all' if set(names) == everyone else ', '.join(names)}: {line}")
    return lines


def _cell(row: Row) -> str:
    return f"{row.get('engine')}, threads {row.get('threads')}, batch {row.get('batch')}"


def _shortest(cells: Mapping[str, list[str]]) -> dict[str, str]:
    """Each cell by the parts in which cells differ: "batch 8" where all are of one engine and as many threads."""
    varying = [i for i in range(3) if len({parts[i] for parts in cells.values()}) > 1]
    return {cell: ", ".join(parts[i] for i in varying) for cell, parts in cells.items()}


def _percent(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{100 * ratio:.3g}"
