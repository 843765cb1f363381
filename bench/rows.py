"""What was measured, as the rows of `bench.json`: what was not measured is null, with its reason in the notes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from wmlc.bench import intervals, measure
from wmlc.bench.budgets import budget_notes, budget_of, noise_words
from wmlc.bench.cells import Cell, Measured, Measurement
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines.machine import busy
from wmlc.bench.subjects import Key
from wmlc.records import Environment, Interval, Latency, LatencyPlan, Row, Speedup, WarmUp
from wmlc.run import BASELINE

FEW_CALLS = 1000  # below this a 99th percentile rests on fewer than 10 calls
TOP1_APART = 0.5  # points between this bench's top-1 and the training's that need a word
ACCURACY_OFF = "top-1 and its drop not measured: the accuracy was switched off"
ALIKE = 0.01  # networks whose MACs differ by less are not expected to differ


def make_rows(
    cell: Cell, measured: Measured, top1: Mapping[Key, float], config: BenchConfig, plan: LatencyPlan | None = None
) -> list[Row]:
    """The rows of one cell.

    Args: `top1` of each network through this engine, percent, from whichever cell has it; what peers were cut for, if
    for a latency.
    """
    first = next(iter(measured.values()))
    baseline = measured.get((BASELINE, first.subject.precision))
    return [
        _make_row(cell, own, baseline, measured.get((BASELINE, own.subject.precision)), top1, config, plan)
        for own in measured.values()
    ]


def _make_row(
    cell: Cell, own: Measurement, baseline: Measurement | None, whole: Measurement | None, top1: Mapping[Key, float],
    config: BenchConfig, plan: LatencyPlan | None,
) -> Row:  # fmt: skip
    """Args: the `baseline` of all rows, and the `whole` network in this one's precision, which its plan knew."""
    subject, about, cost = own.subject, own.subject.about, own.subject.cost
    times_ms, opened, memory = own.times_ms, own.opened, own.memory
    times = None if times_ms is None else measure.latency(times_ms)
    speedup = intervals.speedup(baseline.bursts, own.bursts, config.seed) if baseline and _both(own, baseline) else None
    full = baseline.subject.cost.macs if baseline else None
    mac_ratio = full / cost.macs if full and cost.macs else None
    interval = _p50_interval(own.bursts, config.seed) if times else None
    budget_ms = budget_of(plan, cell, subject.peer, subject.precision)
    whole_ms = whole.times_ms if whole and budget_ms else None
    own_top1, baseline_top1 = top1.get(subject.key), top1.get(baseline.subject.key) if baseline else None
    return Row(
        peer=subject.peer,
        name=subject.name,
        ratio=about.ratio,
        achieved_ratio=about.achieved_ratio,
        engine=cell.engine,
        precision=opened[0].precision or subject.precision if opened else subject.precision,
        threads=cell.threads,
        batch=cell.batch,
        device=cell.device,
        provider=opened[0].provider if opened else None,
        params=cost.params,
        macs=cost.macs,
        flops=None if cost.macs is None else 2 * cost.macs,
        mac_ratio=mac_ratio,
        file_bytes=subject.file_bytes,
        file_sha256=subject.file_sha256,
        latency_ms=times,
        p50_interval=interval,
        latency_budget_ms=budget_ms,
        budget_met=times.p50 <= budget_ms if times and budget_ms else None,
        compute_ms=None if own.compute_ms is None else measure.latency(own.compute_ms),
        throughput_per_s=1e3 * cell.batch / times.mean if times else None,
        speedup=speedup,
        paid_out=speedup.median / mac_ratio if speedup and mac_ratio else None,
        load_ms=float(np.median([each.load_ms for each in opened])) if times else None,
        first_ms=float(np.median(own.first_ms)) if times else None,
        peak_memory_bytes=memory.peak if memory and times else None,
        engine_memory_bytes=memory.peak - memory.before if memory and times else None,
        top1=own_top1,
        top1_drop=baseline_top1 - own_top1 if own_top1 is not None and baseline_top1 is not None else None,
        scenarios=own.scenarios,
        warm_up=own.warm_ups[-1] if times else None,
        logits_apart=own.apart if own.apart is not None and np.isfinite(own.apart) else None,
        on_front=None,
        notes=[
            *_missing_notes(own, baseline, config, own_top1),
            *(subject.notes if own_top1 is not None else (note for note in subject.notes if "top-1" not in note)),
            *_speed_notes(own is baseline, times, speedup, own.warm_ups),
            *budget_notes(budget_ms, times, interval, None if whole_ms is None else float(np.median(whole_ms)), plan),
            *own.lacking,
            *(_top1_notes(own_top1, about.top1) if subject.precision == "fp32" else []),
        ],
    )


