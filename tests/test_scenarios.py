"""MLPerf's scenarios as a bench asks for them, and the search for a server's highest rate; nothing here needs LoadGen."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from wmlc.bench.scenarios import (
    MOST_TRIALS,
    NEARNESS,
    QUERIES,
    SCENARIOS,
    Load,
    highest_rate,
    measure_scenario,
    require_loadgen,
)
from wmlc.errors import InputError
from wmlc.records import Scenario

BOUND_MS = 20.0


def test_without_loadgen_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(InputError) as raised:
        require_loadgen()
    assert str(raised.value) == (
        "the scenarios need MLPerf's LoadGen, which is not installed; pip install 'wmlc[loadgen]', or ask for none"
    )


class Queue:
    """p99 = service (1 + 4.6 r / (2 (1 - r))) at the load r = rate x service: like one server's with fixed service."""

    def __init__(self, service_ms: float) -> None:
        self.service_ms = service_ms
        self.asked: list[float] = []

    def __call__(self, rate_per_s: float) -> Scenario:
        self.asked.append(rate_per_s)
        load = rate_per_s * self.service_ms / 1e3
        if load >= 1:
            return Scenario(valid=False, n=100)  # it was cut short
        p99 = self.service_ms * (1 + 4.6 * load / (2 * (1 - load)))
        return Scenario(valid=True, p50_ms=p99 / 2, p99_ms=p99, n=100)

    def highest(self, bound_ms: float) -> float:
        """The rate at which p99 is the bound."""
        over = 2 * (bound_ms / self.service_ms - 1) / 4.6
        return 1e3 / self.service_ms * over / (1 + over)


@pytest.mark.parametrize("service_ms", [0.05, 1.0, 7.0, 15.0])
@pytest.mark.parametrize("guess", [0.2, 1.0, 5.0])
def test_the_search_finds_the_highest_rate(service_ms, guess):
    system = Queue(service_ms)
    found = highest_rate(system, guess * 1e3 / service_ms, BOUND_MS)
    highest = system.highest(BOUND_MS)
    assert found.rate_per_s <= highest < found.failed_rate_per_s <= NEARNESS * found.rate_per_s
    assert len({trial.rate_per_s for trial in found.trials}) <= MOST_TRIALS
    assert [trial.rate_per_s for trial in found.trials] == system.asked
    assert system.asked[-1] == found.rate_per_s == max(
        trial.rate_per_s for trial in found.trials if trial.held
    )  # fmt: skip
    for trial in found.trials:
        assert trial.held == (trial.rate_per_s <= highest)
    assert (found.p99_ms, found.n) == (found.trials[-1].p99_ms, 100)
    assert found.p50_ms == found.p99_ms / 2


def test_the_search_ends_where_no_rate_holds():
    found = highest_rate(Queue(21.0), 1e3 / 21, BOUND_MS)
    assert found.rate_per_s is found.p50_ms is found.p99_ms is found.n is None
    assert [round(1e3 / 21 / trial.rate_per_s) for trial in found.trials] == [1, 1, 2, 2, 8, 8, 64, 64]
    assert found.failed_rate_per_s == found.trials[-1].rate_per_s
    assert not any(trial.held for trial in found.trials)


def test_the_search_ends_where_every_rate_holds():
    found = highest_rate(Queue(1e-9), 1.0, BOUND_MS)
    assert len(found.trials) == MOST_TRIALS + 1
    assert (found.rate_per_s, found.failed_rate_per_s) == (2 ** (MOST_TRIALS - 1), None)


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_a_rate_that_is_not_confirmed_is_lowered_until_one_is(refusals):
    system = Queue(1.0)
    searched = highest_rate(system, 1000.0, BOUND_MS)
    tests = len(searched.trials) - 1

    def run(rate: float) -> Scenario:
        result = system(rate)
        unlucky = tests < len(system.asked) <= tests + refusals
        return replace(result, p99_ms=2 * BOUND_MS) if unlucky else result

    system.asked.clear()
    found = highest_rate(run, 1000.0, BOUND_MS)
    lowered = [1, 0.95, 0.95 * 0.9, 0.95 * 0.9 * 0.85]
    assert found.rate_per_s == pytest.approx(searched.rate_per_s * lowered[refusals])
    assert [trial.held for trial in found.trials[tests:]] == [False] * refusals + [True]
    if refusals:
        assert found.failed_rate_per_s == pytest.approx(searched.rate_per_s * lowered[refusals - 1])
    assert found.failed_rate_per_s > found.rate_per_s


