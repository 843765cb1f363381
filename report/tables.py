"""The tables of a report: every benched row, and the scenarios' numbers, as HTML whose headers sort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from wmlc.console import digits
from wmlc.report.series import family_rows, interval_text
from wmlc.report.summary import TITLES, UNKNOWN, Report, short

Row = Mapping[str, Any]
Cell = tuple[float | str | None, str]  # what a column is sorted by, what is shown


def number(key: str, form: str, scale: float = 1) -> Callable[[Row], Cell]:
    """The cell of a number at `key`, as Python's format `form` shows it."""

    def cell(row: Row) -> Cell:
        value = row.get(key)
        return (None, UNKNOWN) if value is None else (value, format(value * scale, form))

    return cell


def counted(key: str) -> Callable[[Row], Cell]:
    """The cell of a count or of bytes: 272 k."""
    return lambda row: (row.get(key), short(row.get(key)))


def time_ms(group: str, key: str) -> Callable[[Row], Cell]:
    """The cell of a time in milliseconds, of `row[group][key]`."""

    def cell(row: Row) -> Cell:
        value = (row.get(group) or {}).get(key)
        return (None, UNKNOWN) if value is None else (value, digits(value))

    return cell


def _words(key: str) -> Callable[[Row], Cell]:
    return lambda row: (row.get(key), UNKNOWN if row.get(key) is None else str(row[key]))


def _pruned(row: Row) -> Cell:
    asked, got = row.get("ratio"), row.get("achieved_ratio")
    return (None, UNKNOWN) if got is None or row.get("peer") == 0 else (got, f"{asked or 0:.0%} / {got:.1%}")


def _engine(row: Row) -> Cell:
    engine = row.get("engine")
    return (engine, UNKNOWN if engine is None else TITLES.get(engine, str(engine)))


def _speedup(row: Row) -> Cell:
    speedup = row.get("speedup")
    return (speedup["median"], interval_text(speedup)) if speedup else (None, UNKNOWN)


def _front(row: Row) -> Cell:
    on_front = row.get("on_front")
    return (None if on_front is None else int(on_front), "" if on_front is None else "yes" if on_front else "no")


COLUMNS: dict[str, Callable[[Row], Cell]] = {
    "run": _words("run"),
    "network": _words("name"),
    "pruned, asked / got": _pruned,
    "engine": _engine,
    "precision": _words("precision"),
    "threads": _words("threads"),
    "batch": _words("batch"),
    "top-1, %": number("top1", ".2f"),
    "drop, points": number("top1_drop", ".2f"),
    "p50, ms": time_ms("latency_ms", "p50"),
    "speed-up [95 %]": _speedup,
    "paid out": number("paid_out", ".2f"),
    "parameters": counted("params"),
    "MACs": counted("macs"),
    "file, B": counted("file_bytes"),
    "p90, ms": time_ms("latency_ms", "p90"),
    "p99, ms": time_ms("latency_ms", "p99"),
    "images/s": number("throughput_per_s", ",.0f"),
    "load, ms": number("load_ms", ",.1f"),
    "first, ms": number("first_ms", ",.1f"),
    "peak memory, B": counted("peak_memory_bytes"),
    "engine memory, B": counted("engine_memory_bytes"),
    "on the front": _front,
}


def all_rows(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """Every benched row with the name of its run; a run without a bench as its training left it."""
    return [{**row, "run": report.name} for report in reports for row in report.rows or family_rows(report)]


def row_table(rows: Sequence[Row], several: bool) -> str:
    """The table of `rows`, without the columns that none of them fills; the run's name only among several."""
    columns = {title: cell for title, cell in COLUMNS.items() if several or title != "run"}
    return table([{title: cell(row) for title, cell in columns.items()} for row in rows], "Every row of the bench")


def scenario_table(rows: Sequence[Row], several: bool) -> str:
    """The table of the scenarios' numbers, a row a network and cell; empty where none was run."""
    shown = [row for row in rows if row.get("scenarios")]
    keys = ("run", "network", "engine", "threads", "batch") if several else ("network", "engine", "threads", "batch")
    lines = [{**{key: COLUMNS[key](row) for key in keys}, **_scenario_cells(row["scenarios"])} for row in shown]
    return table(lines, "Scenarios") if lines else ""


def _scenario_cells(found: Row) -> dict[str, Cell]:
    """What each scenario gave; a number that rests on too little is marked with a star."""
    one, several = found.get("single-stream") or {}, found.get("multi-stream") or {}
    offline, server = found.get("offline") or {}, found.get("server") or {}
    bound = server.get("latency_bound_ms")
    held, together = server.get("rate_per_s"), several.get("samples_per_query")
    return {
        "single stream p50, ms": _scenario_cell(one, "p50_ms"),
        "single stream p99, ms": _scenario_cell(one, "p99_ms"),
        "multi-stream, samples a query": (together, UNKNOWN if together is None else str(together)),
        "multi-stream p99, ms": _scenario_cell(several, "p99_ms"),
        "offline, samples/s": _scenario_cell(offline, "samples_per_s"),
        "server, bound on p99, ms": (bound, UNKNOWN if bound is None else f"{bound:g}"),
        "server, queries/s that held it": (
            (held, digits(held)) if held is not None else (None, "none" if server else UNKNOWN)
        ),
        "server, p99 at that rate, ms": _scenario_cell(server, "p99_ms"),
        "server, queries/s that failed": _scenario_cell(server, "failed_rate_per_s"),
    }


def _scenario_cell(found: Row, key: str) -> Cell:
    value = found.get(key)
    return (None, UNKNOWN) if value is None else (value, digits(value) + "*" * (found.get("valid") is False))


def table(lines: Sequence[Mapping[str, Cell]], caption: str) -> str:
    """HTML of `lines`, each by column title; columns that hold nothing are left out."""
    titles = [title for title in lines[0] if any(line[title][1] not in ("", UNKNOWN) for line in lines)]
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(title)}</button></th>' for title in titles
    )
    body = "".join(f"<tr>{''.join(_cell(line[title]) for title in titles)}</tr>" for line in lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    value, shown = cell
    kind = "" if isinstance(value, str) else ' class="number"'
    return f'<td{kind} data-sort="{escape("" if value is None else str(value))}">{escape(shown)}</td>'
