"""What bench/scenarios.py and bench/loadgen.py promise: LoadGen's tests of an engine, and the search for the highest rate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import wmlc.bench.scenarios.loadgen
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.scenarios import (
    MOST_TRIALS,
    NEARNESS,
    SCENARIOS,
    Load,
    highest_rate,
    measure_scenario,
    require_loadgen,
)
from wmlc.bench.scenarios.loadgen import _Samples, _System, plan_test, run_load
from wmlc.errors import InputError

BOUND_MS = 20.0
IMAGES = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)  # each sample's value is its index


@pytest.fixture
def loadgen() -> Any:
    return pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen: pip install mlcommons-loadgen")


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """No test here is cut short because the machine stood still for a moment."""
    monkeypatch.setattr(wmlc.bench.scenarios.loadgen, "GIVE_UP", 1000)


@pytest.fixture
def answered(loadgen, monkeypatch) -> list[int]:
    """The numbers of all samples that LoadGen was told are done."""
    numbers: list[int] = []
    tell = loadgen.QuerySamplesComplete

    def note(responses: list[Any]) -> None:
        numbers.extend(response.id for response in responses)
        tell(responses)

    monkeypatch.setattr(loadgen, "QuerySamplesComplete", note)
    return numbers


class Counting:
    """An engine that computes nothing, and notes the images of its calls once the test runs."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.threads: set[int] = set()

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        self.calls.append(images_NCHW.ravel().astype(int).tolist())
        self.threads.add(threading.get_ident())
        threading.Event().wait(0.0005)
        return images_NCHW

    def test_calls(self, samples: int) -> list[list[int]]:
        """The last calls, which hold `samples` images; those before warmed up."""
        taken = 0
        for start in range(len(self.calls) - 1, -1, -1):
            taken += len(self.calls[start])
            if taken >= samples:
                return self.calls[start:]
        raise AssertionError(f"{taken} images were run, of {samples} samples")


class FullOnly(Counting):
    """The same, for 4 images a call and no fewer."""

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        if len(images_NCHW) != 4:
            raise RuntimeError(f"4 images a call, not {len(images_NCHW)}")
        return super().infer(images_NCHW)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; the test fails where it hangs."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"hung for {seconds} s"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def run_quickly(engine: Any, scenario: str, batch: int = 4, **changes: Any) -> dict[str, Any]:
    settings = {"seconds": 0.1, "queries": 20, "rate_per_s": 500.0, "latency_bound_ms": BOUND_MS, **changes}
    return within(60, lambda: run_load(engine, IMAGES, Load(scenario=scenario, batch=batch, **settings)))


# Before a test


def test_importing_it_imports_neither_loadgen_nor_an_engine():
    heavy = "{'mlperf_loadgen', 'numpy', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"import sys, wmlc.bench.scenarios; assert not {heavy}, {heavy}"])
    assert done.returncode == 0


def test_without_loadgen_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    for call in (require_loadgen, lambda: run_load(Counting(), IMAGES, Load(scenario="offline", seconds=1))):
        with pytest.raises(InputError) as raised:
            call()
        assert str(raised.value) == (
            "the scenarios need MLPerf's LoadGen, which is not installed; pip install 'wmlc[loadgen]', or ask for none"
        )


@pytest.mark.parametrize(
    ("scenario", "call_s", "least_s", "count"),
    [
        ("single-stream", 0.001, 2, 500),  # 2000 calls fit
        ("single-stream", 0.01, 5, 500),  # longer, to reach them
        ("single-stream", 0.1, 20, 200),  # ten times as long and no longer
        ("multi-stream", 0.01, 5, 500),
        ("multi-stream", 100, 20, 1),
        ("server", 0.001, 5, 500),  # by its rate of 100 / s
        ("offline", 0.01, 2, 1920),  # 800 images / s, for 2 s and a fifth
        ("offline", 0.3, 18.75, 600),  # 26.7 images / s, in full calls
    ],
)
def test_a_test_is_planned(scenario, call_s, least_s, count):
    batch = 8 if scenario != "single-stream" else 1
    rate = 100.0 if scenario == "server" else None
    plan = plan_test(Load(scenario=scenario, seconds=2, queries=500, batch=batch, rate_per_s=rate), call_s)
    assert (plan.least_s, plan.count) == (pytest.approx(least_s), count)
    assert plan.most_s == pytest.approx(1000 * max(least_s, call_s))


