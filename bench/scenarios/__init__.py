"""MLPerf Inference's scenarios as the bench asks for them: a test each, and for a server the search for its rate.

This file is free of LoadGen, torch and the engines, so that `--help` is quick; `loadgen.py` runs the tests.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from wmlc.errors import InputError
from wmlc.records import Scenario, Trial

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
QUERIES = 662  # the fewest from which LoadGen's early stopping vouches for a 99th percentile

NEARNESS = 1.05  # the lowest rate that failed over the highest that held, when a search ends
MOST_TRIALS = 10  # rates of a search, before the one it found is confirmed
STEP_DOWN = 0.05  # of a rate that was not confirmed; the second step is twice as large, the third thrice …
LOWEST = 1 / 64  # of the first rate; a search does not look below


class Loaded(Protocol):
    """What LoadGen tests can be run on: a `Worker`."""

    def load(self, load: Load) -> Scenario:
        """`run_load` in the engine's process."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """One LoadGen test."""

    scenario: str
    seconds: float  # at least; planned for up to 10 times as long where it takes that to reach `queries`
    queries: int = QUERIES  # at least, within that; samples in the offline scenario
    batch: int = 1  # offline and server: most images of a call; multi-stream: samples of a query
    rate_per_s: float | None = None  # server: mean rate of the Poisson arrivals
    latency_bound_ms: float | None = None  # server: what LoadGen is told of its 99th percentile
    seed: int = 0  # of the arrivals and of the samples' order
    cpus: Sequence[int] | None = None  # the engine's; in the server scenario LoadGen's thread goes to the others


def require_loadgen() -> None:
    """Raise `InputError` where LoadGen is not installed."""
    try:
        importlib.import_module("mlperf_loadgen")
    except ImportError:
        raise InputError(
            "the scenarios need MLPerf's LoadGen, which is not installed; pip install 'wmlc[loadgen]', or ask for none"
        ) from None


def measure_scenario(
    worker: Loaded,
    scenario: str,
    *,
    batch: int,
    seconds: float,
    latency_bound_ms: float,
    seed: int,
    p50_ms: float,
    cpus: Sequence[int] | None,
) -> Scenario:
    """What one network's engine does in a scenario; for server its highest rate.

    Args: `p50_ms` an image, as measured before; its inverse is the rate that the search starts from, and above the
    bound no rate can hold. Raises what `worker.load` raises.
    """
    load = Load(scenario=scenario, seconds=seconds, batch=batch, seed=seed, cpus=cpus)
    if scenario != "server":
        return worker.load(load)
    seeds = itertools.count(seed)  # each trial has arrivals of its own, the one that confirms too

    def run(rate_per_s: float) -> Scenario:
        trial = replace(load, rate_per_s=rate_per_s, latency_bound_ms=latency_bound_ms, seed=next(seeds))
        return worker.load(trial)

    most_trials = MOST_TRIALS if p50_ms <= latency_bound_ms else 0
    return highest_rate(run, 1000 / float(p50_ms), latency_bound_ms, most_trials=most_trials)


def highest_rate(
    run: Callable[[float], Scenario], first_rate: float, bound_ms: float, *, most_trials: int = MOST_TRIALS
) -> Scenario:
    """The highest rate whose p99 stays within the bound: bracketed, bisected, then confirmed by one more test.

    A rate fails only if it fails twice, as one stall of the machine is enough to spoil a test, and it has to hold once
    more at the end. One that is not confirmed is lowered, by 5 %, then 10 %, 15 % …, until one is. `run(rate)` gives
    the times of one test, none where it was cut short. What is returned has the times of the test that confirmed its
    rate (None where no rate held), the lowest rate that did not hold (None where all did), and all trials.
    """
    trials: list[Trial] = []

    def holds(rate: float) -> Scenario | None:
        result = run(rate)
        held = result.p99_ms is not None and result.p99_ms <= bound_ms
        trials.append(Trial(rate_per_s=rate, p99_ms=result.p99_ms, n=result.n or 0, held=held))
        return result if held else None

    rate: float | None = first_rate
    while rate is not None and len(_outcomes(trials)) < most_trials:
        _ = holds(rate) or holds(rate)
        rate = _next_rate(trials, first_rate)
    held, _ = _bracket(trials)
    confirmed, step = None, 0.0
    while held is not None and held >= first_rate * LOWEST:
        confirmed = holds(held)
        if confirmed is not None:
            break
        step += STEP_DOWN
        held *= 1 - step
    return Scenario(
        valid=confirmed is None or (confirmed.n or 0) >= QUERIES,
        n=confirmed.n if confirmed else None,
        p50_ms=confirmed.p50_ms if confirmed else None,
        p99_ms=confirmed.p99_ms if confirmed else None,
        latency_bound_ms=bound_ms,
        rate_per_s=held if confirmed else None,
        failed_rate_per_s=_bracket(trials)[1],
        trials=trials,
    )


def _outcomes(trials: Sequence[Trial]) -> dict[float, bool]:
    """Whether each rate held, by the last of its trials."""
    return {trial.rate_per_s: trial.held for trial in trials}


def _bracket(trials: Sequence[Trial]) -> tuple[float | None, float | None]:
    """The highest rate that held and the lowest that did not."""
    rates = _outcomes(trials)
    held = max((rate for rate, held in rates.items() if held), default=None)
    return held, min((rate for rate, held in rates.items() if not held), default=None)


def _next_rate(trials: Sequence[Trial], first_rate: float) -> float | None:
    """Twice the rate while all held; a half, an eighth, a 64th while none did; then the geometric mean; or None."""
    held, failed = _bracket(trials)
    if failed is None:
        return 2 * held if held is not None else first_rate
    if held is None:
        lower = failed / 2 ** len(_outcomes(trials))
        return lower if lower >= first_rate * LOWEST else None
    return math.sqrt(held * failed) if failed / held > NEARNESS else None
