"""What bench/ promises: statistics, interleaving, engines in processes, records, gates and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from wmlc.accuracy import disagreement, top1_percent
from wmlc.bench import intervals, measure
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import engine_class
from wmlc.bench.engines.machine import choose_torch_device, pinned_cpus
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.torch_engine import TorchEngine
from wmlc.bench.engines.worker import Feed, Seat, Worker, normalise
from wmlc.bench.gates import missed_gates
from wmlc.bench.overhead import measure_overhead
from wmlc.bench.session import bench_run
from wmlc.data import Data, DataConfig, open_data
from wmlc.data import normalise as torch_normalise
from wmlc.errors import EngineFailed, GateError, InputError
from wmlc.files import write_json
from wmlc.models.checkpoint import load_network, save_network
from wmlc.models.cost import total_cost
from wmlc.models.widths import Widths, cut_to_widths, read_widths
from wmlc.models.zoo import build_network
from wmlc.records import Latency, NetworkSpec, Speedup
from wmlc.report.terminal import print_bench
from wmlc.run import Run
from wmlc.stats import student_t

SHAPE = (1, 8, 8)
MEAN, STD = [0.3], [0.4]
QUICK = BenchConfig(device="cpu", seconds=0.1, launches=2)


@pytest.fixture(scope="module")
def data() -> Data:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    return open_data(DataConfig())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, dict[tuple[int, str], Path]]]:
    """A finished run with a baseline and one peer of half the inner channels, and their ONNX files."""
    run = Run(tmp_path_factory.mktemp("bench") / "run")
    torch.manual_seed(0)
    widths = read_widths(build_network("resnet20", 10, SHAPE))
    save(run.network(0), widths, ratio=0.0)
    save(run.network(1), halve_inner(widths), ratio=0.4)
    peers = [{"peer": 1, "ratio": 0.4, "achieved_ratio": 0.4, "params": 1, "macs": 1, "top1": 10.0}]
    write_json(run.config, {})
    write_json(run.family, {"peers": peers, "baseline": {"peer": 0}, "finished": True})
    files = {(peer, "fp32"): run.root / f"{peer}.onnx" for peer in (0, 1)}
    for (peer, _), path in files.items():
        torch.onnx.export(
            load_network(run.network(peer)), (torch.zeros(2, *SHAPE),), path, dynamo=True, external_data=False,
            input_names=["input"], output_names=["logits"], dynamic_shapes={"input": {0: "batch"}}, verbose=False,
        )  # fmt: skip
    return run, {"onnx": files}


def save(directory: Path, widths: Widths, ratio: float) -> None:
    network = build_network("resnet20", 10, SHAPE)
    if widths != read_widths(network):
        with torch.device("meta"):
            network = build_network("resnet20", 10, SHAPE)
        cut_to_widths(network, widths)
        network = network.to_empty(device="cpu")
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    spec = NetworkSpec(
        arch="resnet20", class_names=[str(i) for i in range(10)], input_shape=list(SHAPE), mean=MEAN, std=STD,
        widths=widths, about={"ratio": ratio, "achieved_ratio": ratio, "params": 1, "macs": 1, "top1": 99.0},
    )  # fmt: skip
    directory.mkdir(parents=True)
    save_network(network.eval(), spec, directory)


def halve_inner(widths: Widths) -> Widths:
    """Half the channels between the two convolutions of each residual block."""
    cut = {name: list(entry) for name, entry in widths.items()}
    for name, entry in cut.items():
        if name.endswith(("conv1", "bn1")) and "stage" in name:
            entry[0] //= 2
        if name.endswith("conv2") and "stage" in name:
            entry[1] //= 2
    return cut


@pytest.fixture(scope="module", params=["ort", "torch"])
def benched(
    request: pytest.FixtureRequest, tiny: tuple[Run, dict[str, dict[tuple[int, str], Path]]], data: Data
) -> tuple[str, dict[str, Any], str]:
    """(engine, the record as read from its file, the message of the gate) of a bench with gates that none can pass."""
    run, files = tiny
    engine = request.param
    config = replace(
        QUICK, engines=(engine,), batches=(1, 4) if engine == "ort" else (1,), max_drop=-100, min_speedup=1e6
    )
    out = run.root / f"bench-{engine}.json"
    with pytest.raises(GateError) as raised:
        bench_run(run, config, files, data, out)
    return engine, json.loads(out.read_text()), str(raised.value)


# Statistics


def test_latency_of_known_times():
    times = np.random.default_rng(0).permutation(np.arange(1, 102, dtype=float))
    found = measure.latency(times)
    assert (found.mean, found.min, found.p50, found.p90, found.p99, found.n) == (51, 1, 51, 91, 100, 101)
    assert found.std == pytest.approx(np.sqrt(101 * 102 / 12))
    assert measure.latency(np.array([2.0])) == Latency(mean=2, min=2, p50=2, p90=2, p99=2, std=0, n=1)


def test_identical_samples_are_exactly_as_fast():
    launches = [[np.array([1.0, 3.0, 2.0]), np.array([5.0, 4.0])], [np.array([7.0])]]
    assert intervals.speedup(launches, launches, seed=0) == Speedup(median=1, low=1, high=1, n=3, launches=2)


def test_a_constant_ratio_is_found_whatever_the_machine_does_between_rounds():
    mood_R = np.random.default_rng(0).lognormal(0, 1, 40)
    found = intervals.paired_ratio([3 * mood_R], [2 * mood_R], seed=0)
    assert (found.median, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_holds_the_median_narrows_with_launches_and_is_reproducible():
    def found(launches: int) -> Speedup:
        draw = np.random.default_rng(1)
        above = [draw.lognormal(0.5 + draw.normal(0, 0.05), 0.1, 40) for _ in range(launches)]
        return intervals.paired_ratio(above, [np.ones(40)] * launches, seed=0)

    few, many = found(4), found(64)
    for each in (few, many):
        assert each.low < each.median < each.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert many.low < np.exp(0.5) < many.high
    assert found(4) == few and (few.n, few.launches) == (160, 4)


def test_an_interval_of_launches_is_wider_than_their_rounds_say():
    draw = np.random.default_rng(0)
    launches = [draw.normal(level, 0.01, 50) for level in (0.0, 0.1, 0.2, 0.3)]
    low, high = intervals.median_interval(launches, seed=0)
    alone = intervals.median_interval([np.concatenate(launches)], seed=0)
    assert high - low > 1.2 * (alone[1] - alone[0])


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042)])
def test_students_t_is_the_tables(freedom, t):
    assert student_t(freedom) == pytest.approx(t, rel=2e-3)


@pytest.mark.parametrize("mood", [0.0, 0.7])
def test_intervals_of_eight_launches_cover_the_truth_as_often_as_they_say(mood):
    """Also where a launch takes over a share `mood` of what disturbed the one before."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(200):
        launches, level = [], draw.normal(0, 0.015)
        for _ in range(8):
            level = mood * level + np.sqrt(1 - mood**2) * draw.normal(0, 0.015)
            launches.append(np.exp(level + draw.normal(0, 0.03, 20)))
        found = intervals.paired_ratio(launches, [np.ones(20)] * 8, seed=0)
        covered += found.low <= 1 <= found.high
    assert (0.9 if mood == 0 else 0.75) <= covered / 200 <= 0.99