def test_successive_samples_are_views_in_loadgens_order():
    samples = _Samples(IMAGES, most=4)
    samples.arrange([2, 0, 4, 1, 3, 2, 0])  # as for multi-stream, with a padding of the first
    assert samples.take([4, 1, 3], 3).ravel().tolist() == [4, 1, 3]
    assert samples.take([1, 3, 2, 0], 4).ravel().tolist() == [1, 3, 2, 0]
    assert samples.take([1, 3, 2, 0], 4).base is not None
    assert samples.take([0, 3], 2).ravel().tolist() == [0, 3]
    assert samples.take([0, 4], 4).ravel().tolist() == [0, 4, 4, 4]


def test_samples_repeat_where_there_are_fewer_images_than_a_call_holds():
    samples = _Samples(IMAGES[:2], most=5)
    assert samples.count == 5
    assert samples.take(range(5), 5).ravel().tolist() == [0, 1, 0, 1, 0]


# LoadGen


def test_single_stream_runs_one_image_at_a_time(answered):
    engine = Counting()
    result = run_quickly(engine, "single-stream")
    assert result["n"] == len(answered) == len(set(answered)) >= 20
    assert {len(images) for images in engine.calls} == {1}
    assert {value for call in engine.test_calls(result["n"]) for value in call} == set(range(5))
    assert 0.5 <= result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"]
    assert result["mean_ms"] >= 0.5
    assert list(result) == ["p50_ms", "p90_ms", "p99_ms", "mean_ms", "n", "valid"]


def test_multi_stream_runs_a_query_in_one_call(answered):
    engine = Counting()
    result = run_quickly(engine, "multi-stream")
    assert len(answered) == len(set(answered)) == 4 * result["n"]
    assert result["n"] >= 20
    assert {len(images) for images in engine.calls} == {4}
    assert len({tuple(images) for images in engine.test_calls(4 * result["n"])}) > 1
    assert list(result) == ["samples_per_query", "p50_ms", "p90_ms", "p99_ms", "n", "valid"]
    assert result["samples_per_query"] == 4


@pytest.mark.parametrize("kind", [Counting, FullOnly])
def test_offline_runs_all_samples_in_full_calls(answered, kind):
    engine = kind()
    result = run_quickly(engine, "offline")
    assert result["n"] == len(answered) == len(set(answered)) >= 20
    assert result["n"] % 4 == 0
    assert {len(images) for images in engine.calls} == {4}
    assert result["samples_per_s"] > 0
    assert list(result) == ["samples_per_s", "n", "valid"]


def test_a_last_smaller_call_is_filled_up(answered):
    """LoadGen is not asked for such a query, but its number of samples is its own affair."""
    engine = FullOnly()
    samples = _Samples(IMAGES, most=4)
    system = _System(engine, samples, [4], plan_test(Load(scenario="offline", seconds=1, batch=4), 0.1))  # type: ignore[arg-type]
    system._loadgen = FakeLoadgen()
    system._run_query([FakeLoadgen.QuerySampleResponse(10 + index, index, 0) for index in (0, 1, 2, 3, 4, 1)])
    assert engine.calls == [[0, 1, 2, 3], [4, 1, 1, 1]]
    assert system._loadgen.done == [10, 11, 12, 13, 14, 11]


class FakeLoadgen:
    """Notes what is done."""

    class QuerySampleResponse:
        def __init__(self, number: int, index: int, size: int) -> None:
            self.id, self.index = number, index

    def __init__(self) -> None:
        self.done: list[int] = []

    def QuerySamplesComplete(self, responses: list[QuerySampleResponse]) -> None:
        self.done += [response.id for response in responses]


