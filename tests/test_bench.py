"""A whole bench of a run: what its record holds, and what one network's failure or an odd file costs."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from made import made_plan
from onnx import helper, numpy_helper

from wmlc import records
from wmlc.bench import agreement
from wmlc.bench.agreement import References, held_against_reference
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import engine_class
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.worker import Feed, Seat, Worker
from wmlc.bench.session import bench_run
from wmlc.bench.subjects import Files, _read_network
from wmlc.data import Data, DataConfig, normalise, open_data
from wmlc.errors import EngineFailed, InputError
from wmlc.models.checkpoint import load_network, read_spec
from wmlc.models.cost import total_cost
from wmlc.records import Bench
from wmlc.run import Run, open_run_data, peer_name, read_family

QUICK = BenchConfig(device="cpu", seconds=0.01, launches=1)


@pytest.fixture(scope="module")
def data(run: Run) -> Data:
    return open_run_data(run)


@pytest.fixture(scope="module")
def files(benched_run: Run) -> Files:
    """The ONNX files of all networks in fp32."""
    return {"onnx": {(peer, "fp32"): onnx_file(benched_run, peer) for peer in (0, 1, 2)}}


def onnx_file(run: Run, peer: int) -> Path:
    return run.onnx / f"family-{peer_name(peer)}.onnx"


@pytest.fixture
def alone(benched_run: Run, tmp_path: Path) -> Run:
    """A run without a baseline, and with one peer."""
    found = Run(tmp_path / "alone")
    found.network(1).parent.mkdir(parents=True)
    shutil.copytree(benched_run.network(1), found.network(1))
    family = read_family(benched_run)
    records.write(found.family, replace(family, baseline=None, peers=family.peers[:1]))
    return found


def test_the_record_of_a_run_holds_every_network(benched_run: Run) -> None:
    bench = records.read(benched_run.bench, Bench, "bench", "bench again")
    assert [(row.peer, row.precision) for row in bench.rows] == [(p, form) for form in ("fp32", "int8") for p in (0, 1, 2)]  # fmt: skip
    assert [row.name for row in bench.rows[2:5]] == ["peer2", "baseline int8", "peer1 int8"]
    assert bench.environment.devices == {"ort": "cpu"} and bench.data and bench.data.name == "digits"
    full = total_cost(load_network(benched_run.network(0)), (1, 8, 8))
    for row in bench.rows:
        cost, times = total_cost(load_network(benched_run.network(row.peer)), (1, 8, 8)), row.latency_ms
        assert (row.params, row.macs, row.mac_ratio) == (cost.params, cost.macs, full.macs / cost.macs)
        assert row.achieved_ratio == (read_spec(benched_run.network(row.peer)).about.achieved_ratio or 0.0)
        assert times and 0 < times.min <= times.p50 <= times.p90 <= times.p99 and times.n >= 100
        assert row.speedup and row.speedup.low <= row.speedup.median <= row.speedup.high
        assert row.speedup.launches == 1 and row.logits_apart is not None
        assert row.file_bytes and row.load_ms and row.first_ms and row.top1 is not None
    assert bench.rows[0].file_bytes == onnx_file(benched_run, 0).stat().st_size
    (front,) = bench.pareto
    assert {point.name for point in front.points} == {row.name for row in bench.rows if row.on_front}


def test_top1_through_the_engine_is_torchs(benched_run: Run, data: Data) -> None:
    rows = records.read(benched_run.bench, Bench, "bench", "bench again").rows
    for row in rows[:3]:
        network, right = load_network(benched_run.network(row.peer)), 0
        spec = read_spec(benched_run.network(row.peer))
        with torch.inference_mode():
            for pixels, labels in data.test_pixels(100):
                right += int((network(normalise(pixels, spec.mean, spec.std)).argmax(1) == labels).sum())
        assert row.top1 == pytest.approx(100 * right / data.test_count())
        assert row.top1_drop == pytest.approx((rows[0].top1 or 0) - row.top1)


def test_int8_that_moves_logits_far_is_the_files_doing_and_an_engine_that_does_is_refused(
    benched_run: Run, in_process: None, tmp_path: Path
) -> None:
    model = onnx.load(str(benched_run.onnx / "family-int8-cpu-peer1.onnx"))
    model.graph.node[-1].output[0] = "half"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0), "two"))
    model.graph.node.append(helper.make_node("Mul", ["half", "two"], ["logits"]))
    onnx.save_model(model, str(tmp_path / "far.onnx"))
    network = _read_network(benched_run, 1)
    subject = replace(network, precision="int8", source=tmp_path / "far.onnx", onnx_file=tmp_path / "far.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    fed = normalise(torch.from_numpy(pixels), network.feed.mean, network.feed.std).numpy()
    logits = OrtEngine(subject.source, 1, "cpu").infer(fed)
    found = held_against_reference(subject, logits, References(pixels), "int8", 1)
    assert found.failure is None and found.apart > 0.5
    (note,) = found.notes
    assert re.fullmatch(r"int8 moves its logits by [01]\.?\d* of their size; its top-1 has the cost", note)
    wrong = held_against_reference(subject, logits[:, ::-1], References(pixels), "int8", 1)
    assert wrong.failure and "differ from torch's" in wrong.failure and not wrong.notes
    in_fp32 = held_against_reference(replace(subject, precision="fp32"), logits, References(pixels), "fp32", 1)
    assert in_fp32.failure and "allowed is 0.001" in in_fp32.failure


def test_a_run_without_a_baseline_says_what_is_missing(
    alone: Run, files: Files, data: Data, tmp_path: Path, in_process: None
) -> None:
    bench = bench_run(alone, replace(QUICK, engines=("torch",)), files, data, tmp_path / "bench.json")
    (row,) = bench.rows
    assert (row.provider, row.device, row.precision) == ("torch cpu", "cpu", "fp32")
    assert row.latency_ms and row.latency_ms.n >= 100 and row.load_ms and row.top1 is not None
    assert row.logits_apart is not None and row.logits_apart < 1e-3
    assert row.file_bytes == (alone.network(1) / "weights.safetensors").stat().st_size
    assert row.speedup is row.top1_drop is row.mac_ratio is None
    assert "speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none" in row.notes
    assert records.read(tmp_path / "bench.json", Bench, "bench", "bench again") == bench


def test_a_run_that_was_cut_for_a_latency_is_held_against_it(
    alone: Run, files: Files, data: Data, tmp_path: Path, in_process: None
) -> None:
    records.write(alone.family, replace(read_family(alone), latency=made_plan((1e4,), full_ms=2e4)))
    settings = replace(QUICK, batches=(1, 2), accuracy=False)
    bench = bench_run(alone, settings, files, data, tmp_path / "bench.json")
    assert [(row.latency_budget_ms, row.budget_met) for row in bench.rows] == [(1e4, True), (None, None)]
    assert sum("other cells are not held against them" in note for note in bench.notes) == 1
    assert records.read(tmp_path / "bench.json", Bench, "bench", "bench again") == bench


def test_a_bench_asks_torch_once_a_network_and_nothing_of_training_images(
    alone: Run, files: Files, data: Data, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, by_torch = list[Path](), agreement._by_torch

    def counted(directory: Path, pixels: np.ndarray) -> np.ndarray:
        asked.append(directory)
        return by_torch(directory, pixels)

    monkeypatch.setattr(agreement, "_by_torch", counted)
    monkeypatch.setattr(type(data), "record", property(lambda _: pytest.fail("training images are read")))
    bench = bench_run(alone, replace(QUICK, batches=(1, 2)), files, data, tmp_path / "bench.json")
    assert [row.top1 is not None for row in bench.rows] == [True, True]
    assert asked == [alone.network(1)]


def test_torch_runs_in_a_process_of_its_own(run: Run) -> None:
    kind, pixels = engine_class("torch"), np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    spec = read_spec(run.network(1))
    seat = Seat(opener=kind, path=run.network(1), feed=Feed(mean=spec.mean, std=spec.std), libraries=kind.libraries)
    with Worker(seat) as worker:
        assert worker.ready().provider == "torch cpu" and worker.first(pixels) > 0 and worker.burst(3).shape == (3,)
        assert "Conv2d" in {op for _, op, _ in worker.profile(1) or []}
        with torch.inference_mode():
            expected = load_network(run.network(1))(normalise(torch.from_numpy(pixels), spec.mean, spec.std))
        np.testing.assert_allclose(worker.logits(pixels), expected.numpy(), atol=1e-4)


def test_accuracy_that_is_switched_off_is_said_and_cannot_be_a_gate(
    alone: Run, files: Files, data: Data, tmp_path: Path, in_process: None
) -> None:
    bench = bench_run(alone, replace(QUICK, accuracy=False), files, data, tmp_path / "bench.json")
    (row,) = bench.rows
    assert row.top1 is row.top1_drop is row.on_front is None
    assert "top-1 and its drop not measured: the accuracy was switched off" in row.notes
    assert bench.pareto == []
    with pytest.raises(InputError, match="--max-drop needs the accuracy; leave --no-accuracy out"):
        BenchConfig(accuracy=False, max_drop=1.0)


def test_a_file_that_disagrees_with_its_network_gets_no_numbers(
    run: Run, files: Files, data: Data, tmp_path: Path, in_process: None
) -> None:
    same = {**files["onnx"], (1, "fp32"): files["onnx"][0, "fp32"]}
    baseline, peer, _ = bench_run(run, QUICK, {"onnx": same}, data, tmp_path / "bench.json").rows
    assert baseline.top1 is not None
    assert peer.latency_ms is peer.speedup is peer.top1 is peer.throughput_per_s is None
    assert peer.params and peer.file_bytes
    (note,) = peer.notes
    assert note.startswith("times and speed-up and top-1 not measured: its engine's logits differ from torch's by ")


def test_an_engine_that_falls_over_leaves_null_rows(
    run: Run, files: Files, data: Data, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashes(OrtEngine):
        def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
            raise EngineFailed("its engine's process ended (killed by SIGKILL)")

    monkeypatch.setattr("wmlc.bench.cells.engine_class", lambda name: Crashes)
    rows = bench_run(run, QUICK, files, data, tmp_path / "bench.json").rows
    for row in rows:
        assert row.latency_ms is row.top1 is None
        assert row.notes[0] == (
            "times and speed-up and top-1 not measured: its engine's process ended (killed by SIGKILL)"
        )
    assert rows[1].notes[1].startswith("no comparison with the baseline where that has no number: ")


def test_a_network_without_a_file_costs_its_cells_and_torch_does_without(
    alone: Run, files: Files, data: Data, tmp_path: Path, in_process: None
) -> None:
    lacking = {
        **files["onnx"],
        (1, "fp16"): InputError("conv1 does not fit into float16"),
        (1, "fp32"): InputError("no"),
    }
    both = replace(QUICK, engines=("ort", "torch"), precisions=("fp16", "fp32"))
    half, whole, by_torch = bench_run(alone, both, {"onnx": lacking}, data, tmp_path / "bench.json").rows
    assert (half.name, half.file_bytes, half.latency_ms, half.top1) == ("peer1 fp16", None, None, None)
    assert half.notes[0] == "times and speed-up and top-1 not measured: conv1 does not fit into float16"
    assert whole.latency_ms is None and by_torch.latency_ms and "there is no ONNX file: no" in by_torch.notes
    (bad := tmp_path / "damaged.onnx").write_bytes(b"\0" * 10)  # or of operations that the engine has not in fp16
    one_bad = {"onnx": {**files["onnx"], (1, "fp16"): bad}}
    whole, half = bench_run(alone, replace(QUICK, precisions=("fp32", "fp16")), one_bad, data, tmp_path / "b.json").rows
    assert whole.latency_ms and half.latency_ms is None and "extract it again" in half.notes[0]


def test_data_of_another_shape_is_refused(run: Run, files: Files, tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (9, 8)).save(tmp_path / part / name / "0.png")
    other = open_data(DataConfig(name="imagefolder", root=tmp_path, workers=0))
    with pytest.raises(InputError, match="the test images are 8 x 9 x 1, baseline takes 8 x 8 x 1 "):
        bench_run(run, QUICK, files, other, tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()


def test_a_damaged_or_missing_file_refuses_the_whole_bench(
    run: Run, files: Files, data: Data, tmp_path: Path, in_process: None
) -> None:
    bad = tmp_path / "damaged.onnx"
    bad.write_bytes(b"\0" * 10)
    with pytest.raises(InputError, match="extract it again"):
        bench_run(run, QUICK, {"onnx": {**files["onnx"], (1, "fp32"): bad}}, data, tmp_path / "bench.json")
    with pytest.raises(InputError, match="there is no file of peer1 in fp32, peer2 in fp32; extract them first"):
        bench_run(run, QUICK, {"onnx": {(0, "fp32"): bad}}, data, tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()
