"""How times are taken: by turns, warm, by the engine's own clock where it has one; and top-1 beside them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from measured import flatten_file

from wmlc.accuracy import disagreement, top1_percent
from wmlc.bench import measure
from wmlc.bench.engines.worker import normalise
from wmlc.data import normalise as torch_normalise
from wmlc.errors import EngineFailed
from wmlc.records import Latency


def test_latency_of_known_times():
    times = np.random.default_rng(0).permutation(np.arange(1, 102, dtype=float))
    found = measure.latency(times)
    assert (found.mean, found.min, found.p50, found.p90, found.p99, found.n) == (51, 1, 51, 91, 100, 101)
    assert found.std == pytest.approx(np.sqrt(101 * 102 / 12))
    assert measure.latency(np.array([2.0])) == Latency(mean=2, min=2, p50=2, p90=2, p99=2, std=0, n=1)


def test_a_burst_takes_about_20_ms_and_at_least_one_call():
    assert [measure.burst_calls(ms) for ms in (0.1, 2.0, 500.0, 0.0)] == [200, 10, 1, 20000]


class Fake:
    """Says in `order` when it is timed; gives the `times` it was told to."""

    def __init__(self, name: str, order: list[str], fails_after: int = 10**6) -> None:
        self.name, self.order, self.left = name, order, fails_after

    def burst(self, calls: int) -> np.ndarray:
        self.order.append(self.name)
        self.left -= 1
        if self.left < 0:
            raise EngineFailed("it fell over")
        return np.full(calls, 1.0)


def test_every_round_is_complete_and_the_order_is_shuffled_by_the_seed():
    def run(seed: int) -> list[str]:
        order: list[str] = []
        engines = {name: Fake(name, order) for name in "abc"}
        bursts, failures = measure.interleave(engines, {"a": 2, "b": 3, "c": 4}, 1e-6, seed)
        assert not failures
        assert {name: len(found) for name, found in bursts.items()} == {"a": 50, "b": 50, "c": 50}
        assert [len(bursts[name][0]) for name in "abc"] == [2, 3, 4]
        return order

    order = run(0)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    assert run(0) == order != run(1)


def test_an_engine_that_fails_on_the_way_leaves_the_others_alone():
    order: list[str] = []
    engines = {"good": Fake("good", order), "bad": Fake("bad", order, fails_after=3)}
    bursts, failures = measure.interleave(engines, {"good": 10, "bad": 10}, 1e-6, 0)
    assert failures == {"bad": "it fell over"}
    assert list(bursts) == ["good"] and len(bursts["good"]) == 10


def test_warm_up_ends_settled_or_in_time():
    class Steady:
        time_call = None
        calls = 0

        def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
            self.calls += 1
            return images_NCHW

    engine = Steady()
    found = measure.warm_up(engine, np.zeros((1, 1, 1, 1)), most_s=0.0)
    assert found.calls == engine.calls > 1


def test_an_engine_with_a_clock_of_its_own_is_asked():
    class Clocked:
        def time_call(self, images_NCHW):
            return float(len(images_NCHW))

    np.testing.assert_array_equal(measure.time_calls(Clocked(), np.empty((4, 1)), 3), [4.0, 4.0, 4.0])


def test_top1_is_counted_over_partial_batches_and_survives_a_failure():
    class Says:
        def __init__(self, answer: int) -> None:
            self.answer = answer

        def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
            if self.answer < 0:
                raise EngineFailed("no")
            return np.eye(4, dtype=np.float32)[[self.answer] * len(pixels_BHWC)]

    labels = torch.tensor([0, 1, 1, 2, 1])
    batches = zip(torch.zeros(5, 2, 2, 1, dtype=torch.uint8).split(2), labels.split(2), strict=True)
    top1, failures = top1_percent({0: Says(1), 1: Says(2), 2: Says(-1)}, batches, 5)
    assert top1 == {0: 60.0, 1: 20.0}
    assert failures == {2: "no"}


def test_engines_that_disagree_are_refused_in_words():
    assert disagreement(1e-3, "fp32") is None
    assert disagreement(0.5, "fp32") == (
        "its engine's logits differ from torch's by 0.5 of their own size, allowed is 0.001"
    )
    assert disagreement(float("nan"), "fp32") is not None


def test_pixels_are_normalised_as_in_training():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
    images = normalise(pixels, mean, std)
    assert images.dtype == np.float32 and images.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(images, torch_normalise(torch.from_numpy(pixels), mean, std).numpy(), atol=1e-6)


def overhead_script() -> ModuleType:
    """tests/benchmarks/overhead.py, which lies in no package."""
    path = Path(__file__).parent / "benchmarks" / "overhead.py"
    spec = importlib.util.spec_from_file_location("overhead", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_overhead_of_the_own_loop_is_measured(tmp_path):
    found = overhead_script().measure_overhead(flatten_file(tmp_path / "small.onnx"), seconds=0.05)
    assert found.low <= found.median <= found.high and found.n >= 10
