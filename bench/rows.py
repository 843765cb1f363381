"""What was found, as the rows of `bench.json`: a cell that was not measured is null, with its reason in the notes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wmlc.bench import intervals, measure
from wmlc.bench.cells import Cell, Found
from wmlc.bench.config import BenchConfig
from wmlc.bench.subjects import Key, Subject
from wmlc.files import sha256
from wmlc.records import Latency, Speedup, WarmUp
from wmlc.run import BASELINE

FEW_CALLS = 1000  # below this a 99th percentile rests on fewer than 10 calls
TOP1_APART = 0.5  # points between this bench's top-1 and the training's that need a word
BUSY = 0.5  # load average a core
NOISY = 0.03  # half an interval, relatively, from which on the machine is to blame
ALIKE = 0.01  # networks whose MACs differ by less are not expected to differ


def make_rows(
    cell: Cell, subjects: Sequence[Subject], found: Found, top1: Mapping[Key, float], config: BenchConfig
) -> list[dict[str, Any]]:
    """The rows of one cell. Args: `top1` of each network through this engine, percent, from whichever cell has it."""
    baseline_key = (BASELINE, subjects[0].precision)
    baseline = next((subject for subject in subjects if subject.key == baseline_key), None)
    return [_make_row(cell, subject, baseline, found, top1, config) for subject in subjects]


def _make_row(
    cell: Cell, subject: Subject, baseline: Subject | None, found: Found, top1: Mapping[Key, float], config: BenchConfig
) -> dict[str, Any]:
    key, about, cost = subject.key, subject.about, subject.cost
    bursts = None if key in found.failures else found.bursts.get(key)
    times = measure.latency(np.concatenate([burst for launch in bursts for burst in launch])) if bursts else None
    speedup = _speedup(subject, baseline, found, config.seed)
    mac_ratio = baseline.cost.macs / cost.macs if baseline else None
    memory, compute = found.memory.get(key), found.compute.get(key)
    difference, own_top1 = found.parity.get(key), top1.get(key)
    baseline_top1 = top1.get(baseline.key) if baseline else None
    opened = found.opened.get(key, [])
    return {
        "peer": subject.peer,
        "name": subject.name,
        "ratio": about.ratio,
        "achieved_ratio": about.achieved_ratio,
        "engine": cell.engine,
        "precision": opened[0].precision or subject.precision if opened else subject.precision,
        "threads": cell.threads,
        "batch": cell.batch,
        "device": cell.device,
        "provider": opened[0].provider if opened else None,
        "params": cost.params,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "mac_ratio": mac_ratio,
        "file_bytes": subject.weights.stat().st_size + subject.more_bytes,
        "file_sha256": sha256(subject.weights),
        "latency_ms": asdict(times) if times else None,
        "p50_interval": _p50_interval(bursts, config.seed) if bursts else None,
        "compute_ms": asdict(measure.latency(compute)) if compute is not None else None,
        "throughput_per_s": 1e3 * cell.batch / times.mean if times else None,
        "speedup": asdict(speedup) if speedup else None,
        "paid_out": speedup.median / mac_ratio if speedup and mac_ratio else None,
        "load_ms": float(np.median([each.load_ms for each in opened])) if times else None,
        "first_ms": float(np.median(found.first_ms[key])) if times else None,
        "peak_memory_bytes": memory.peak if memory and times else None,
        "engine_memory_bytes": memory.peak - memory.before if memory and times else None,
        "top1": own_top1,
        "top1_drop": baseline_top1 - own_top1 if own_top1 is not None and baseline_top1 is not None else None,
        "scenarios": found.scenarios.get(key, {}),
        "warm_up": asdict(found.warm_ups[key][-1]) if times else None,
        "logits_apart": difference if difference is not None and np.isfinite(difference) else None,
        "on_front": None,
        "notes": [
            *_missing_notes(subject, baseline, found, config, times, own_top1),
            *_speed_notes(subject == baseline, times, speedup, found.warm_ups.get(key, [])),
            *found.lacking.get(key, []),
            *(_top1_notes(own_top1, about.top1) if subject.precision == "fp32" else []),
        ],
    }  # fmt: skip


def _speedup(subject: Subject, baseline: Subject | None, found: Found, seed: int) -> Speedup | None:
    """Against the baseline's bursts of the same rounds; the baseline's own is 1 by definition."""
    if baseline is None or {subject.key, baseline.key} & found.failures.keys():
        return None
    return intervals.speedup(found.bursts[baseline.key], found.bursts[subject.key], seed)


def _p50_interval(bursts: Sequence[Sequence[np.ndarray]], seed: int) -> dict[str, float]:
    low, high = intervals.median_interval(intervals.burst_medians(bursts), seed)
    return {"low": low, "high": high}


def _missing_notes(
    subject: Subject,
    baseline: Subject | None,
    found: Found,
    config: BenchConfig,
    times: Latency | None,
    top1: float | None,
) -> list[str]:
    """Why cells are null."""
    reason, notes = found.failures.get(subject.key), []
    missing = ["times and speed-up"] if times is None else []
    missing += ["top-1"] if top1 is None and config.accuracy and reason else []
    if missing:
        notes.append(f"{' and '.join(missing)} not measured: {reason}")
    elif top1 is None and config.accuracy:
        notes.append("top-1 and its drop not measured: there is no data set; name one with --data")
    if not config.accuracy:
        notes.append("top-1 and its drop not measured: the accuracy was switched off")
    if baseline is None:
        notes.append("speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none")
    elif baseline.key in found.failures and subject != baseline:
        notes.append(f"no comparison with the baseline where that has no number: {found.failures[baseline.key]}")
    return notes


def _speed_notes(
    is_baseline: bool,
    times: Latency | None,
    speedup: Speedup | None,
    warm_ups: Sequence[WarmUp],
) -> list[str]:
    notes = []
    if times and not all(warm.settled for warm in warm_ups):
        notes.append("the times had not settled when the warm-up ended; close other programs, or raise --seconds")
    if times and times.n < FEW_CALLS:
        notes.append(f"p99 rests on fewer than {FEW_CALLS:,} calls; raise --seconds for a firm one")
    if speedup and not is_baseline and speedup.low <= 1:
        shown = f"speed-up {speedup.median:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
        slower = "slower than the baseline" if speedup.high < 1 else "not shown to be faster than the baseline"
        notes.append(f"{slower}: {shown}")
    return notes


def _top1_notes(top1: float | None, trained: float | None) -> list[str]:
    if top1 is None or trained is None or abs(top1 - trained) <= TOP1_APART:
        return []
    return [f"top-1 is {top1:.2f} here and was {trained:.2f} after training; are these the same test images?"]


def indistinct_notes(cell: Cell, subjects: Sequence[Subject], found: Found, seed: int) -> list[str]:
    """Which neighbours by MACs could not be told apart, and whether the machine was too noisy for it."""
    live = found.live({subject.key: subject for subject in subjects})
    ranked = sorted(live.values(), key=lambda subject: (subject.precision, subject.cost.macs, -subject.peer))
    notes = []
    for small, large in itertools.pairwise(ranked):
        fewer = large.cost.macs / small.cost.macs
        if small.precision != large.precision or fewer < 1 + ALIKE:
            continue
        ratio = intervals.speedup(found.bursts[large.key], found.bursts[small.key], seed)
        if ratio.low <= 1 <= ratio.high:
            shown = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            noisy = ratio.high / ratio.low > (1 + NOISY) ** 2
            why = "; the machine was too noisy: close other programs, or raise --seconds" if noisy else ""
            notes.append(f"{cell}: {small.name} and {large.name} cannot be told apart, their ratio is {shown}{why}")
    return notes


def bench_notes(environment: Mapping[str, Any]) -> list[str]:
    """What concerns all rows alike."""
    notes, load = [], environment["load_average_before"]
    if load is not None and load > BUSY * environment["cores"]:
        notes.append(f"the machine was busy before the bench (load {load:.1f} on {environment['cores']} CPUs)")
    if not hasattr(os, "sched_setaffinity"):
        notes.append(f"threads are not pinned: {environment['pinning']}")
    return notes