def test_one_spoiled_trial_fails_no_rate():
    system = Queue(1.0)
    undisturbed = highest_rate(system, 1000.0, BOUND_MS)
    spoiled = system.asked.index(max(rate for rate in system.asked if rate <= undisturbed.rate_per_s))
    system.asked.clear()

    def run(rate: float) -> Scenario:
        result = system(rate)
        return replace(result, p99_ms=2 * BOUND_MS) if len(system.asked) == spoiled + 1 else result

    found = highest_rate(run, 1000.0, BOUND_MS)
    assert found.rate_per_s == undisturbed.rate_per_s
    assert len(found.trials) == len(undisturbed.trials) + 1


def test_no_rate_is_given_that_nothing_confirmed():
    asked: list[float] = []

    def run(rate: float) -> Scenario:
        asked.append(rate)
        held = len(asked) == 1
        return Scenario(valid=True, p50_ms=1, p99_ms=1 if held else 99, n=5)

    found = highest_rate(run, 100.0, BOUND_MS)
    assert found.rate_per_s is found.p99_ms is None
    assert len(found.trials) == len(asked) <= 3 * MOST_TRIALS + 1
    assert found.failed_rate_per_s == min(asked) >= 100 / 64


class Recording:
    """A worker that notes its loads, and answers as a queue."""

    def __init__(self, service_ms: float) -> None:
        self.loads: list[Load] = []
        self._queue = Queue(service_ms)

    def load(self, load: Load) -> Scenario:
        self.loads.append(load)
        return self._queue(load.rate_per_s) if load.rate_per_s else Scenario(valid=True)


SETTINGS: dict[str, Any] = {"batch": 4, "seconds": 2.0, "latency_bound_ms": BOUND_MS, "seed": 7, "cpus": [1]}


def test_each_trial_of_a_server_has_its_rate_and_its_own_arrivals():
    worker = Recording(1.0)
    found = measure_scenario(worker, "server", p50_ms=2.0, **SETTINGS)
    assert [load.rate_per_s for load in worker.loads] == [trial.rate_per_s for trial in found.trials]
    assert [load.seed for load in worker.loads] == list(range(7, 7 + len(worker.loads)))
    assert worker.loads[0].rate_per_s == 500
    assert {(load.batch, load.seconds, load.latency_bound_ms, tuple(load.cpus or ())) for load in worker.loads} == {
        (4, 2.0, BOUND_MS, (1,))
    }
    assert found.latency_bound_ms == BOUND_MS and not found.valid  # of 100 queries
    assert QUERIES > 100


def test_a_call_above_the_bound_needs_no_test():
    worker = Recording(1.0)
    found = measure_scenario(worker, "server", p50_ms=20.1, **SETTINGS)
    assert found == Scenario(valid=True, latency_bound_ms=BOUND_MS)
    assert worker.loads == []


@pytest.mark.parametrize("scenario", SCENARIOS[:3])
def test_the_other_scenarios_are_one_test(scenario):
    worker = Recording(1.0)
    assert measure_scenario(worker, scenario, p50_ms=2.0, **SETTINGS) == Scenario(valid=True)
    assert worker.loads == [Load(scenario=scenario, seconds=2.0, batch=4, seed=7, cpus=[1])]