def test_blocks_hold_every_round_once():
    launches = [np.full(3, float(place)) for place in range(9)]
    for count, blocks in ((1, 3), (2, 2), (5, 5), (6, 3), (9, 4)):
        found = intervals._blocks(launches[:count])
        assert len(found) == blocks
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(launches[:count]))


def test_a_burst_takes_about_20_ms_and_at_least_one_call():
    assert [measure.burst_calls(ms) for ms in (0.1, 2.0, 500.0, 0.0)] == [200, 10, 1, 20000]


# Interleaving


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
        provider = precision = ""
        calls = 0

        def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
            self.calls += 1
            return images_NCHW

        def close(self) -> None:
            pass

    engine = Steady()
    found = measure.warm_up(engine, np.zeros((1, 1, 1, 1)), most_s=0.0)
    assert found.calls == engine.calls > 1


# Accuracy


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
    assert disagreement(0.5, "fp32") == "its engine's logits differ from torch's by 0.5, allowed is 0.001"
    assert disagreement(float("nan"), "fp32") is not None


def test_pixels_are_normalised_as_in_training():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
    images = normalise(pixels, mean, std)
    assert images.dtype == np.float32 and images.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(images, torch_normalise(torch.from_numpy(pixels), mean, std).numpy(), atol=1e-6)


