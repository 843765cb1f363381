"""Bounds on what was measured, and who misses them by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wmlc.bench.config import BenchConfig
from wmlc.run import BASELINE


def missed_gates(rows: Sequence[Mapping[str, Any]], config: BenchConfig) -> list[str]:
    """Each peer that missed a gate and by how much, by the median speed-up; what was not measured never passes."""
    missed, dropped = [], set()
    for row in rows:
        if row["peer"] == BASELINE:
            continue
        network = row["peer"], row["precision"], row["engine"]
        if config.max_drop is not None and network not in dropped:
            dropped.add(network)  # top-1 is the same at every batch size
            missed += _missed_drop(row, config)
        if config.min_speedup is not None and row["achieved_ratio"] != 0:  # an unpruned peer is as fast as it was
            missed += _missed_speedup(row, config)
    return missed


def place(row: Mapping[str, Any], config: BenchConfig) -> str:
    """A row's network, and of engine and threads what the bench has several of."""
    engine = f" with {row['engine']}" if len(config.engines) > 1 else ""
    return f"{row['name']}{engine}" + (f" on {row['threads']} threads" if len(config.threads) > 1 else "")


def _missed_drop(row: Mapping[str, Any], config: BenchConfig) -> list[str]:
    drop, most = row["top1_drop"], config.max_drop
    assert most is not None
    name = row["name"] + (f" with {row['engine']}" if len(config.engines) > 1 else "")
    if drop is None:
        return [f"{name}: top-1 drop was not measured, so --max-drop {most:g} is not met"]
    if drop > most:
        return [f"{name}: top-1 drop {drop:.2f} is above --max-drop {most:g} by {drop - most:.2g} points"]
    return []


def _missed_speedup(row: Mapping[str, Any], config: BenchConfig) -> list[str]:
    least = config.min_speedup
    assert least is not None
    name = f"{place(row, config)} at batch {row['batch']}"
    if row["speedup"] is None:
        return [f"{name}: speed-up was not measured, so --min-speedup {least:g} is not met"]
    median = row["speedup"]["median"]
    if median < least:
        return [f"{name}: speed-up {median:.2f} is below --min-speedup {least:g} by {least - median:.2g}"]
    return []
