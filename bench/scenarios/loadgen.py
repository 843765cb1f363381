"""An engine as the system under test of MLPerf's LoadGen, in the process that `worker.py` gave it.

LoadGen (the package mlcommons-loadgen) sends the queries and takes the times; what it wrote of a test is read back and
deleted. It is a global of its process, so there is one test at a time. It is imported when a test runs.

N images, C channels, H height, W width
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import multiprocessing
import os
import queue
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlc.bench.scenarios import Load, require_loadgen
from wmlc.records import Scenario

if TYPE_CHECKING:
    import numpy as np

    from wmlc.bench.engines import Engine

LONGEST = 10  # times `seconds`: no test is planned for longer to reach its least queries
GIVE_UP = 3  # times as long as planned: from then on samples are answered without being run
WARM_S = 0.1
LONGEST_TEST = 2 * GIVE_UP * LONGEST  # times `seconds`: what takes longer hangs
SLACK = 1.2  # offline: more samples than the estimate asks for, so that the test is not too short


def run_load(engine: Engine, images_NCHW: np.ndarray, load: Load) -> Scenario:
    """One LoadGen test of an open engine, in its process and on its thread; the images are LoadGen's samples.

    For server it is that of one rate. A test that was cut short has no times. Raises `InputError` without LoadGen, and
    what the engine raises, after the test was brought to its end.
    """
    require_loadgen()
    samples = _Samples(images_NCHW, load.batch if load.scenario != "single-stream" else 1)
    sizes, call_s = _warm_up(engine, samples, load)
    system = _System(engine, samples, sizes, schedule(load, call_s))
    return _read_result(load, system.run(load), system.cut_short)


@dataclass(frozen=True)
class Schedule:
    """How long a test shall at least last, after which time it is cut short, and its least queries or samples."""

    least_s: float
    most_s: float
    count: int
    call_s: float


def schedule(load: Load, call_s: float) -> Schedule:
    """Of a test whose calls of `batch` images take `call_s` seconds; the offline scenario has full calls only."""
    per_s = {"server": load.rate_per_s, "offline": load.batch / call_s}.get(load.scenario, 1 / call_s)
    assert per_s, "a server has a rate"
    least_s = min(max(load.seconds, load.queries / per_s), LONGEST * load.seconds)
    count = max(1, min(load.queries, int(least_s * per_s)))
    if load.scenario == "offline":
        count = load.batch * math.ceil(SLACK * least_s / call_s)
    return Schedule(least_s, GIVE_UP * max(least_s, call_s), count, call_s)


class _Samples:
    """The images, in the order in which LoadGen loads them, so that a call of successive samples copies nothing."""

    def __init__(self, images_NCHW: np.ndarray, most: int) -> None:
        self._given_NCHW, self._most = images_NCHW, most
        self.count = max(len(images_NCHW), most)
        self.arrange(list(range(self.count)))

    def arrange(self, indices: Sequence[int]) -> None:
        """Lay the samples `indices` out, the first ones once more at the end."""
        order = list(dict.fromkeys(indices))
        self._place = {index: place for place, index in enumerate(order)}
        around = itertools.islice(itertools.cycle(order), len(order) + self._most - 1)
        self._images_NCHW = self._given_NCHW[[index % len(self._given_NCHW) for index in around]]

    def take(self, indices: Sequence[int], size: int) -> np.ndarray:
        """The images of the samples `indices`, the last repeated up to `size`."""
        places = [self._place[index] for index in indices]
        places += places[-1:] * (size - len(places))
        first = places[0]
        if all(place == (first + step) % len(self._place) for step, place in enumerate(places)):
            return self._images_NCHW[first : first + size]
        return self._images_NCHW[places]


def _warm_up(engine: Engine, samples: _Samples, load: Load) -> tuple[list[int], float]:
    """Run the engine on each size that its calls will have: these sizes, ascending, and the largest's median seconds.

    A server's calls are of 1, 2, 4 … `batch` images; a network that takes no call of one is run on
    full calls only.
    """
    batch = 1 if load.scenario == "single-stream" else load.batch
    sizes = [batch]
    if load.scenario == "server" and batch > 1 and _runs_one(engine, samples, batch):
        sizes = [2**k for k in range(batch.bit_length()) if 2**k < batch] + [batch]
    for size in sizes:
        engine.infer(samples.take(range(size), size))
    images_NCHW, took_s = samples.take(range(batch), batch), list[float]()
    while sum(took_s) < WARM_S or len(took_s) < 3:
        start = time.perf_counter()
        engine.infer(images_NCHW)
        took_s.append(max(time.perf_counter() - start, 1e-6))
    return sizes, statistics.median(took_s)


def _runs_one(engine: Engine, samples: _Samples, batch: int) -> bool:
    """Whether the network takes one image; raises what it raises where it does not take `batch` either."""
    try:
        engine.infer(samples.take([0], 1))
    except Exception:  # the engines' libraries have no common class
        engine.infer(samples.take(range(batch), batch))
        return False
    return True


class _System:
    """The system under test: takes LoadGen's samples as (id, index), runs the engine on them, and says that it has.

    Once the engine has raised, or the time is up, samples are answered without being run, so that the test ends.
    """

    def __init__(self, engine: Engine, samples: _Samples, sizes: Sequence[int], times: Schedule) -> None:
        self._loadgen: Any = importlib.import_module("mlperf_loadgen")
        self._engine, self._samples, self._sizes, self._times = engine, samples, sizes, times
        self._waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._end = math.inf
        self.cut_short = False

    def run(self, load: Load) -> dict[str, Any]:
        """Run the test; what LoadGen's detailed log says, by key."""
        lg, serves = self._loadgen, load.scenario == "server"
        sut = lg.ConstructSUT(self._queue if serves else self._run_query, lambda: None)
        qsl = lg.ConstructQSL(self._samples.count, self._samples.count, self._samples.arrange, lambda _: None)
        try:
            with tempfile.TemporaryDirectory(prefix="wmlc-loadgen-") as logs:
                if load.scenario in ("offline", "server"):  # where LoadGen itself does not stop
                    self._end = time.perf_counter() + self._times.most_s
                test = (sut, qsl, _settings(lg, load, self._times), _log_settings(lg, logs), "")
                if serves:
                    self._serve(test, load.cpus)
                else:
                    lg.StartTestWithLogSettings(*test)
                if self._error is not None:
                    raise self._error
                return _read_log(Path(logs, "mlperf_log_detail.txt"))
        finally:
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)

    def _run_query(self, query: Sequence[Any]) -> None:
        """Run all samples of a query at once, in full calls, on LoadGen's thread, which is the engine's."""
        most = self._sizes[-1]
        for start in range(0, len(query), most):
            self._answer([(sample.id, sample.index) for sample in query[start : start + most]])

    def _queue(self, query: Sequence[Any]) -> None:
        for sample in query:
            self._waiting.put((sample.id, sample.index))

    def _serve(self, test: tuple[Any, ...], cpus: Sequence[int] | None) -> None:
        """Start LoadGen on a thread of its own; run what waits, as many at a time as a call may hold."""
        thread = threading.Thread(target=self._start, args=(test, cpus), name="loadgen", daemon=True)
        thread.start()
        taken, most = deque[tuple[int, int]](), self._sizes[-1]
        while True:
            while len(taken) < most and not (taken and self._waiting.empty()):
                sample = self._waiting.get()  # sleeps
                if sample is None:  # LoadGen has ended
                    thread.join()
                    return
                taken.append(sample)
            size = max((size for size in self._sizes if size <= len(taken)), default=len(taken))
            self._answer([taken.popleft() for _ in range(size)])

    def _start(self, test: tuple[Any, ...], cpus: Sequence[int] | None) -> None:
        try:
            _leave(cpus)
            self._loadgen.StartTestWithLogSettings(*test)
        except BaseException as error:  # raised again on the engine's thread, which waits for this one
            self._error = self._error or error
        finally:
            self._waiting.put(None)

    def _answer(self, samples: Sequence[tuple[int, int]]) -> None:
        """Run one call, unless the test is to end, and tell LoadGen that it is done."""
        self.cut_short = self.cut_short or time.perf_counter() > self._end
        if self._error is None and not self.cut_short:
            size = next(size for size in self._sizes if size >= len(samples))
            try:
                self._engine.infer(self._samples.take([index for _, index in samples], size))
            except BaseException as error:  # must not pass through LoadGen; `run` raises it
                self._error = error
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([response(number, 0, 0) for number, _ in samples])


