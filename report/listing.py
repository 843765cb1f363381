"""What `wmlc list` shows: every run and its peers, or the networks that a name finds."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from wmlc.console import UNKNOWN, digits, say, say_exactly
from wmlc.errors import InputError
from wmlc.records import Baseline, Family, Network, PeerLatency
from wmlc.report.cost import amount_text, in_epochs
from wmlc.run import RUNS, Run, all_runs, read_epochs, read_family
from wmlc.table import Table

HEADER = ("run", "network", "asked", "got", "params", "MACs", "top-1", "cost", "min")
NETWORKS = ("network", "from", "params", "pretrained")
LONGEST = 100  # letters of why a run cannot be read; reading it alone tells the whole


def print_runs(as_json: bool) -> None:
    """A line a network for each run under `runs/`; an unfinished one says how far it is, a damaged one why.

    What training all peers took (`cost` in epochs of the unpruned network, `min`utes) stands beside their ensemble.
    """
    runs = list(all_runs())
    if as_json:
        say_exactly(json.dumps([_record(run) for run in runs], indent=2))
    elif not runs:
        say(f"no runs under {RUNS}/; make one with 'wmlc train'")
    else:
        Table(HEADER, [row for run in runs for row in _rows(run)], words=2).show()


def print_networks(found: Sequence[tuple[str, str, int | None, bool]], as_json: bool) -> None:
    """A line a network: its name for --arch, whose it is, its parameters where known, whether it can be had trained."""
    if as_json:
        say_exactly(json.dumps([dict(zip(NETWORKS, each, strict=True)) for each in found], indent=2))
    elif not found:
        say("no network has that in its name; shorter texts find more, an own one is FILE.py:FACTORY")
    else:
        rows = [[name, whose, f"{n:,}" if n else "", "yes" if has else "no"] for name, whose, n, has in found]
        Table(NETWORKS, rows, words=2).show()


def _read(run: Run) -> Family | dict[str, int]:
    """The family of a finished run, else how many epochs of each phase are done; `InputError` where it is damaged."""
    if run.family.exists():
        return read_family(run)
    return {phase: len(read_epochs(run, phase)) for phase in ("family", "baseline")}


def _record(run: Run) -> dict[str, Any]:
    try:
        found = _read(run)
    except InputError as error:
        return {"run": str(run.root), "finished": False, "damaged": str(error)}
    if isinstance(found, dict):
        return {"run": str(run.root), "finished": False, **{f"{phase}_epochs": n for phase, n in found.items()}}
    family = asdict(found)
    shown = ("arch", "method", "baseline", "peers", "ensemble_top1", "seconds", "training_macs", "latency")
    cost = in_epochs(found.training_macs, found)
    return {"run": str(run.root), "finished": True, **{key: family[key] for key in shown}, "cost_epochs": cost}


def _rows(run: Run) -> list[list[str]]:
    root = str(run.root)
    try:
        found = _read(run)
    except InputError as error:
        reason = textwrap.shorten(str(error).removeprefix(f"{root}/"), LONGEST, placeholder=" …")
        return [[root, f"damaged: {reason}", *[""] * 7]]
    if isinstance(found, dict):
        done = f"{found['family']} epochs of the family, {found['baseline']} of the baseline"
        return [[root, f"not finished: {done}", *[""] * 7]]
    plan = found.latency
    planned = {own.peer: (own, plan.budgets_ms.get(own.peer)) for own in plan.peers} if plan else {}
    named = [("baseline", found.baseline)] if found.baseline else []
    rows = [
        [
            root, name, *_pruned(network, *planned.get(network.peer, (None, None))), f"{network.params:,}",
            f"{network.macs / 1e6:,.2f} M", f"{network.top1:.2f}",
            *(_took(network, found) if isinstance(network, Baseline) else ("", "")),
        ]
        for name, network in [*named, *((f"peer {peer.peer}", peer) for peer in found.peers)]
    ]  # fmt: skip
    return [*rows, [root, "ensemble", "", "", "", "", f"{found.ensemble_top1:.2f}", *_took(found, found)]]


def _pruned(network: Network, planned: PeerLatency | None, budget_ms: float | None) -> tuple[str, str]:
    """What was asked of a network and what it came to: the share that went or, of peers cut for one, a latency."""
    if planned is None:
        return f"{network.ratio:.1%}", f"{network.achieved_ratio:.1%}"
    return UNKNOWN if budget_ms is None else f"{digits(budget_ms)} ms", f"{digits(planned.ms)} ms"


def _took(trained: Family | Baseline, family: Family) -> tuple[str, str]:
    """What training took: in epochs of the unpruned network, where that was counted, and in minutes."""
    cost = in_epochs(trained.training_macs, family)
    return UNKNOWN if cost is None else amount_text(cost), amount_text(trained.seconds / 60)