# A whole bench


def test_every_field_is_there_and_adds_up(benched, tiny):
    engine, record, _ = benched
    run, files = tiny
    environment = record["environment"]
    assert {"cpu", "gpu", "cores", "devices", "versions", "commit", "time"} <= environment.keys()
    assert environment["devices"] == {engine: "cpu"}
    batches = [1, 4] if engine == "ort" else [1]
    assert [(row["batch"], row["peer"]) for row in record["rows"]] == [(b, p) for b in batches for p in (0, 1)]
    full = total_cost(load_network(run.network(0)), SHAPE)
    for row in record["rows"]:
        peer, times = row["peer"], row["latency_ms"]
        cost = total_cost(load_network(run.network(peer)), SHAPE)
        file = files["onnx"][peer, "fp32"] if engine == "ort" else run.network(peer) / "weights.safetensors"
        expected = {
            "name": ["baseline", "peer1"][peer], "ratio": [0.0, 0.4][peer], "achieved_ratio": [0.0, 0.4][peer],
            "engine": engine, "precision": "fp32", "params": cost.params, "macs": cost.macs, "flops": 2 * cost.macs,
            "mac_ratio": full.macs / cost.macs, "file_bytes": file.stat().st_size, "threads": 1, "device": "cpu", "scenarios": {},
            "provider": {"ort": "CPUExecutionProvider", "torch": "torch cpu"}[engine],
        }  # fmt: skip
        assert {key: row[key] for key in expected} == expected
        assert times.keys() == {"mean", "min", "p50", "p90", "p99", "std", "n"}
        assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"] and times["n"] >= 100
        assert row["throughput_per_s"] == pytest.approx(1e3 * row["batch"] / times["mean"])
        assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]
        assert row["speedup"]["launches"] == 2
        assert row["paid_out"] == pytest.approx(row["speedup"]["median"] / row["mac_ratio"])
        assert row["p50_interval"]["low"] <= row["p50_interval"]["high"]
        assert row["load_ms"] > 0 and row["first_ms"] > 0
        assert row["peak_memory_bytes"] > row["engine_memory_bytes"] > 0
        assert row["logits_apart"] <= 1e-3
        assert row["warm_up"]["calls"] > 1
        assert any(note.startswith("p99 rests on") for note in row["notes"]) == (times["n"] < 1000)
        assert any(note.startswith("top-1 is ") for note in row["notes"])  # the record's 99 is not this network's
    baseline = record["rows"][0]
    assert baseline["speedup"] == {"median": 1, "low": 1, "high": 1, "n": baseline["speedup"]["n"], "launches": 2}
    assert baseline["top1_drop"] == 0


def test_top1_through_the_engine_is_torchs(benched, tiny, data):
    _, record, _ = benched
    run, _ = tiny
    for row in record["rows"]:
        network, right = load_network(run.network(row["peer"])), 0
        with torch.inference_mode():
            for pixels, labels in data.test_pixels(100):
                right += int((network(torch_normalise(pixels, MEAN, STD)).argmax(1) == labels).sum())
        assert row["top1"] == pytest.approx(100 * right / data.test_count())
        assert row["top1_drop"] == pytest.approx(record["rows"][0]["top1"] - row["top1"])


def test_missed_gates_name_the_peer_and_by_how_much(benched):
    engine, record, message = benched
    drop = record["rows"][1]["top1_drop"]
    parts = message.split("; ")
    assert len(parts) == (3 if engine == "ort" else 2)
    assert parts[0] == f"peer1: top-1 drop {drop:.2f} is above --max-drop -100 by {drop + 100:.2g} points"
    assert parts[1].startswith("peer1 at batch 1: speed-up ")
    assert " is below --min-speedup 1e+06 by " in parts[1]


