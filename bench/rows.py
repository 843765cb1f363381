"""What was found, as the rows of `bench.json`: a cell that was not measured is null, with its reason in the notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wmlc.bench import measure
from wmlc.bench.config import BenchConfig
from wmlc.files import sha256
from wmlc.models.checkpoint import NetworkSpec
from wmlc.models.cost import Cost
from wmlc.run import peer_name

FEW_CALLS = 1000  # below this a 99th percentile rests on fewer than 10 calls
TOP1_APART = 0.5  # points between this bench's top-1 and the training's that need a word
BUSY = 0.5  # load average a core

Value = TypeVar("Value")
Key = tuple[int, str]  # a network's peer number and its precision


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network to be measured."""

    peer: int
    precision: str  # as asked for
    directory: Path
    source: Path  # what the engine opens: the ONNX file, the plan, or the directory
    weights: Path  # the file whose size and hash count
    spec: NetworkSpec
    cost: Cost

    @property
    def key(self) -> Key:
        return self.peer, self.precision

    @property
    def name(self) -> str:
        return peer_name(self.peer) + ("" if self.precision == "fp32" else f" {self.precision}")


@dataclass
class Found:
    """What a bench has found so far, by network or by (network, batch); filled in place."""

    baseline: Key  # what all are compared with, where there is one
    baseline_macs: int | None  # None: the run has no baseline
    provider: str | None = None
    precision: dict[Key, str] = field(default_factory=dict)  # as the engine says
    parity: dict[Key, float] = field(default_factory=dict)  # `wmlc.accuracy.parity` with the reference
    top1: dict[Key, float] = field(default_factory=dict)  # percent
    warm_ups: dict[tuple[Key, int], measure.WarmUp] = field(default_factory=dict)
    bursts: dict[tuple[Key, int], list[np.ndarray]] = field(default_factory=dict)  # milliseconds [R][calls]
    compute: dict[tuple[Key, int], np.ndarray] = field(default_factory=dict)  # milliseconds [calls], no transfers
    failures: dict[Key, str] = field(default_factory=dict)

    def live(self, engines: Mapping[Key, Value]) -> dict[Key, Value]:
        """Those of `engines` that did not fail."""
        return {key: engine for key, engine in engines.items() if key not in self.failures}


def make_row(subject: Subject, batch: int, found: Found, config: BenchConfig) -> dict[str, Any]:
    """The row of one network at one batch size."""
    key, about, cost = subject.key, subject.spec.about, subject.cost
    bursts, compute = found.bursts.get((key, batch)), found.compute.get((key, batch))
    times = measure.latency(np.concatenate(bursts)) if bursts else None
    speedup = _speedup(key, batch, found, config.seed)
    warm, difference = found.warm_ups.get((key, batch)), found.parity.get(key)
    top1, baseline_top1 = found.top1.get(key), found.top1.get(found.baseline)
    return {
        "peer": subject.peer,
        "name": subject.name,
        "ratio": about.get("ratio"),
        "achieved_ratio": about.get("achieved_ratio"),
        "engine": config.engine,
        "precision": found.precision.get(key, subject.precision),
        "batch": batch,
        "params": cost.params,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "mac_ratio": found.baseline_macs / cost.macs if found.baseline_macs else None,
        "file_bytes": subject.weights.stat().st_size,
        "file_sha256": sha256(subject.weights),
        "latency_ms": asdict(times) if times else None,
        "compute_ms": asdict(measure.latency(compute)) if compute is not None else None,
        "throughput_per_s": 1e3 * batch / times.mean if times else None,
        "speedup": asdict(speedup) if speedup else None,
        "top1": top1,
        "top1_drop": baseline_top1 - top1 if top1 is not None and baseline_top1 is not None else None,
        "warm_up": asdict(warm) if warm and times else None,
        "logits_apart": difference if difference is not None and np.isfinite(difference) else None,
        "notes": [
            *_missing_notes(subject, found, config, times, top1),
            *_speed_notes(key == found.baseline, times, speedup, warm),
            *(_top1_notes(top1, about.get("top1")) if subject.precision == "fp32" else []),
        ],
    }


def _speedup(key: Key, batch: int, found: Found, seed: int) -> measure.Speedup | None:
    """Against the baseline's bursts of the same rounds; the baseline's own is 1 by definition."""
    baseline, own = found.bursts.get((found.baseline, batch)), found.bursts.get((key, batch))
    return measure.speedup(baseline, own, seed) if baseline and own else None


def _missing_notes(
    subject: Subject, found: Found, config: BenchConfig, times: measure.Latency | None, top1: float | None
) -> list[str]:
    """Why cells are null."""
    reason, notes = found.failures.get(subject.key), []
    missing = ["times and speed-up"] if times is None else []
    missing += ["top-1"] if top1 is None and config.accuracy else []
    if missing:
        notes.append(f"{' and '.join(missing)} not measured: {reason}")
    if not config.accuracy:
        notes.append("top-1 and its drop not measured: the accuracy was switched off")
    if found.baseline_macs is None:
        notes.append("speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none")
    elif found.baseline in found.failures and subject.key != found.baseline:
        notes.append(f"no comparison with the baseline where that has no number: {found.failures[found.baseline]}")
    return notes


def _speed_notes(
    is_baseline: bool, times: measure.Latency | None, speedup: measure.Speedup | None, warm: measure.WarmUp | None
) -> list[str]:
    notes = []
    if times and warm and not warm.settled:
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


def bench_notes(environment: Mapping[str, Any]) -> list[str]:
    """What concerns all rows alike."""
    notes, load = [], environment["load_average_before"]
    if load is not None and load > BUSY * environment["cores"]:
        notes.append(f"the machine was busy before the bench (load {load:.1f} on {environment['cores']} CPUs)")
    if environment["pinned_cpus"] is None:
        notes.append(f"threads are not pinned: {environment['pinning']}")
    return notes
