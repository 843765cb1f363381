"""Times: how they are taken, in which order, and what they say. No outlier is ever clipped: tails are the point.

N images, C channels, H height, W width, T timed calls, R rounds
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol, TypeVar

import numpy as np

from wmlc.bench.engines import Engine
from wmlc.errors import EngineFailed
from wmlc.records import Latency, WarmUp

BURST_MS = 20.0
MIN_CALLS = 100  # of each engine, however long they take
MIN_ROUNDS = 2  # of a launch: of one alone there is no interval
WINDOW_S = 0.1
SETTLED = 0.02  # successive medians this near to each other, relatively

Key = TypeVar("Key")


class Timed(Protocol):
    """What can be timed in bursts."""

    def burst(self, calls: int) -> np.ndarray:
        """The milliseconds of each of `calls` calls [calls], after one that is not timed."""


def time_calls(engine: Engine, images_NCHW: np.ndarray, calls: int) -> np.ndarray:
    """The milliseconds [calls] of each call: `infer` blocks, so the clock knows nothing of devices.

    An engine that has a clock of its own (`time_call`: CUDA events) is asked instead.
    """
    if (own_clock := engine.time_call) is not None:
        return np.array([own_clock(images_NCHW) for _ in range(calls)])
    took_ns = [0] * calls  # a list, as an array's item costs 1 % of a call of 0.1 ms
    infer, clock = engine.infer, time.perf_counter_ns
    for i in range(calls):
        start = clock()
        infer(images_NCHW)
        took_ns[i] = clock() - start
    return np.array(took_ns) / 1e6


def warm_up(engine: Engine, images_NCHW: np.ndarray, most_s: float) -> WarmUp:
    """Call until the medians of two successive pairs of windows of 0.1 s agree within 2 %, at most `most_s`."""
    start, calls, still = time.perf_counter(), 0, 0
    median = float(np.median(time_calls(engine, images_NCHW, 1)))
    while True:
        count = max(3, round(WINDOW_S * 1e3 / max(median, 1e-3)))
        former, median = median, float(np.median(time_calls(engine, images_NCHW, count)))
        calls += count
        still = still + 1 if abs(median - former) <= SETTLED * former else 0
        seconds = time.perf_counter() - start
        if still >= 2 or seconds >= most_s:
            return WarmUp(calls=calls + 1, seconds=seconds, settled=still >= 2, median_ms=median)


def burst_calls(median_ms: float) -> int:
    """Calls to a burst of about 20 ms: long beside a switch of engines, short beside the machine's moods."""
    return max(1, round(BURST_MS / max(median_ms, 1e-3)))


def interleave(
    engines: Mapping[Key, Timed],
    calls: Mapping[Key, int],
    seconds: float,
    seed: int,
    least_calls: int = MIN_CALLS,
) -> tuple[dict[Key, list[np.ndarray]], dict[Key, str]]:
    """Time all engines by turns: in a round each runs one burst, in an order drawn anew.

    Goes on for `seconds` an engine, and until each was called `least_calls` times, in two rounds or more. Args: the
    calls to a burst of each engine. Returns each engine's bursts [R][calls] in milliseconds, and the reasons of those
    that failed on the way and have none.
    """
    draw, live, failures = np.random.default_rng(seed), list(engines), dict[Key, str]()
    bursts: dict[Key, list[np.ndarray]] = {key: [] for key in live}
    start, rounds = time.perf_counter(), 0
    while live and (
        time.perf_counter() - start < seconds * len(live)
        or rounds * min(calls[key] for key in live) < least_calls
        or rounds < MIN_ROUNDS
    ):
        for place in draw.permutation(len(live)):
            key = live[place]
            try:
                bursts[key].append(engines[key].burst(calls[key]))
            except EngineFailed as error:
                failures[key] = str(error)
        live = [key for key in live if key not in failures]
        rounds += 1
    return {key: bursts[key] for key in live}, failures


def latency(times_ms_T: np.ndarray) -> Latency:
    """What the times [T] in milliseconds say."""
    p50, p90, p99 = np.percentile(times_ms_T, [50, 90, 99])
    return Latency(
        mean=float(times_ms_T.mean()),
        min=float(times_ms_T.min()),
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        std=float(times_ms_T.std(ddof=1)) if len(times_ms_T) > 1 else 0.0,
        n=len(times_ms_T),
    )
