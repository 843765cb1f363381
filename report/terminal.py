"""What a person reads of a bench in a terminal: two tables a cell and the notes; or Markdown, CSV, JSON of the same."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wmlc import records
from wmlc.console import UNKNOWN, WIDTH, digits, ms_text, note, say, say_exactly, say_notes, scaled
from wmlc.layer_pairs import OTHER, UNBLOCKED, UNBLOCKED_WORDS, compare
from wmlc.records import Bench, Profile, Row, Scenario
from wmlc.report.budgets import budget_rows, verdict
from wmlc.report.cells import grouped_notes
from wmlc.run import BASELINE
from wmlc.stats import top1_interval
from wmlc.table import Table

SPEED = ("network", "ratio, %", "MACs", "p50 ms", "±%", "p99 ms", "speed-up", "top-1", "drop")
COST = ("network", "params", "file", "n", "load ms", "first ms", "memory", "img/s", "MACs saved", "paid out")
BUDGETS = ("network", "budget ms", "p50 ms", "% of it", "by p50")
LAYERS = ("layer", "channels", "MACs", "FLOP/byte", "ms", "times", "")
LEGEND = (
    "ratio: pruned, asked/got; ±: half the 95 % interval of p50; speed-up: median [95 % interval];",
    "top-1 in % [95 % interval by the number of test images], drop in points; n: calls that were timed;",
    "load: opening the file; first: the first inference; memory: the engine's process at most; MACs",
    "saved: times fewer than the baseline's; paid out: speed-up over that",
)
LONGEST_NAME, SHORTEST_NAME = 24, 8
SPREAD_OUT = ("latency_ms", "compute_ms", "speedup", "p50_interval")  # a CSV column for each of their fields
LEFT_OUT = ("warm_up",)  # of a CSV


def print_bench(bench: Bench, out: Path | None, shown: str) -> None:
    """A bench as `shown`: table, md, csv or json; for the latter two nothing else goes to standard output.

    Args: `out` is the file that it was written to, which the last line names; None: it could not be.
    """
    if shown == "json":
        say_exactly(records.text(bench, indent=2))
    elif shown == "csv":
        say_exactly(Table.of([_flat(row) for row in bench.rows]).csv().rstrip("\n"))
    else:
        _print_tables(bench, markdown=shown == "md")
    if out is not None:
        (note if shown in ("csv", "json") else say)(f"wrote {out}")


def _print_tables(bench: Bench, markdown: bool) -> None:
    for line in bench.inputs:
        say(f"- {line}" if markdown else textwrap.fill(line, WIDTH, subsequent_indent="  "))
    for cell in dict.fromkeys((row.engine, row.threads, row.batch, row.device) for row in bench.rows):
        engine, threads, batch, device = cell
        machine = bench.environment.gpu if device == "cuda" else bench.environment.cpu
        title = f"batch {batch}, {engine} on {machine}" + (f", threads: {threads}" if device == "cpu" else "")
        inside = [row for row in bench.rows if (row.engine, row.threads, row.batch, row.device) == cell]
        colours, images = [_colour(row) for row in inside], bench.data.test_images if bench.data else None
        found = [
            _within(WIDTH, Table(SPEED, [_speed(row, images) for row in inside], title, colours=colours)),
            Table(COST, [_cost(row) for row in inside]),
        ]
        _print_below(found, markdown)
        front = sorted(
            (row for row in inside if row.on_front), key=lambda row: row.latency_ms.p50 if row.latency_ms else 0
        )
        if front:
            say(f"\nPareto front over p50 and top-1: {', '.join(row.name for row in front)}")
        _print_below(_scenarios(inside), markdown)
        if any(not found.valid for row in inside for found in row.scenarios.values()):
            say("\n*: of too few queries for LoadGen to vouch for it; raise --seconds")
        if held := budget_rows(inside):
            _print_below([_budgets(held)], markdown)
        compute = [(row.name, row.compute_ms) for row in inside if row.compute_ms]
        if compute:
            lines = [(name, digits(each.p50), digits(each.p99), str(each.n)) for name, each in compute]
            _print_below([Table(("network", "p50 ms", "p99 ms", "n"), lines, "without transfers")], markdown)
    if bench.settings.profile:
        _print_profiles(bench.profiles, markdown)
    say("")
    for line in LEGEND:
        say(line)
    if markdown:
        say("")
    say_notes([*bench.notes, *grouped_notes(bench.rows)], markdown=markdown)


def _print_below(tables: Sequence[Table], markdown: bool) -> None:
    for table in tables:
        say("")
        table.show(markdown=markdown)


def _within(width: int, table: Table) -> Table:
    """The table with the names in its first column cut where it is wider than that."""
    excess = max(map(len, table.lines())) - width
    longest = max(len(row[0]) for row in table.rows) - max(excess, 0)
    return replace(table, rows=[(short_name(row[0], max(longest, SHORTEST_NAME)), *row[1:]) for row in table.rows])


def _speed(row: Row, images: int | None) -> tuple[str, ...]:
    """A row of the first table; `images`: how many its top-1 was measured on."""
    times, speedup, interval = row.latency_ms, row.speedup, row.p50_interval
    return (
        short_name(row.name),
        UNKNOWN if row.peer == BASELINE else f"{_percent(row.ratio)}/{_percent(row.achieved_ratio)}",
        UNKNOWN if row.macs is None else scaled(row.macs),
        digits(times.p50 if times else None),
        f"{50 * (interval.high - interval.low) / times.p50:.1f}" if interval and times else UNKNOWN,
        digits(times.p99 if times else None),
        f"{speedup.median:.2f} [{speedup.low:.2f},{speedup.high:.2f}]" if speedup else UNKNOWN,
        _top1(row.top1, images),
        _number(row.top1_drop),
    )


def _budgets(rows: Sequence[Row]) -> Table:
    """What each peer takes beside what it was cut for."""
    lines = []
    for row in rows:
        p50, budget_ms = row.latency_ms.p50 if row.latency_ms else None, row.latency_budget_ms or 0.0
        ends = row.p50_interval
        shown = digits(p50) + (f" [{digits(ends.low)},{digits(ends.high)}]" if ends else "")
        share = UNKNOWN if p50 is None else f"{100 * p50 / budget_ms:.1f}"
        lines.append((short_name(row.name), digits(budget_ms), shown, share, verdict(row) or UNKNOWN))
    return Table(BUDGETS, lines, "latency budgets")


def _cost(row: Row) -> tuple[str, ...]:
    """A row of the second table."""
    return (
        short_name(row.name),
        scaled(row.params),
        _bytes(row.file_bytes),
        f"{row.latency_ms.n}" if row.latency_ms else UNKNOWN,
        digits(row.load_ms),
        digits(row.first_ms),
        _bytes(row.peak_memory_bytes),
        digits(row.throughput_per_s),
        _number(row.mac_ratio),
        _number(row.paid_out),
    )


def _top1(top1: float | None, images: int | None) -> str:
    if top1 is None or not images:
        return _number(top1)
    low, high = top1_interval(top1, images)
    return f"{top1:.2f} [{low:.1f},{high:.1f}]"


def _bytes(count: int | None) -> str:
    return UNKNOWN if count is None else scaled(count) + "B"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def _percent(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{100 * ratio:.3g}"


def _colour(row: Row) -> str:
    """Green where a peer is faster beyond doubt, red where it is slower, yellow where neither is shown."""
    if row.peer == BASELINE or row.speedup is None:
        return ""
    return "green" if row.speedup.low > 1 else "red" if row.speedup.high < 1 else "yellow"


def _scenarios(rows: Sequence[Row]) -> list[Table]:
    """A table for each scenario of MLPerf Inference that was run."""
    tables = []
    for name in dict.fromkeys(name for row in rows for name in row.scenarios):
        results = [(row.name, row.scenarios[name]) for row in rows if name in row.scenarios]
        if name == "offline":
            columns = {"img/s": lambda found: _starred(found, found.samples_per_s)}
        elif name == "server":
            columns = {
                "held img/s": lambda found: _starred(found, found.rate_per_s),
                "failed img/s": lambda found: digits(found.failed_rate_per_s),
                "p50 ms": lambda found: digits(found.p50_ms),
                "p99 ms": lambda found: digits(found.p99_ms),
            }
        else:
            columns = {
                "p50 ms": lambda found: _starred(found, found.p50_ms),
                "p90 ms": lambda found: _starred(found, found.p90_ms),
                "p99 ms": lambda found: _starred(found, found.p99_ms),
            }
        lines = [
            (who, *(shown(found) for shown in columns.values()), str(found.n or UNKNOWN)) for who, found in results
        ]
        bound = f", p99 ≤ {results[0][1].latency_bound_ms:g} ms" if name == "server" else ""
        tables.append(Table(("network", *columns, "n"), lines, name + bound))
    return tables


def _starred(found: Scenario, value: float | None) -> str:
    return digits(value) + "*" * (value is not None and not found.valid)


def _print_profiles(profiles: Sequence[Profile], markdown: bool) -> None:
    """Baseline and peer side by side, layer by layer."""
    for own in profiles:
        cell = (own.engine, own.threads, own.batch)
        same = [p for p in profiles if (p.engine, p.threads, p.batch) == cell]
        baseline = next((p for p in same if p.peer == BASELINE), None)
        if own is baseline:
            continue
        beside = f" beside {baseline.name}" if baseline else ""
        title = f"{own.name}{beside}, {own.engine}, batch {own.batch}, threads {own.threads}"
        _print_below([layer_table(baseline or own, own, title)], markdown)
        say(f"\n{profiled_words(own)}")
    if any(layer.blocked is False for own in profiles for layer in own.layers):
        say(f"\n{UNBLOCKED}: {UNBLOCKED_WORDS}")


def layer_table(baseline: Profile, peer: Profile, title: str = "") -> Table:
    """Two profiles layer by layer, within 100 columns: the baseline's → the peer's, once where equal."""
    rows = [
        (
            short_name(pair.known.layer.removeprefix(OTHER)),
            "→".join(pair.channels(",", UNKNOWN)),
            "→".join(pair.told(lambda layer: layer.macs or None, scaled, UNKNOWN)),
            "→".join(pair.told(lambda layer: layer.intensity, lambda value: f"{value:#.3g}".rstrip("."), UNKNOWN)),
            "→".join(pair.told(lambda layer: layer.ms, lambda ms: f"{ms:.3f}" if ms < 10 else f"{ms:.1f}", UNKNOWN)),
            _number(pair.times_faster),
            "no faster" if pair.no_faster else "",
        )
        for pair in compare(baseline, peer)
    ]
    return Table(LAYERS, rows, title)


def profiled_words(profile: Profile) -> str:
    """What the profile adds up to beside the call that was timed without it, in one line."""
    said = f"{profile.name}: its layers add up to {ms_text(profile.profiled_ms)} ms"
    if not profile.p50_ms:
        return f"{said}, with what the profiler itself takes"
    return f"{said} with the profiler on, a call takes {ms_text(profile.p50_ms)} ms without it (p50)"


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """The end of a name that is longer, which tells layers and files apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _flat(row: Row) -> dict[str, Any]:
    """A row of a CSV: nested records give a column for each of their fields, notes are joined by semicolons."""
    line: dict[str, Any] = {}
    for key, value in vars(row).items():
        if key == "notes":
            line[key] = "; ".join(value)
        elif key == "scenarios":
            for name, found in value.items():
                told = {k: v for k, v in asdict(found).items() if k != "trials" and v is not None}
                line |= {f"{name}_{k}": v for k, v in told.items()}
        elif key in SPREAD_OUT:
            line |= {f"{key}_{k}": v for k, v in (asdict(value) if value else {}).items()}
        elif key not in LEFT_OUT:
            line[key] = value
    return line