def _both(own: Measurement, other: Measurement) -> bool:
    """Both were timed, in the same rounds."""
    return not own.failure and not other.failure


def _p50_interval(bursts: Sequence[Sequence[np.ndarray]], seed: int) -> Interval:
    """On a log scale, as times are: on a linear one, an interval of few noisy launches would reach below zero."""
    low, high = intervals.times_interval(intervals.burst_medians(bursts), seed)
    return Interval(low=low, high=high)


def _missing_notes(
    own: Measurement, baseline: Measurement | None, config: BenchConfig, top1: float | None
) -> list[str]:
    """Why values are null."""
    notes = []
    missing = ["times and speed-up"] if own.failure else []
    missing += ["top-1"] if own.failure and top1 is None and config.accuracy else []
    if missing:
        notes.append(f"{' and '.join(missing)} not measured: {own.failure}")
    elif own.subject.unmatched and config.accuracy:
        notes.append(f"top-1 and its drop not measured: {own.subject.unmatched}")
    elif top1 is None and config.accuracy:
        notes.append("top-1 and its drop not measured: there is no data set; name one with --data")
    if not config.accuracy:
        notes.append(ACCURACY_OFF)
    if baseline is None:
        notes.append("speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none")
    elif baseline.failure and own is not baseline:
        notes.append(f"no comparison with the baseline where that has no number: {baseline.failure}")
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
    if speedup and not is_baseline and speedup.launches == 1:
        notes.append("its interval knows nothing of how launches differ; leave --launches at more than 1")
    if speedup and not is_baseline and speedup.low <= 1:
        shown = f"speed-up {speedup.median:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
        slower = "slower than the baseline" if speedup.high < 1 else "not shown to be faster than the baseline"
        notes.append(f"{slower}: {shown}")
    return notes


def _top1_notes(top1: float | None, trained: float | None) -> list[str]:
    if top1 is None or trained is None or abs(top1 - trained) <= TOP1_APART:
        return []
    return [f"top-1 is {top1:.2f} here and was {trained:.2f} after training; are these the same test images?"]


def indistinct_notes(cell: Cell, measured: Measured, seed: int) -> list[str]:
    """Which neighbours by MACs could not be told apart, and whether the machine was too noisy for it."""
    timed = [own for own in measured.values() if not own.failure and own.subject.cost.macs]
    timed.sort(key=lambda own: (own.subject.precision, own.subject.cost.macs, -own.subject.peer))
    notes = []
    for smaller, larger in itertools.pairwise(timed):
        small, large = smaller.subject, larger.subject
        fewer = (large.cost.macs or 0) / (small.cost.macs or 1)
        if small.precision != large.precision or fewer < 1 + ALIKE:
            continue
        ratio = intervals.speedup(larger.bursts, smaller.bursts, seed)
        if ratio.low <= 1 <= ratio.high:
            shown = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            why = noise_words(ratio.low, ratio.high)
            notes.append(f"{cell}: {small.name} and {large.name} cannot be told apart, their ratio is {shown}{why}")
    return notes


def bench_notes(environment: Environment) -> list[str]:
    """What concerns all rows alike."""
    notes = []
    if words := busy(environment):
        notes.append(f"the machine was busy before the bench ({words})")
    if not hasattr(os, "sched_setaffinity"):
        notes.append(f"threads are not pinned: {environment.pinning}")
    return notes
