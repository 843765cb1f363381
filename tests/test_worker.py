"""An engine's process: what it answers, and what is said of one that crashes, hangs or raises."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import classifier, flatten_file

from wmlc.bench.engines import engine_class
from wmlc.bench.engines.machine import pinned_cpus
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.worker import Feed, Seat, Worker
from wmlc.bench.scenarios import Load
from wmlc.errors import EngineFailed, InputError

MEAN, STD = [0.3], [0.4]
PIXELS = np.zeros((1, 8, 8, 1), dtype=np.uint8)
FAKES = """
import os, sys, time
import numpy as np
from wmlc.bench.engines.ort_engine import OrtEngine

class Imports(OrtEngine):
    precision = ""
    def infer(self, images):
        return np.array([["torch" in sys.modules, "onnxruntime" in sys.modules]], dtype=np.float32)

class Odd:
    takes, libraries, any_batch = "onnx", (), True
    provider = precision = "odd"
    @staticmethod
    def choose_device(device): return "cpu"
    def __init__(self, path, threads, device): pass
    def close(self): pass

class Crashes(Odd):
    def infer(self, images): os.kill(os.getpid(), 9)

class Leaves(Odd):
    def __init__(self, path, threads, device): os._exit(7)

class Hangs(Odd):
    def infer(self, images): time.sleep(60)

class Raises(Odd):
    def infer(self, images): raise MemoryError("two\\nlines")

class Pinned(Odd):
    def infer(self, images): return np.array([sorted(os.sched_getaffinity(0))], dtype=np.float32)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A module of fake engines that another process can import."""
    (tmp_path / "fake_engines.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    import fake_engines

    yield fake_engines
    del sys.modules["fake_engines"]


def ask(opener: Any, path: Path = Path("none"), timeout_s: float = 60, **seat: Any) -> np.ndarray:
    with Worker(Seat(opener=opener, path=path, feed=Feed(mean=MEAN, std=STD), **seat), timeout_s) as worker:
        worker.ready()
        worker._timeout_s = min(timeout_s, 60)
        return worker.logits(PIXELS)


def test_a_process_for_onnx_runtime_does_not_import_torch(fakes, tmp_path):
    assert ask(fakes.Imports, flatten_file(tmp_path / "small.onnx")).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Crashes", "its engine's process ended (killed by SIGKILL)"),
        ("Leaves", "its engine's process ended (exit code 7)"),
        ("Raises", "its engine raised: two lines"),
    ],
)
def test_an_engine_that_fails_is_reported(fakes, name, message):
    with pytest.raises(EngineFailed) as raised:
        ask(getattr(fakes, name))
    assert str(raised.value) == message


def test_an_engine_that_hangs_is_ended(fakes):
    with Worker(Seat(opener=fakes.Hangs, path=Path("none"), feed=Feed(mean=MEAN, std=STD))) as worker:
        assert (worker.ready().provider, worker._process.is_alive()) == ("odd", True)
        worker._timeout_s = 0.2
        for message in ("its engine gave no answer in 0.2 s and was ended", "its engine's process ended"):
            with pytest.raises(EngineFailed) as raised:
                worker.logits(PIXELS)
            assert str(raised.value).startswith(message)


def test_a_process_is_pinned_where_the_system_can(fakes):
    cpus = pinned_cpus(1)
    if cpus is None:
        pytest.skip("this system cannot pin a process to CPUs")
    assert ask(fakes.Pinned, cpus=cpus).tolist() == [cpus]


def test_a_process_answers_all_that_a_bench_asks(tmp_path):
    """By ONNX Runtime, whose own clock and compute times there are none of on a CPU."""
    kind = engine_class("ort")
    seat = Seat(opener=kind, path=classifier(tmp_path / "a.onnx", 8), feed=Feed(mean=MEAN, std=STD), batch=2)
    with Worker(seat) as worker:
        opened = worker.ready()
        assert (opened.provider, opened.precision) == ("CPUExecutionProvider", "") and opened.load_ms > 0
        assert worker.first(PIXELS.repeat(2, 0)) > 0
        assert worker.warm_up(0.01).calls > 1
        assert worker.burst(5).shape == (5,)
        assert worker.compute_times(5) is None
        memory, nodes = worker.memory(), worker.profile(3)
        assert memory is None or memory.peak > memory.before > 0
        assert {"Conv", "Gemm"} <= {op for _, op, _ in nodes or []}
        pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
        engine = OrtEngine(seat.path, 1, "cpu")
        np.testing.assert_allclose(worker.logits(pixels), engine.infer(seat.feed.images(pixels)), atol=1e-5)
        engine.close()


def test_what_loadgen_found_comes_out_of_the_process(tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen (mlcommons-loadgen)")
    file = classifier(tmp_path / "a.onnx", 8)
    with Worker(Seat(opener=engine_class("ort"), path=file, feed=Feed(mean=MEAN, std=STD))) as worker:
        worker.ready()
        worker.first(PIXELS)
        for scenario in ("single-stream", "offline"):
            assert (worker.load(Load(scenario=scenario, seconds=0.05, queries=20)).n or 0) > 0


def test_a_file_at_fault_is_said_by_its_process(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"not a network")
    with pytest.raises(
        InputError, match=r"no\.onnx is not an ONNX file that onnxruntime can load .*; extract it again"
    ):
        ask(engine_class("ort"), tmp_path / "no.onnx")
