"""LoadGen's tests of an engine: which calls it makes of the queries, and what it says of them."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from measured import flatten_file

import wmlc.bench.scenarios.loadgen
from wmlc import records
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.scenarios import SCENARIOS, Load, measure_scenario
from wmlc.bench.scenarios.loadgen import _Samples, _System, run_load, schedule
from wmlc.errors import InputError
from wmlc.records import Scenario

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


def run_quickly(engine: Any, scenario: str, batch: int = 4, **changes: Any) -> Scenario:
    settings = {"seconds": 0.1, "queries": 20, "rate_per_s": 500.0, "latency_bound_ms": BOUND_MS, **changes}
    return within(60, lambda: run_load(engine, IMAGES, Load(scenario=scenario, batch=batch, **settings)))


def told(result: Scenario) -> set[str]:
    """The numbers that a scenario has."""
    return {name for name, value in vars(result).items() if value not in (None, []) and name != "valid"}


def test_without_loadgen_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(InputError, match=r"the scenarios need MLPerf's LoadGen, which is not installed; pip install"):
        run_load(Counting(), IMAGES, Load(scenario="offline", seconds=1))


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
def test_a_test_has_a_schedule(scenario, call_s, least_s, count):
    batch = 8 if scenario != "single-stream" else 1
    rate = 100.0 if scenario == "server" else None
    times = schedule(Load(scenario=scenario, seconds=2, queries=500, batch=batch, rate_per_s=rate), call_s)
    assert (times.least_s, times.count) == (pytest.approx(least_s), count)
    assert times.most_s == pytest.approx(1000 * max(least_s, call_s))


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


def test_single_stream_runs_one_image_at_a_time(answered):
    engine = Counting()
    result = run_quickly(engine, "single-stream")
    assert result.n == len(answered) == len(set(answered)) >= 20
    assert {len(images) for images in engine.calls} == {1}
    assert {value for call in engine.test_calls(result.n) for value in call} == set(range(5))
    assert 0.5 <= result.p50_ms <= result.p90_ms <= result.p99_ms
    assert result.mean_ms >= 0.5
    assert told(result) == {"p50_ms", "p90_ms", "p99_ms", "mean_ms", "n"}


def test_multi_stream_runs_a_query_in_one_call(answered):
    engine = Counting()
    result = run_quickly(engine, "multi-stream")
    assert len(answered) == len(set(answered)) == 4 * result.n
    assert result.n >= 20
    assert {len(images) for images in engine.calls} == {4}
    assert len({tuple(images) for images in engine.test_calls(4 * result.n)}) > 1
    assert told(result) == {"samples_per_query", "p50_ms", "p90_ms", "p99_ms", "n"}
    assert result.samples_per_query == 4


@pytest.mark.parametrize("kind", [Counting, FullOnly])
def test_offline_runs_all_samples_in_full_calls(answered, kind):
    engine = kind()
    result = run_quickly(engine, "offline")
    assert result.n == len(answered) == len(set(answered)) >= 20
    assert result.n % 4 == 0
    assert {len(images) for images in engine.calls} == {4}
    assert result.samples_per_s > 0
    assert told(result) == {"samples_per_s", "n"}


def test_a_last_smaller_call_is_filled_up(answered):
    """LoadGen is not asked for such a query, but its number of samples is its own affair."""
    engine = FullOnly()
    samples = _Samples(IMAGES, most=4)
    system = _System(engine, samples, [4], schedule(Load(scenario="offline", seconds=1, batch=4), 0.1))  # type: ignore[arg-type]
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
    assert result.n == len(answered) == len(set(answered)) >= 20
    assert {len(images) for images in engine.calls} == sizes
    assert sum(map(len, engine.test_calls(result.n))) == result.n
    assert len(engine.threads) == 1
    assert result.rate_per_s == 3000
    assert result.p99_ms is not None


def test_a_server_fills_up_the_calls_of_a_fixed_batch(answered):
    engine = FullOnly()
    result = run_quickly(engine, "server")
    assert result.n == len(answered) == len(set(answered))
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
    assert (run_quickly(Counting(), scenario).n or 0) > 0  # LoadGen, a global, can be used again


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
    assert not result.valid
    assert result.n == len(answered) == len(set(answered)) >= 20
    if scenario == "server":
        assert result.p50_ms is result.p99_ms is None
    else:
        assert result.samples_per_s is None


@pytest.mark.parametrize("sizes", ["any", "fixed"])
def test_onnx_runtime_runs_every_scenario(loadgen, tmp_path, monkeypatch, sizes):
    monkeypatch.setattr("wmlc.bench.scenarios.MOST_TRIALS", 2)
    batch = 4
    file = flatten_file(tmp_path / "small.onnx", "batch" if sizes == "any" else batch)
    engine = OrtEngine(file, threads=1, device="cpu")
    images = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)

    class Here:
        def load(self, load: Load) -> Scenario:
            return within(60, lambda: run_load(engine, images, load))

    for scenario in SCENARIOS[sizes == "fixed" :]:
        result = measure_scenario(
            Here(), scenario, batch=batch, seconds=0.02, latency_bound_ms=5, seed=0, p50_ms=0.02, cpus=None
        )
        assert records.text(result)  # fit for bench.json
        numbers = result.trials if scenario == "server" else [result]
        assert numbers and all((number.n or 0) > 0 for number in numbers)
    engine.close()
