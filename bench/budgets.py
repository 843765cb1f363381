"""The latency that each peer of a run was cut for: which rows of a bench it holds for, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wmlc.bench.cells import Cell, bench_cells
from wmlc.bench.config import BenchConfig
from wmlc.errors import InputError
from wmlc.records import EngineAt, Environment, Interval, Latency, LatencyPlan, Row
from wmlc.run import Run, read_family
from wmlc.settings import BUDGET

NOISY = 0.03  # half an interval, relatively, from which on the machine is to blame
DRIFT = 0.02  # of the unpruned network's latency since it was planned, that a missed budget may be due to


def check_budgets(run: Run, config: BenchConfig, devices: Mapping[str, str]) -> None:
    """Raise `InputError` where a bench of `run` shall fail by its budgets and could not know them.

    Args: the device of each engine.
    """
    if config.max_latency_ms != BUDGET:
        return
    plan = read_family(run).latency
    if plan is None or not plan.budgets_ms:
        raise InputError(
            f"the peers of {run.root} were not cut for a latency; give --max-latency-ms a number of milliseconds"
        )
    cells = bench_cells(config, devices)
    if not any(is_planned_for(plan.at, cell, precision) for cell in cells for precision in config.precisions):
        at = plan.at
        raise InputError(
            f"the latency budgets of {run.root} are for {at.words}, which is not among what shall be measured; ask for "
            f"--engine {at.engine} --precision {at.precision} --threads {at.threads} --batch {at.batch} --device "
            f"{at.device}, or give --max-latency-ms a number of milliseconds"
        )


def is_planned_for(at: EngineAt, cell: Cell, precision: str) -> bool:
    """Whether latencies `at` that engine are of networks in this cell and precision; a GPU's know no threads."""
    return (at.engine, at.device, at.batch, at.precision) == (cell.engine, cell.device, cell.batch, precision) and (
        at.threads == cell.threads or at.device != "cpu"
    )


def budget_of(plan: LatencyPlan | None, cell: Cell, peer: int, precision: str) -> float | None:
    """The milliseconds that a peer may take in a cell; None where it was planned for none, or for another cell."""
    return plan.budgets_ms.get(peer) if plan and is_planned_for(plan.at, cell, precision) else None


def budget_notes(
    budget_ms: float | None, times: Latency | None, interval: Interval | None, full_ms: float | None,
    plan: LatencyPlan | None,
) -> list[str]:  # fmt: skip
    """Of a peer, that it misses its budget, or that its interval does not show whether it does.

    Args: the median latency `full_ms` of the unpruned network in the same cell and precision.
    """
    if budget_ms is None or times is None or plan is None:
        return []
    missed, unsure = times.p50 > budget_ms, interval is not None and interval.holds(budget_ms)
    if not missed and not unsure:
        return []
    shown = f"p50 {times.p50:.3g} ms" + (f" [{interval.low:.3g}, {interval.high:.3g}]" if interval else "")
    if unsure:
        verdict = "missed" if missed else "met"
        said = f"its {shown} cannot be told apart from its latency budget of {budget_ms:.3g} ms, {verdict} by p50 alone"
    else:
        said = f"misses its latency budget of {budget_ms:.3g} ms: {shown}"
    if missed and full_ms and full_ms > (1 + DRIFT) * plan.full_ms:
        said += f"; the unpruned network takes {full_ms / plan.full_ms:.2f} times as long as when it was planned"
    return [said + (noise_words(interval.low, interval.high) if unsure and interval else "")]


def noise_words(low: float, high: float) -> str:
    """What to do about an interval that shows nothing, where the machine is to blame."""
    noisy = high / low > (1 + NOISY) ** 2
    return "; the machine was too noisy: close other programs, or raise --seconds" if noisy else ""


def planned_notes(plan: LatencyPlan | None, rows: Sequence[Row], environment: Environment) -> list[str]:
    """What the budgets of a run are for, once, where some of its rows or this machine are of something else."""
    if plan is None or not plan.budgets_ms:
        return []
    notes, at = [], plan.at
    if any(row.peer in plan.budgets_ms and row.latency_budget_ms is None for row in rows):
        notes.append(f"latency budgets are for {at.words}; other cells are not held against them")
    here = environment.gpu if at.device == "cuda" else environment.cpu
    there = at.gpu if at.device == "cuda" else at.cpu
    if here is not None and here != there:
        notes.append(f"latency budgets were planned on {there}, and this is {here}")
    return notes
