"""What was found, as the rows of `bench.json`: a cell that was not measured is null, with its reason in the notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wmlc.bench import measure
from wmlc.bench.config import BenchConfig
from wmlc.models.checkpoint import NetworkSpec
from wmlc.models.cost import Cost
from wmlc.run import BASELINE, peer_name

FEW_CALLS = 1000  # below this a 99th percentile rests on fewer than 10 calls
TOP1_APART = 0.5  # points between this bench's top-1 and the training's that need a word
BUSY = 0.5  # load average a core

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network to be measured."""

    peer: int
    directory: Path
    source: Path  # what the engine opens: the ONNX file, or the directory
    weights: Path  # the file whose size counts
    spec: NetworkSpec
    cost: Cost

    @property
    def name(self) -> str:
        return peer_name(self.peer)


@dataclass
class Found:
    """What a bench has found so far, by peer or by (peer, batch); filled in place, as engines may fail at any time."""

    baseline_macs: int | None  # None: the run has no baseline
    provider: str | None = None
    precision: dict[int, str] = field(default_factory=dict)
    parity: dict[int, float] = field(default_factory=dict)  # largest difference of a logit from torch's
    top1: dict[int, float] = field(default_factory=dict)  # percent
    warm_ups: dict[tuple[int, int], measure.WarmUp] = field(default_factory=dict)
    bursts: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)  # milliseconds [R][calls]
    failures: dict[int, str] = field(default_factory=dict)

    def live(self, engines: Mapping[int, Value]) -> dict[int, Value]:
        """Those of `engines` that did not fail."""
        return {peer: engine for peer, engine in engines.items() if peer not in self.failures}


def make_row(subject: Subject, batch: int, found: Found, config: BenchConfig) -> dict[str, Any]:
    """The row of one network at one batch size."""
    peer, about, cost = subject.peer, subject.spec.about, subject.cost
    bursts = found.bursts.get((peer, batch))
    times = measure.latency(np.concatenate(bursts)) if bursts else None
    speedup = _speedup(peer, batch, found, config.seed)
    warm, difference = found.warm_ups.get((peer, batch)), found.parity.get(peer)
    top1, baseline_top1 = found.top1.get(peer), found.top1.get(BASELINE)
    return {
        "peer": peer,
        "name": subject.name,
        "ratio": about.get("ratio"),
        "achieved_ratio": about.get("achieved_ratio"),
        "engine": config.engine,
        "precision": found.precision.get(peer),
        "batch": batch,
        "params": cost.params,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "mac_ratio": found.baseline_macs / cost.macs if found.baseline_macs else None,
        "file_bytes": subject.weights.stat().st_size,
        "latency_ms": asdict(times) if times else None,
        "throughput_per_s": 1e3 * batch / times.mean if times else None,
        "speedup": asdict(speedup) if speedup else None,
        "top1": top1,
        "top1_drop": baseline_top1 - top1 if top1 is not None and baseline_top1 is not None else None,
        "warm_up": asdict(warm) if warm and times else None,
        "logits_apart": difference if difference is not None and np.isfinite(difference) else None,
        "notes": [
            *_missing_notes(subject, found, config, times, top1),
            *_speed_notes(peer, times, speedup, warm),
            *_top1_notes(top1, about.get("top1")),
        ],
    }


def _speedup(peer: int, batch: int, found: Found, seed: int) -> measure.Speedup | None:
    """Against the baseline's bursts of the same rounds; the baseline's own is 1 by definition."""
    baseline, own = found.bursts.get((BASELINE, batch)), found.bursts.get((peer, batch))
    return measure.speedup(baseline, own, seed) if baseline and own else None


def _missing_notes(
    subject: Subject, found: Found, config: BenchConfig, times: measure.Latency | None, top1: float | None
) -> list[str]:
    """Why cells are null."""
    reason, notes = found.failures.get(subject.peer), []
    missing = ["times and speed-up"] if times is None else []
    missing += ["top-1"] if top1 is None and config.accuracy else []
    if missing:
        notes.append(f"{' and '.join(missing)} not measured: {reason}")
    if not config.accuracy:
        notes.append("top-1 and its drop not measured: the accuracy was switched off")
    if found.baseline_macs is None:
        notes.append("speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none")
    elif BASELINE in found.failures and subject.peer != BASELINE:
        notes.append(f"no comparison with the baseline where that has no number: {found.failures[BASELINE]}")
    return notes


def _speed_notes(
    peer: int, times: measure.Latency | None, speedup: measure.Speedup | None, warm: measure.WarmUp | None
) -> list[str]:
    notes = []
    if times and warm and not warm.settled:
        notes.append("the times had not settled when the warm-up ended; close other programs, or raise --seconds")
    if times and times.n < FEW_CALLS:
        notes.append(f"p99 rests on fewer than {FEW_CALLS:,} calls; raise --seconds for a firm one")
    if speedup and peer != BASELINE and speedup.low <= 1:
        shown = f"speed-up {speedup.median:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
        slower = "slower than the baseline" if speedup.high < 1 else "not shown to be faster than the baseline"
        notes.append(f"{slower}: {shown}")
    return notes


def _top1_notes(top1: float | None, trained: float | None) -> list[str]:
    if top1 is None or trained is None or abs(top1 - trained) <= TOP1_APART:
        return []
    return [f"top-1 is {top1:.2f} here and was {trained:.2f} after training; are these the same test images?"]


def bench_notes(environment: Mapping[str, Any]) -> list[str]:
    """What concerns all rows alike."""
    notes, load = [], environment["load_average_before"]
    if load is not None and load > BUSY * environment["cores"]:
        notes.append(f"the machine was busy before the bench (load {load:.1f} on {environment['cores']} CPUs)")
    if environment["pinned_cpus"] is None:
        notes.append(f"threads are not pinned: {environment['pinning']}")
    return notes