def _settings(lg: Any, load: Load, times: Schedule) -> Any:
    """LoadGen's settings; it prepares its queries beforehand, so it must know how many there may be."""
    settings = lg.TestSettings()
    names = {"single-stream": "SingleStream", "multi-stream": "MultiStream", "offline": "Offline", "server": "Server"}
    settings.scenario = getattr(lg.TestScenario, names[load.scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = math.ceil(1000 * times.least_s)
    settings.min_query_count = times.count
    settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = load.seed
    if load.scenario == "server":
        settings.server_target_qps = load.rate_per_s
        settings.server_target_latency_ns = int(1e6 * (load.latency_bound_ms or 1000 * times.most_s))
    elif load.scenario != "offline":
        settings.max_duration_ms = math.ceil(1000 * times.most_s)
        settings.single_stream_expected_latency_ns = 1e9 * times.call_s / 2
        settings.multi_stream_expected_latency_ns = 1e9 * times.call_s / 2
        settings.multi_stream_samples_per_query = load.batch
    else:
        settings.offline_expected_qps = 0.0  # so that `min_query_count` alone is the number of samples
    return settings


def _log_settings(lg: Any, logs: str) -> Any:
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = logs, False
    settings = lg.LogSettings()
    settings.log_output, settings.enable_trace = output, False
    return settings


def _read_log(path: Path) -> dict[str, Any]:
    """The values of LoadGen's detailed log, the last of each key."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = (json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line.startswith(":::MLLOG "))
    return {record["key"]: record["value"] for record in records}


def _read_result(load: Load, said: dict[str, Any], cut_short: bool) -> Scenario:
    """What LoadGen said of a test; one that was cut short, or a server's with errors, has no times."""
    valid = said["result_validity"] == "VALID" and not said["num_errors"] and not cut_short
    if load.scenario == "offline":
        rate = None if cut_short else said["result_samples_per_second"]
        return Scenario(samples_per_s=rate, n=said["generated_samples_per_query"], valid=valid)
    serves, query = load.scenario == "server", "_per_query" if load.scenario == "multi-stream" else ""
    timeless = cut_short or (serves and bool(said["num_errors"]))

    def ms(key: str) -> float | None:
        return None if timeless else said[f"result_{key}_latency_ns"] / 1e6

    return Scenario(
        valid=valid,
        n=said["result_query_count"],
        p50_ms=ms(f"50.00_percentile{query}"),
        p90_ms=ms(f"90.00_percentile{query}"),
        p99_ms=ms(f"99.00_percentile{query}"),
        mean_ms=ms("mean") if load.scenario == "single-stream" else None,
        samples_per_query=load.batch if load.scenario == "multi-stream" else None,
        rate_per_s=said["effective_target_qps"] if serves else None,
    )


def _leave(cpus: Sequence[int] | None) -> None:
    """Move this thread to the CPUs that the bench may use and the engine does not, if there are any."""
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        return
    bench = multiprocessing.parent_process()  # which is not pinned, as this one is
    others = os.sched_getaffinity((bench.pid if bench else None) or 0) - set(cpus)
    if others:
        os.sched_setaffinity(0, others)