def test_the_table_fits_100_columns_and_says_each_note_once(benched, capsys):
    _, record, _ = benched
    wide = json.loads(json.dumps(record))
    for row in wide["rows"]:
        row |= {"params": 25_600_000, "macs": 4_090_000_000, "file_bytes": 102_000_000, "ratio": 0.7, "top1": 76.13}
        row["speedup"] = {"median": 12.34, "low": 12.12, "high": 12.56, "n": 9}
        row["notes"] = ["said once"]
    print_bench(wide, Path("bench.json"), "table")
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("network ", "baseline ", "peer1 "))]
    assert len(table) == 2 * (len(wide["rows"]) + len({row["batch"] for row in wide["rows"]}))
    assert max(map(len, lines)) <= 100
    assert lines.count("note: all: said once") == 1


def test_a_run_without_a_baseline_says_what_is_missing_and_passes_no_gate(tiny, data, tmp_path):
    run, files = tiny
    alone = Run(tmp_path / "alone")
    alone.network(1).parent.mkdir(parents=True)
    alone.network(1).symlink_to(run.network(1))
    write_json(alone.family, {**json.loads(run.family.read_text()), "baseline": None})
    config = replace(QUICK, max_drop=1.0, min_speedup=1.0)
    with pytest.raises(GateError) as raised:
        bench_run(alone, config, {"onnx": {(1, "fp32"): files["onnx"][1, "fp32"]}}, data, tmp_path / "bench.json")
    assert str(raised.value) == (
        "peer1: top-1 drop was not measured, so --max-drop 1 is not met; "
        "peer1 at batch 1: speed-up was not measured, so --min-speedup 1 is not met"
    )
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["speedup"] is row["top1_drop"] is row["mac_ratio"] is row["paid_out"] is None and row["top1"] > 0
    assert row["latency_ms"]["n"] >= 100
    assert "speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none" in row["notes"]


def test_accuracy_that_is_switched_off_is_said_and_cannot_be_a_gate(tiny, data, tmp_path):
    run, files = tiny
    record = bench_run(run, replace(QUICK, accuracy=False), files, data, tmp_path / "bench.json")
    for row in record["rows"]:
        assert row["top1"] is row["top1_drop"] is row["on_front"] is None
        assert "top-1 and its drop not measured: the accuracy was switched off" in row["notes"]
    assert record["pareto"] == []
    with pytest.raises(InputError, match="max_drop needs the accuracy; leave --no-accuracy out"):
        BenchConfig(accuracy=False, max_drop=1.0)


def test_a_file_that_disagrees_with_its_network_gets_no_numbers(tiny, data, tmp_path):
    run, files = tiny
    same = dict.fromkeys(files["onnx"], files["onnx"][0, "fp32"])
    record = bench_run(run, QUICK, {"onnx": same}, data, tmp_path / "bench.json")
    baseline, peer = record["rows"]
    assert baseline["top1"] is not None
    assert peer["latency_ms"] is peer["speedup"] is peer["top1"] is peer["throughput_per_s"] is None
    assert peer["params"] and peer["file_bytes"]
    (note,) = peer["notes"]
    assert note.startswith("times and speed-up and top-1 not measured: its engine's logits differ from torch's by ")


def test_a_measured_gate_that_holds_is_not_reported():
    row = {
        "peer": 1,
        "name": "peer1",
        "engine": "ort",
        "precision": "fp32",
        "threads": 1,
        "batch": 1,
        "achieved_ratio": 0.5,
        "top1_drop": 0.5,
        "speedup": {"median": 2.0},
    }
    assert missed_gates([row], BenchConfig(max_drop=0.5, min_speedup=2.0)) == []
    assert missed_gates([{**row, "peer": 0, "speedup": None}], BenchConfig(min_speedup=2.0)) == []
    unpruned = {**row, "achieved_ratio": 0.0, "speedup": {"median": 1.0}}
    assert missed_gates([unpruned], BenchConfig(min_speedup=2.0)) == []