@pytest.mark.parametrize(("batch", "sizes"), [(1, {1}), (4, {1, 2, 4}), (6, {1, 2, 4, 6})])
def test_a_server_runs_what_waits_in_sizes_that_are_warm(answered, batch, sizes):
    engine = Counting()
    result = run_quickly(engine, "server", batch, rate_per_s=3000.0)
    assert result["n"] == len(answered) == len(set(answered)) >= 20
    assert {len(images) for images in engine.calls} == sizes
    assert sum(map(len, engine.test_calls(result["n"]))) == result["n"]
    assert len(engine.threads) == 1
    assert result["rate_per_s"] == 3000
    assert not result["cut_short"]


def test_a_server_fills_up_the_calls_of_a_fixed_batch(answered):
    engine = FullOnly()
    result = run_quickly(engine, "server")
    assert result["n"] == len(answered) == len(set(answered))
    assert {len(images) for images in engine.calls} == {4}


def test_the_seed_decides_the_arrivals(loadgen, monkeypatch):
    said = []
    read = _System.run
    monkeypatch.setattr(_System, "run", lambda self, load: said.append(read(self, load)) or said[-1])
    for seed in (0, 0, 1):
        run_quickly(Counting(), "server", seed=seed, rate_per_s=200.0)
    spans = [record["generated_query_duration"] for record in said]
    assert spans[0] == spans[1] != spans[2]
    assert [record["effective_schedule_rng_seed"] for record in said] == [0, 0, 1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that pins threads to CPUs")
def test_loadgen_leaves_the_engines_cpus(loadgen, monkeypatch):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    seen: set[frozenset[int]] = set()
    take = _System._queue

    def note(self: _System, query: Any) -> None:
        seen.add(frozenset(os.sched_getaffinity(0)))
        take(self, query)

    monkeypatch.setattr(_System, "_queue", note)
    for cpus in ([min(allowed)], sorted(allowed), None):
        run_quickly(Counting(), "server", cpus=cpus)
        assert seen == {frozenset(allowed - set(cpus or ()) or allowed)}
        seen.clear()
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_its_logs_are_deleted(loadgen, scenario, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run_quickly(Counting(), scenario)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_the_engine_raises_ends_the_test(answered, scenario, tmp_path, monkeypatch):
    class Breaks(Counting):
        def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
            if answered:
                raise RuntimeError("the engine broke")
            return super().infer(images_NCHW)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = Breaks()
    with pytest.raises(RuntimeError, match="the engine broke"):
        run_quickly(engine, scenario)
    assert list(tmp_path.iterdir()) == []
    assert len(answered) == len(set(answered)) >= 20
    assert run_quickly(Counting(), scenario)["n"] > 0  # LoadGen, a global, can be used again


def test_an_engine_that_runs_no_call_raises_its_own_words(loadgen):
    class Broken(Counting):
        def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
            raise RuntimeError(f"no call of {len(images_NCHW)}")

    for scenario, size in zip(SCENARIOS, (1, 4, 4, 4), strict=True):
        with pytest.raises(RuntimeError, match=f"no call of {size}"):
            run_quickly(Broken(), scenario)


def test_what_loadgen_raises_on_its_thread_is_raised(loadgen, monkeypatch):
    def refuse(*_: Any) -> None:
        raise RuntimeError("LoadGen refused")

    monkeypatch.setattr(loadgen, "StartTestWithLogSettings", refuse)
    for scenario in SCENARIOS:
        with pytest.raises(RuntimeError, match="LoadGen refused"):
            run_quickly(Counting(), scenario)


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_a_hopeless_test_is_cut_short(answered, scenario, monkeypatch):
    class Slow(Counting):
        def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
            if answered:
                threading.Event().wait(0.02)  # 50 of them take 1 s, and the test at most 0.15 s
            return super().infer(images_NCHW)

    monkeypatch.setattr(wmlc.bench.scenarios.loadgen, "GIVE_UP", 3)
    result = run_quickly(Slow(), scenario, batch=1, rate_per_s=1000.0, seconds=0.05)
    assert not result["valid"]
    assert result["n"] == len(answered) == len(set(answered)) >= 20
    if scenario == "server":
        assert (result["cut_short"], result["p50_ms"], result["p99_ms"]) == (True, None, None)
    else:
        assert result["samples_per_s"] is None


@pytest.mark.parametrize("sizes", ["any", "fixed"])
def test_onnx_runtime_runs_every_scenario(loadgen, tmp_path, sizes):
    batch = 4
    save_flatten(tmp_path / "small.onnx", "batch" if sizes == "any" else batch)
    engine = OrtEngine(tmp_path / "small.onnx", threads=1, device="cpu")
    images = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)

    class Here:
        def load(self, load: Load) -> dict[str, Any]:
            return within(60, lambda: run_load(engine, images, load))

    for scenario in SCENARIOS[sizes == "fixed" :]:
        result = measure_scenario(
            Here(), scenario, batch=batch, seconds=0.1, latency_bound_ms=5, seed=0, p50_ms=0.02, cpus=None
        )
        assert json.loads(json.dumps(result)) == result
        numbers = result["trials"] if scenario == "server" else [result]
        assert numbers
        assert all(number["n"] > 0 for number in numbers)
    engine.close()


def save_flatten(path: Path, batch: int | str) -> None:
    """logits = the input, flattened."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["logits"])], "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 64])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(model, str(path))


# The search


class Queue:
    """p99 = service (1 + 4.6 r / (2 (1 - r))) at the load r = rate x service: like one server's with fixed service."""

    def __init__(self, service_ms: float) -> None:
        self.service_ms = service_ms
        self.asked: list[float] = []

    def __call__(self, rate_per_s: float) -> dict[str, Any]:
        self.asked.append(rate_per_s)
        load = rate_per_s * self.service_ms / 1e3
        if load >= 1:
            return {"p50_ms": None, "p99_ms": None, "n": 100, "cut_short": True}
        p99 = self.service_ms * (1 + 4.6 * load / (2 * (1 - load)))
        return {"p50_ms": p99 / 2, "p99_ms": p99, "n": 100, "cut_short": False}

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
    assert found["rate_per_s"] <= highest < found["failed_rate_per_s"] <= NEARNESS * found["rate_per_s"]
    assert len({trial["rate_per_s"] for trial in found["trials"]}) <= MOST_TRIALS
    assert [trial["rate_per_s"] for trial in found["trials"]] == system.asked
    assert system.asked[-1] == found["rate_per_s"] == max(
        trial["rate_per_s"] for trial in found["trials"] if trial["held"]
    )  # fmt: skip
    for trial in found["trials"]:
        assert trial["held"] == (trial["rate_per_s"] <= highest)
    assert (found["p99_ms"], found["n"]) == (found["trials"][-1]["p99_ms"], 100)
    assert found["p50_ms"] == found["p99_ms"] / 2


def test_the_search_ends_where_no_rate_holds():
    found = highest_rate(Queue(21.0), 1e3 / 21, BOUND_MS)
    assert [found[key] for key in ("rate_per_s", "p50_ms", "p99_ms", "n")] == [None] * 4
    assert [round(1e3 / 21 / trial["rate_per_s"]) for trial in found["trials"]] == [1, 1, 2, 2, 8, 8, 64, 64]
    assert found["failed_rate_per_s"] == found["trials"][-1]["rate_per_s"]
    assert not any(trial["held"] for trial in found["trials"])


def test_the_search_ends_where_every_rate_holds():
    found = highest_rate(Queue(1e-9), 1.0, BOUND_MS)
    assert len(found["trials"]) == MOST_TRIALS + 1
    assert (found["rate_per_s"], found["failed_rate_per_s"]) == (2 ** (MOST_TRIALS - 1), None)


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_a_rate_that_is_not_confirmed_is_lowered_until_one_is(refusals):
    system = Queue(1.0)
    searched = highest_rate(system, 1000.0, BOUND_MS)
    tests = len(searched["trials"]) - 1

    def run(rate: float) -> dict[str, Any]:
        result = system(rate)
        unlucky = tests < len(system.asked) <= tests + refusals
        return {**result, "p99_ms": 2 * BOUND_MS} if unlucky else result

    system.asked.clear()
    found = highest_rate(run, 1000.0, BOUND_MS)
    lowered = [1, 0.95, 0.95 * 0.9, 0.95 * 0.9 * 0.85]
    assert found["rate_per_s"] == pytest.approx(searched["rate_per_s"] * lowered[refusals])
    assert [trial["held"] for trial in found["trials"][tests:]] == [False] * refusals + [True]
    if refusals:
        assert found["failed_rate_per_s"] == pytest.approx(searched["rate_per_s"] * lowered[refusals - 1])
    assert found["failed_rate_per_s"] > found["rate_per_s"]


def test_one_spoiled_trial_fails_no_rate():
    system = Queue(1.0)
    undisturbed = highest_rate(system, 1000.0, BOUND_MS)
    spoiled = system.asked.index(max(rate for rate in system.asked if rate <= undisturbed["rate_per_s"]))
    system.asked.clear()

    def run(rate: float) -> dict[str, Any]:
        result = system(rate)
        return {**result, "p99_ms": 2 * BOUND_MS} if len(system.asked) == spoiled + 1 else result

    found = highest_rate(run, 1000.0, BOUND_MS)
    assert found["rate_per_s"] == undisturbed["rate_per_s"]
    assert len(found["trials"]) == len(undisturbed["trials"]) + 1


def test_no_rate_is_given_that_nothing_confirmed():
    asked: list[float] = []

    def run(rate: float) -> dict[str, Any]:
        asked.append(rate)
        held = len(asked) == 1
        return {"p50_ms": 1, "p99_ms": 1 if held else 99, "n": 5, "cut_short": False}

    found = highest_rate(run, 100.0, BOUND_MS)
    assert found["rate_per_s"] is found["p99_ms"] is None
    assert len(found["trials"]) == len(asked) <= 3 * MOST_TRIALS + 1
    assert found["failed_rate_per_s"] == min(asked) >= 100 / 64


class Recording:
    """A worker that notes its loads, and answers as a queue."""

    def __init__(self, service_ms: float) -> None:
        self.loads: list[Load] = []
        self._queue = Queue(service_ms)

    def load(self, load: Load) -> dict[str, Any]:
        self.loads.append(load)
        return {"valid": True, **(self._queue(load.rate_per_s) if load.rate_per_s else {})}


SETTINGS: dict[str, Any] = {"batch": 4, "seconds": 2.0, "latency_bound_ms": BOUND_MS, "seed": 7, "cpus": [1]}


def test_each_trial_of_a_server_has_its_rate_and_its_own_arrivals():
    worker = Recording(1.0)
    found = measure_scenario(worker, "server", p50_ms=2.0, **SETTINGS)
    assert [load.rate_per_s for load in worker.loads] == [trial["rate_per_s"] for trial in found["trials"]]
    assert [load.seed for load in worker.loads] == list(range(7, 7 + len(worker.loads)))
    assert worker.loads[0].rate_per_s == 500
    assert {(load.batch, load.seconds, load.latency_bound_ms, tuple(load.cpus or ())) for load in worker.loads} == {
        (4, 2.0, BOUND_MS, (1,))
    }
    assert list(found) == [
        "latency_bound_ms", "valid", "rate_per_s", "failed_rate_per_s", "p50_ms", "p99_ms", "n", "trials"
    ]  # fmt: skip


def test_a_call_above_the_bound_needs_no_test():
    worker = Recording(1.0)
    assert measure_scenario(worker, "server", p50_ms=20.1, **SETTINGS) == {
        "latency_bound_ms": BOUND_MS, "valid": True, "rate_per_s": None, "failed_rate_per_s": None,
        "p50_ms": None, "p99_ms": None, "n": None, "trials": [],
    }  # fmt: skip
    assert worker.loads == []


@pytest.mark.parametrize("scenario", SCENARIOS[:3])
def test_the_other_scenarios_are_one_test(scenario):
    worker = Recording(1.0)
    assert measure_scenario(worker, scenario, p50_ms=2.0, **SETTINGS) == {"valid": True}
    assert worker.loads == [Load(scenario=scenario, seconds=2.0, batch=4, seed=7, cpus=[1])]
