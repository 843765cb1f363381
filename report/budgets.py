"""Latency budgets as people read them: what peers were cut for, what came of it, and whether a bench finds them met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from wmlc.console import digits, scaled
from wmlc.records import LatencyPlan, PeerLatency, Row
from wmlc.report.cells import cell_of
from wmlc.report.columns import Sortable, filled, told
from wmlc.report.runs import TrainedRun
from wmlc.report.series import UNKNOWN
from wmlc.run import peer_name
from wmlc.table import Table


def verdict(row: Row) -> str:
    """Whether a peer takes no more than its budget, by p50: met, missed, and where its interval does not show which."""
    if row.latency_budget_ms is None or row.budget_met is None:
        return ""
    word = "met" if row.budget_met else "missed"
    return f"{word}, not for sure" if _unsure(row) else word


def _unsure(row: Row) -> bool:
    """Whether the budget lies within the interval of p50."""
    interval, budget_ms = row.p50_interval, row.latency_budget_ms
    return interval is not None and budget_ms is not None and interval.holds(budget_ms)


def budget_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that are held against a budget."""
    return [row for row in rows if row.latency_budget_ms is not None]


def kept_words(run: TrainedRun) -> Iterator[str]:
    """A sentence on how many budgets the bench of a run found met; none where it has none."""
    held = [row for row in budget_rows(run.rows) if row.budget_met is not None]
    if held:
        met = sum(bool(row.budget_met) for row in held)
        many = (
            f"{met} of {len(held)} latency budgets are"
            if len(held) > 1
            else f"Its latency budget is{' not' * (not met)}"
        )
        unsure = sum(map(_unsure, held))
        few = str(unsure) if unsure < len(held) else "all" if unsure > 1 else "it"
        near = f" by p50, and {few} lie{'s' * (unsure == 1)} within its 95 % interval" if unsure else ""
        yield f"{many} met{near} ({cell_of(held[0]).words})."


def plan_words(runs: Sequence[TrainedRun]) -> list[str]:
    """What the budgets of each run are for, and what the table's columns mean."""
    words = [
        f"{run.name}: milliseconds a call in {plan.at.words} on {plan.at.gpu or plan.at.cpu}, where the unpruned "
        f"network takes {digits(plan.full_ms)} ms. Its ratios are shares of these milliseconds."
        for run in runs
        if (plan := run.family.latency)
    ]
    words.append(
        "Predicted by the table of layers; measured of the whole network before its training; paid out: speed-up over "
        "the saving of MACs; cut by MACs: what a uniform cut of as large a share of the MACs takes."
    )
    if not any(budget_rows(run.rows) for run in runs):
        words.append("No bench has held a peer against its budget yet; 'wmlc bench' in this engine does.")
    return words


def plan_table(runs: Sequence[TrainedRun], several: bool) -> Table:
    """A row a peer that was cut for a latency; the run's name only among several."""
    lines = [_line(run, plan, own) for run in runs if (plan := run.family.latency) for own in plan.peers]
    if not several:
        for line in lines:
            del line["run"]
    return filled(lines, "Latency budgets")


def _line(run: TrainedRun, plan: LatencyPlan, own: PeerLatency) -> dict[str, Sortable]:
    peer = next(peer for peer in run.family.peers if peer.peer == own.peer)
    benched = next((row for row in budget_rows(run.rows) if row.peer == own.peer), None)
    met = None if benched is None else benched.budget_met
    bounded = own.peer in plan.budgets_ms
    kept, faster = peer.macs / run.family.full.macs, plan.full_ms / own.ms
    return {
        "run": told(run.name),
        "network": told(peer_name(own.peer)),
        "budget, ms": told(own.budget_ms, digits) if bounded else (None, "none"),
        "predicted, ms": told(own.predicted_ms, digits),
        "measured, ms [95 %]": (own.ms, f"{digits(own.ms)} [{digits(own.low)}, {digits(own.high)}]"),
        "of the budget": told(own.ms / own.budget_ms if bounded else None, "{:.1%}".format),
        "speed-up": told(faster, "{:.2f}".format),
        "MACs": told(peer.macs, scaled),
        "of all MACs": told(kept, "{:.1%}".format),
        "paid out": told(faster * kept, "{:.2f}".format),
        "cut by MACs, ms": told(own.macs_cut_ms, digits),
        "benched, ms": told(benched.latency_ms.p50 if benched and benched.latency_ms else None, digits),
        "within it": told(None if met is None else int(met), lambda _: verdict(benched) if benched else UNKNOWN),
    }


def planned_words(group: Sequence[TrainedRun]) -> str | None:
    """Of runs of one configuration, what their peers were cut for and took before their training; None: no latency.

    The median over the runs.
    """
    plans = [plan for run in group if (plan := run.family.latency)]
    if not plans:
        return None
    peers = []
    for alike in zip(*(plan.peers for plan in plans), strict=True):
        of = f" of {digits(median(own.budget_ms for own in alike))}" if alike[0].peer in plans[0].budgets_ms else ""
        peers.append(f"{peer_name(alike[0].peer)} {digits(median(own.ms for own in alike))}{of}")
    full_ms = digits(median(plan.full_ms for plan in plans))
    return (
        f"ratios are of latency in {plans[0].at.words}, where the unpruned network takes {full_ms} ms; measured before "
        f"training, ms: {', '.join(peers)}"
    )
