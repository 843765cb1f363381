"""What a bench has to answer for once it is written: that it was not stopped, and the bounds that the caller set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wmlc.bench.cells import bench_cells
from wmlc.bench.choose import reasons_in
from wmlc.errors import GateError, InputError, Stopped
from wmlc.records import Bench, Row
from wmlc.run import BASELINE
from wmlc.settings import BUDGET, BenchSettings


def enforce(bench: Bench, out: Path) -> None:
    """Raise for a bench that was stopped (`Stopped`) or measured nothing (`InputError`), and for missed gates.

    Args: the file `out` that the bench was written to.
    """
    if stopped := unfinished(bench):
        raise Stopped(f"{stopped}; {out} has what was measured")
    if reason := nothing_measured(bench.rows):
        raise InputError(f"nothing was measured: {reason}")
    if missed := missed_gates(bench.rows, bench.settings, files=bool(bench.inputs)):
        raise GateError("; ".join(missed))


def nothing_measured(rows: Sequence[Row]) -> str | None:
    """Why there is not one number in a bench; None where there is."""
    if any(row.latency_ms or row.top1 is not None or row.scenarios for row in rows):
        return None
    return reasons_in(rows) or "there is no network in it"


def unfinished(bench: Bench) -> str | None:
    """In words, how many of its cells a bench has that was stopped; None where it has all of them."""
    done = {(row.engine, row.threads, row.batch) for row in bench.rows}
    cells = bench_cells(bench.settings, bench.environment.devices)
    return f"stopped after {len(done)} of {len(cells)} cells" if len(done) < len(cells) else None


def missed_gates(rows: Sequence[Row], settings: BenchSettings, files: bool = False) -> list[str]:
    """Each peer that missed a gate and by how much, by the median speed-up and latency; what was not measured never
    passes.

    An unpruned peer of a run is as fast as its baseline was; of `files`, none is: what one was cut from, if anything,
    is not the first of them.
    """
    missed, dropped = _missing_budgets(rows, settings), set()
    lone = all(row.peer == BASELINE for row in rows)  # a file by itself
    for row in rows:
        bound = settings.max_latency_ms
        most_ms = row.latency_budget_ms if isinstance(bound, str) else bound
        cut = files or row.achieved_ratio != 0
        if most_ms is not None and (lone or (row.peer != BASELINE and cut)):
            missed += _missed_latency(row, settings, most_ms)
        if row.peer == BASELINE:
            continue
        network = row.peer, row.precision, row.engine
        if settings.max_drop is not None and network not in dropped:
            dropped.add(network)  # top-1 is the same at every batch size, where it can be measured
            of_it = (own for own in rows if (own.peer, own.precision, own.engine) == network)
            told = next((own for own in of_it if own.top1_drop is not None), row)
            missed += _missed_drop(told, settings, settings.max_drop)
        if settings.min_speedup is not None and cut:
            missed += _missed_speedup(row, settings, settings.min_speedup)
    return missed


def _missed_drop(row: Row, settings: BenchSettings, most: float) -> list[str]:
    name, drop = _named(row, settings), row.top1_drop
    if drop is None:
        return [f"{name}: top-1 drop was not measured, so --max-drop {most:g} is not met"]
    if drop > most:
        return [f"{name}: top-1 drop {drop:.2f} is above --max-drop {most:g} by {drop - most:.2g} points"]
    return []


def _missing_budgets(rows: Sequence[Row], settings: BenchSettings) -> list[str]:
    """That no row is held against a budget where all should be."""
    if settings.max_latency_ms != BUDGET or any(row.latency_budget_ms for row in rows):
        return []
    return [f"no latency budget is of what was measured, so --max-latency-ms {BUDGET} is not met"]


def _missed_latency(row: Row, settings: BenchSettings, most_ms: float) -> list[str]:
    name, bound = _in_cell(row, settings), f"--max-latency-ms {most_ms:g}"
    if settings.max_latency_ms == BUDGET:
        bound = f"its budget of {most_ms:g} ms"
    if row.latency_ms is None:
        return [f"{name}: latency was not measured, so {bound} is not met"]
    p50 = row.latency_ms.p50
    return [f"{name}: latency {p50:.3g} ms is above {bound} by {p50 - most_ms:.2g} ms"] if p50 > most_ms else []


def _missed_speedup(row: Row, settings: BenchSettings, least: float) -> list[str]:
    name = _in_cell(row, settings)
    if row.speedup is None:
        return [f"{name}: speed-up was not measured, so --min-speedup {least:g} is not met"]
    median = row.speedup.median
    if median < least:
        return [f"{name}: speed-up {median:.2f} is below --min-speedup {least:g} by {least - median:.2g}"]
    return []


def _named(row: Row, settings: BenchSettings) -> str:
    """A row's network, and its engine where the bench has several."""
    return row.name + (f" with {row.engine}" if len(settings.engines) > 1 else "")


def _in_cell(row: Row, settings: BenchSettings) -> str:
    """A row's network, and its cell as far as the bench has several."""
    threads = f" on {row.threads} threads" if len(settings.threads) > 1 else ""
    return f"{_named(row, settings)}{threads} at batch {row.batch}"