def test_data_of_another_shape_is_refused(tiny, tmp_path):
    from PIL import Image

    run, files = tiny
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (9, 8)).save(tmp_path / part / name / "0.png")
    other = open_data(DataConfig(name="imagefolder", root=tmp_path, workers=0))
    with pytest.raises(InputError, match="the test images are 8 x 9 x 1, baseline takes 8 x 8 x 1 "):
        bench_run(run, QUICK, files, other, tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()


# Engines in processes

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
PIXELS = np.zeros((1, 8, 8, 1), dtype=np.uint8)


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
    path = tmp_path / "small.onnx"
    small_onnx(path)
    assert ask(fakes.Imports, path).tolist() == [[0, 1]]


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


def test_an_engine_that_crashes_leaves_a_null_row(fakes, tiny, data, tmp_path, monkeypatch):
    run, files = tiny
    monkeypatch.setattr("wmlc.bench.cells.engine_class", lambda name: fakes.Crashes)
    record = bench_run(run, QUICK, files, data, tmp_path / "bench.json")
    for row in record["rows"]:
        assert row["latency_ms"] is row["top1"] is None
        assert row["notes"][0] == (
            "times and speed-up and top-1 not measured: its engine's process ended (killed by SIGKILL)"
        )
    assert record["rows"][1]["notes"][1].startswith("no comparison with the baseline where that has no number: ")


def test_a_process_is_pinned_where_the_system_can(fakes):
    cpus = pinned_cpus(1)
    if cpus is None:
        pytest.skip("this system cannot pin a process to CPUs")
    assert ask(fakes.Pinned, cpus=cpus).tolist() == [cpus]


def small_onnx(path: Path, input_name: str = "input", kind: int = TensorProto.FLOAT) -> None:
    """logits = the input, flattened."""
    node = helper.make_node("Flatten", [input_name], ["logits"])
    graph = helper.make_graph(
        [node], "small",
        [helper.make_tensor_value_info(input_name, kind, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", kind, ["batch", 64])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"precision": '"fp16"'})
    onnx.save_model(model, str(path))


def test_onnx_runtime_reads_precision_and_runs_any_batch(tmp_path):
    small_onnx(tmp_path / "small.onnx")
    engine = OrtEngine(tmp_path / "small.onnx", threads=2, device="cpu")
    assert (engine.provider, engine.precision) == ("CPUExecutionProvider", "fp16")
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(engine.infer(images), images.reshape(3, 64))
    engine.close()


@pytest.mark.parametrize("damage", [b"", b"not an ONNX file", None])
def test_a_damaged_file_is_refused_in_one_line(tiny, tmp_path, damage):
    path = tmp_path / "damaged.onnx"
    whole = tiny[1]["onnx"][1, "fp32"].read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(InputError) as raised:
        OrtEngine(path, threads=1, device="cpu")
    assert str(raised.value).startswith(f"{path} is not an ONNX file that onnxruntime can load (")
    assert str(raised.value).endswith("; extract it again")
    assert "\n" not in str(raised.value)


def test_a_damaged_file_refuses_the_whole_bench(tiny, data, tmp_path):
    run, files = tiny
    bad = tmp_path / "damaged.onnx"
    bad.write_bytes(b"\0" * 10)
    with pytest.raises(InputError, match="extract it again"):
        bench_run(run, QUICK, {"onnx": {**files["onnx"], (1, "fp32"): bad}}, data, tmp_path / "bench.json")
    with pytest.raises(InputError, match="there is no file of peer1 in fp32; extract them first"):
        bench_run(run, QUICK, {"onnx": {(0, "fp32"): files["onnx"][0, "fp32"]}}, data, tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()


def test_torch_runs_the_network_of_a_directory(tiny):
    run, _ = tiny
    before = torch.get_num_threads()
    engine = TorchEngine(run.network(1), threads=before, device="cpu")
    images = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        expected = load_network(run.network(1))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(engine.infer(images), expected, atol=1e-5)
    engine.close()


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engines": ("tvm",)},
            "engine must name some of torch, torch-compile, ort, ort-trt, openvino, trt, each once; got tvm",
        ),
        (
            {"engines": ("ort", "ort")},
            "engine must name some of torch, torch-compile, ort, ort-trt, openvino, trt, each once; got ort,ort",
        ),
        (
            {"scenarios": ("offline", "rush")},
            "scenario must name some of single-stream, multi-stream, offline, server, each once; got offline,rush",
        ),
        (
            {"scenarios": ("server",)},
            "the scenario server and --latency-bound go together: the highest rate whose 99th percentile stays under it; give both, such as --scenario server --latency-bound 20",
        ),
        ({"launches": 0}, "launches must be at least 1, got 0"),
        (
            {"engines": ("ort", "torch"), "precisions": ("int8",)},
            "the engine torch runs a peer as it was trained, in fp32; use --engine ort for others",
        ),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"batches": (1, 0)}, "batch must be at least 1, got 1,0"),
        ({"batches": ()}, "batch must be at least 1, got none"),
        ({"batches": (2, 2)}, "batch must name each size once, got 2,2"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"min_speedup": 0.0}, "min_speedup must be above 0, got 0"),
        ({"max_drop": float("nan")}, "max_drop must be a number of top-1 points, got nan"),
    ],
)
def test_a_bad_config_is_refused(options, message):
    with pytest.raises(InputError) as raised:
        BenchConfig(**options)
    assert str(raised.value) == message


