"""The tables of a page: every benched row, and the scenarios' numbers. Each text has the value that it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from wmlc.console import digits, scaled
from wmlc.records import Latency, Row, Scenario
from wmlc.report.budgets import verdict
from wmlc.report.cells import TITLES, cell_of
from wmlc.report.columns import Sortable, filled, told
from wmlc.report.series import UNKNOWN, Entry, interval_text
from wmlc.run import BASELINE
from wmlc.table import Table


def benched(told_of: Callable[[Row], Sortable]) -> Callable[[Entry], Sortable]:
    """A column that only a bench fills."""
    return lambda entry: (None, UNKNOWN) if entry.row is None else told_of(entry.row)


def _points(value: float) -> str:
    return f"{value:.2f}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


def _time_ms(of: Callable[[Latency], float]) -> Callable[[Entry], Sortable]:
    return benched(lambda row: (None, UNKNOWN) if row.latency_ms is None else told(of(row.latency_ms), digits))


def _pruned(entry: Entry) -> Sortable:
    asked, got = entry.ratio, entry.achieved_ratio
    return (None, UNKNOWN) if got is None or entry.peer == BASELINE else (got, f"{asked or 0:.0%} / {got:.1%}")


def _speedup(row: Row) -> Sortable:
    return (None, UNKNOWN) if row.speedup is None else (row.speedup.median, interval_text(row.speedup))


def _front(entry: Entry) -> Sortable:
    on_front = entry.row.on_front if entry.row else None
    return (None, "") if on_front is None else (int(on_front), "yes" if on_front else "no")


COLUMNS: dict[str, Callable[[Entry], Sortable]] = {
    "run": lambda entry: told(entry.run),
    "network": lambda entry: told(entry.name),
    "pruned, asked / got": _pruned,
    "engine": benched(lambda row: (row.engine, TITLES.get(row.engine, row.engine))),
    "precision": benched(lambda row: told(row.precision)),
    "threads": benched(lambda row: told(cell_of(row).threads)),
    "batch": benched(lambda row: told(row.batch)),
    "top-1, %": lambda entry: told(entry.top1, _points),
    "drop, points": lambda entry: told(entry.top1_drop, _points),
    "p50, ms": _time_ms(lambda times: times.p50),
    "budget, ms": benched(lambda row: told(row.latency_budget_ms, digits)),
    "within it": benched(
        lambda row: (None, UNKNOWN) if row.budget_met is None else (int(row.budget_met), verdict(row))
    ),
    "speed-up [95 %]": benched(_speedup),
    "paid out": benched(lambda row: told(row.paid_out, _points)),
    "parameters": lambda entry: told(entry.params, scaled),
    "MACs": lambda entry: told(entry.macs, scaled),
    "file, B": benched(lambda row: told(row.file_bytes, scaled)),
    "p90, ms": _time_ms(lambda times: times.p90),
    "p99, ms": _time_ms(lambda times: times.p99),
    "images/s": benched(lambda row: told(row.throughput_per_s, lambda value: f"{value:,.0f}")),
    "load, ms": benched(lambda row: told(row.load_ms, _tenths)),
    "first, ms": benched(lambda row: told(row.first_ms, _tenths)),
    "peak memory, B": benched(lambda row: told(row.peak_memory_bytes, scaled)),
    "engine memory, B": benched(lambda row: told(row.engine_memory_bytes, scaled)),
    "on the front": _front,
}


def row_table(shown: Sequence[Entry], several: bool) -> Table:
    """The table of all entries, without the columns that none of them fills; the run's name only among several."""
    columns = {title: column for title, column in COLUMNS.items() if several or title != "run"}
    lines = [{title: column(entry) for title, column in columns.items()} for entry in shown]
    return filled(lines, "Every row of the bench")


def scenario_table(shown: Iterable[Entry], several: bool) -> Table | None:
    """The table of the scenarios' numbers, a row a network and cell; None where none was run."""
    titles = ("run", "network", "engine", "threads", "batch") if several else ("network", "engine", "threads", "batch")
    lines = [
        {**{title: COLUMNS[title](entry) for title in titles}, **_scenario_columns(entry.row.scenarios)}
        for entry in shown
        if entry.row and entry.row.scenarios
    ]
    return filled(lines, "Scenarios") if lines else None


def _scenario_columns(found: Mapping[str, Scenario]) -> dict[str, Sortable]:
    """What each scenario gave; a number that rests on too little is marked with a star."""
    nothing = Scenario(valid=True)
    one, several = found.get("single-stream", nothing), found.get("multi-stream", nothing)
    offline, server = found.get("offline", nothing), found.get("server", nothing)
    held = server.rate_per_s
    return {
        "single stream p50, ms": _starred(one, one.p50_ms),
        "single stream p99, ms": _starred(one, one.p99_ms),
        "multi-stream, samples a query": told(several.samples_per_query),
        "multi-stream p99, ms": _starred(several, several.p99_ms),
        "offline, samples/s": _starred(offline, offline.samples_per_s),
        "server, bound on p99, ms": told(server.latency_bound_ms, lambda value: f"{value:g}"),
        "server, queries/s that held it": (None, "none")
        if held is None and "server" in found
        else _starred(server, held),
        "server, p99 at that rate, ms": told(server.p99_ms, digits),
        "server, queries/s that failed": told(server.failed_rate_per_s, digits),
    }


def _starred(found: Scenario, value: float | None) -> Sortable:
    return told(value, lambda number: digits(number) + "*" * (not found.valid))
