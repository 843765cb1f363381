"""What `wmlc list` shows: every run and its peers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from wmlc.console import print_table, say
from wmlc.errors import InputError
from wmlc.run import RUNS, Run, all_runs, read_epochs, read_family


def print_runs(as_json: bool) -> None:
    """A line a network for each run under `runs/`; an unfinished run says how far it is."""
    runs = list(all_runs())
    if as_json:
        say(json.dumps([_record(run) for run in runs], indent=2))
        return
    if not runs:
        say(f"no runs under {RUNS}/; make one with 'wmlc train'")
        return
    rows = [row for run in runs for row in _rows(run)]
    print_table("", ["run", "network", "asked", "got", "params", "MACs", "top-1"], rows, left=2)


def _record(run: Run) -> dict[str, Any]:
    try:
        family = asdict(read_family(run))
    except InputError:
        epochs = {f"{phase}_epochs": len(read_epochs(run, phase)) for phase in ("family", "baseline")}
        return {"run": str(run.root), "finished": False, **epochs}
    return {"run": str(run.root), "finished": True} | {
        key: family.get(key) for key in ("arch", "method", "baseline", "peers", "ensemble_top1")
    }


def _rows(run: Run) -> list[list[str]]:
    try:
        family = asdict(read_family(run))
    except InputError:
        done = len(read_epochs(run, "family")), len(read_epochs(run, "baseline"))
        return [[str(run.root), f"not finished: {done[0]} epochs of the family, {done[1]} of the baseline", *[""] * 5]]
    networks = [("baseline", family["baseline"])] if family.get("baseline") else []
    networks += [(f"peer {peer['peer']}", peer) for peer in family["peers"]]
    rows = [
        [
            str(run.root), name, f"{network['ratio']:.1%}", f"{network['achieved_ratio']:.1%}",
            f"{network['params']:,}", f"{network['macs'] / 1e6:,.2f} M", f"{network['top1']:.2f}",
        ]
        for name, network in networks
    ]  # fmt: skip
    return [*rows, [str(run.root), "ensemble", "", "", "", "", f"{family['ensemble_top1']:.2f}"]]