def test_more_threads_than_cpus_are_refused():
    for threads in (0, 10**6):
        with pytest.raises(InputError, match=f"^threads must be from 1 to the [0-9]+ CPUs there are, got {threads}$"):
            BenchConfig(threads=(threads,))


def test_tensorrt_says_what_is_missing_and_loads_nothing():
    program = """
import importlib.util, sys, torch
from wmlc.bench.engines import engine_class
from wmlc.errors import InputError
find = importlib.util.find_spec
for gpu, package in ((False, True), (True, None), (True, True)):
    torch.cuda.is_available = lambda: gpu
    importlib.util.find_spec = lambda name: package if name == "tensorrt" else find(name)
    try:
        engine_class("trt").choose_device("auto")
    except InputError as error:
        print(error)
assert "tensorrt" not in sys.modules and "onnxruntime" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "--engine trt needs an NVIDIA GPU and its driver, and torch sees none; use a GPU machine, or use --engine ort or torch",
        "--engine trt needs the package tensorrt, which is not installed (pip install 'wmlc[trt]'); install it, or use "
        "--engine ort or torch",
    ]


def test_cuda_is_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_torch_device("auto") == choose_torch_device("cpu") == "cpu"
    with pytest.raises(InputError, match="--device cuda was asked for, but torch sees no CUDA GPU"):
        choose_torch_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (choose_torch_device("auto"), choose_torch_device("cpu")) == ("cuda", "cpu")


def test_a_provider_that_does_not_load_is_an_error(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here the CUDA provider loads")
    small_onnx(tmp_path / "small.onnx")
    with pytest.raises(InputError, match="CUDAExecutionProvider"):
        OrtEngine(tmp_path / "small.onnx", threads=1, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("engine", ["ort", "torch"])
def test_a_gpu_computes_what_the_cpu_does(tiny, engine):
    run, files = tiny
    source = files["onnx"][1, "fp32"] if engine == "ort" else run.network(1)
    images = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)
    on_cpu, on_gpu = (engine_class(engine)(source, 1, device) for device in ("cpu", "cuda"))
    for batch in (5, 2):
        np.testing.assert_allclose(on_gpu.infer(images[:batch]), on_cpu.infer(images[:batch]), atol=1e-3)
    assert (measure.time_calls(on_gpu, images, 3) > 0).all()


def test_an_engine_with_a_clock_of_its_own_is_asked():
    class Clocked:
        def time_call(self, images_NCHW):
            return float(len(images_NCHW))

    np.testing.assert_array_equal(measure.time_calls(Clocked(), np.empty((4, 1)), 3), [4.0, 4.0, 4.0])


def test_the_overhead_is_measured(tmp_path):
    small_onnx(tmp_path / "small.onnx")
    found = measure_overhead(tmp_path / "small.onnx", seconds=0.05)
    assert found.low <= found.median <= found.high and found.n >= 10


def test_the_command_line_can_read_defaults_without_torch():
    program = "import sys; from wmlc.bench.config import BenchConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
