"""Benches of ONNX files of any origin: several cells, what a file or an engine at fault costs, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from measured import InProcess, classifier, measured, save_onnx
from onnx import TensorProto, helper

from wmlc import records
from wmlc.bench.cells import Cell, Images, Measurement, _check_agreement
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import engine_class
from wmlc.bench.engines.worker import Feed, Seat
from wmlc.bench.foreign import read_file
from wmlc.bench.layout import has_blocks
from wmlc.bench.session import bench_files
from wmlc.bench.subjects import Key, Subject, file_subjects
from wmlc.cli import main
from wmlc.data import DataConfig, open_data
from wmlc.errors import EngineFailed, InputError
from wmlc.files import sha256
from wmlc.records import About, Bench

QUICK = BenchConfig(seconds=0.01, launches=2, accuracy=False)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [classifier(tmp_path / "wide.onnx", 32), classifier(tmp_path / "narrow.onnx", 8)]


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Nothing is run: each network takes a millisecond for 1,000 MACs. The cells, as they are measured."""
    cells: list[Cell] = []

    def measure_cell(cell: Cell, subjects: list[Subject], *_: Any, **__: Any) -> dict[Key, Measurement]:
        cells.append(cell)
        made = [(subject, measured(subject.peer, subject.cost.macs / 1000, top1=None)) for subject in subjects]
        return {subject.key: replace(own, subject=subject) for subject, own in made}

    monkeypatch.setattr("wmlc.bench.session.measure_cell", measure_cell)
    return cells


def test_files_of_any_origin_are_measured_the_first_being_the_baseline(two: list[Path], tmp_path: Path) -> None:
    """Through ONNX Runtime in processes of its own, and layer by layer."""
    bench = bench_files(two, replace(QUICK, profile=True), None, tmp_path / "bench.json")
    assert [(row.name, row.peer) for row in bench.rows] == [("wide", 0), ("narrow", 1)]
    wide, narrow = bench.rows
    assert wide.macs == 8 * 8 * 9 * 32 + 320 and narrow.macs == 8 * 8 * 9 * 8 + 80
    assert wide.params == 9 * 32 + 320 + 10
    assert narrow.mac_ratio == wide.macs / narrow.macs
    assert narrow.speedup and narrow.speedup.launches == 2 and wide.speedup and wide.speedup.median == 1
    assert narrow.ratio is narrow.top1 is bench.data is None
    assert narrow.peak_memory_bytes is None or narrow.peak_memory_bytes > (narrow.engine_memory_bytes or 0) > 0
    assert [(p.name, p.peer) for p in bench.profiles] == [("wide", 0), ("narrow", 1)]
    for profile in bench.profiles:
        told = {layer.layer: layer.blocked for layer in profile.layers}
        assert told["conv"] is (True if has_blocks() else None) and told["fc"] is None
        assert {"conv", "fc"} <= {layer.layer for layer in profile.layers}
        assert profile.profiled_ms == sum(layer.ms for layer in profile.layers) and (profile.p50_ms or 0) > 0
    assert records.read(tmp_path / "bench.json", Bench, "bench", "bench again") == bench


def test_openvino_is_benched_in_a_process_of_its_own(two: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    config = replace(QUICK, engines=("openvino",), launches=1)
    (row,) = bench_files(two[1:], config, None, tmp_path / "bench.json").rows
    assert row.provider and row.provider.startswith("OpenVINO 20") and row.latency_ms
    assert row.logits_apart is not None and row.logits_apart < 1e-3


def test_a_bench_has_a_cell_for_each_engine_threads_and_batch(
    two: list[Path], tmp_path: Path, by_hand: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmlc.bench.session.choose_devices", lambda config: {"ort": "cpu", "ort-trt": "cuda"})
    monkeypatch.setattr("wmlc.bench.engines.machine._gpu_name", lambda: "a GPU")
    monkeypatch.setattr("wmlc.bench.config.allowed_cpus", lambda: [0, 1])
    config = replace(QUICK, engines=("ort", "ort-trt"), threads=(1, 2), batches=(1, 3))
    bench = bench_files(two, config, None, tmp_path / "bench.json")
    assert [str(cell) for cell in by_hand] == [
        "ort, batch 1, 1 thread", "ort, batch 3, 1 thread", "ort, batch 1, 2 threads", "ort, batch 3, 2 threads",
        "ort-trt, batch 1", "ort-trt, batch 3",
    ]  # fmt: skip
    assert [(row.engine, row.threads, row.batch, row.name) for row in bench.rows] == [
        (cell.engine, cell.threads, cell.batch, name) for cell in by_hand for name in ("wide", "narrow")
    ]
    assert bench.rows[1].paid_out == pytest.approx(1) and bench.profiles == []


def test_layers_are_profiled_where_a_saving_is_not_paid_out_and_the_engine_can_tell(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime cannot on a GPU: there its processes are started for that only where it was asked for."""
    profiled: list[str] = []
    monkeypatch.setattr(
        "wmlc.bench.session.measure_cell",
        lambda cell, subjects, *_, **__: {
            s.key: replace(measured(s.peer, 1.0, top1=None), subject=s) for s in subjects
        },
    )
    monkeypatch.setattr(
        "wmlc.bench.session.profile_cell", lambda cell, *_: profiled.append(cell.device) or ({}, {}),
    )  # fmt: skip
    monkeypatch.setattr("wmlc.bench.engines.machine._gpu_name", lambda: "a GPU")
    for device, asked in (("cpu", False), ("cuda", False), ("cuda", True)):
        monkeypatch.setattr("wmlc.bench.session.choose_devices", lambda config, device=device: {"ort": device})
        bench_files(two, replace(QUICK, profile=asked), None, tmp_path / "bench.json")
    assert profiled == ["cpu", "cuda"]


def test_a_bench_measures_while_no_other_does(
    two: list[Path], tmp_path: Path, by_hand: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []

    @contextmanager
    def alone() -> Iterator[None]:
        yield
        inside.append(len(by_hand))

    monkeypatch.setattr("wmlc.bench.session.measuring_alone", alone)
    bench_files(two, QUICK, None, tmp_path / "bench.json")
    assert inside == [1]


@pytest.mark.parametrize(
    ("kind", "last", "batch"),
    [
        (TensorProto.UINT8, True, "n"),
        (TensorProto.UINT8, False, "n"),
        (TensorProto.FLOAT, True, "n"),
        (TensorProto.FLOAT, False, 7),  # which does not divide the images, so the last call is filled up
    ],
)
def test_layouts_types_and_fixed_batches_are_fed_as_the_file_takes_them(
    tmp_path: Path, kind: int, last: bool, batch: int | str
) -> None:
    file = classifier(tmp_path / "other.onnx", 8, kind=kind, last=last, batch=batch)
    (subject,) = file_subjects([read_file(file)], None)
    own = Measurement(subject)
    seat = Seat(opener=engine_class("ort"), path=file, feed=subject.feed, batch=subject.batch)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    with InProcess(seat) as worker:
        own.opened.append(worker.ready())
        _check_agreement(own, worker, Images(pixels_NHWC=pixels, data=None))  # type: ignore[arg-type]
    assert own.apart is not None and own.apart < 1e-3


def test_accuracy_of_a_file_is_measured_on_a_named_set(two: list[Path], tmp_path: Path, in_process: None) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    data = open_data(DataConfig())
    bench = bench_files(two, replace(QUICK, accuracy=True, batches=(1, 2)), data, tmp_path / "bench.json")
    assert all(row.top1 is not None and 0 <= row.top1 <= 100 for row in bench.rows)
    assert [row.top1 for row in bench.rows[:2]] == [row.top1 for row in bench.rows[2:]]
    assert bench.pareto[0].points and bench.data and bench.data.test_images == data.test_count()


def test_a_file_of_one_batch_size_costs_only_the_other_cells(tmp_path: Path, in_process: None) -> None:
    file = classifier(tmp_path / "fixed.onnx", 8, batch=2)
    one, two = bench_files([file], replace(QUICK, batches=(1, 2)), None, tmp_path / "bench.json").rows
    assert one.latency_ms is None and two.latency_ms is not None
    assert one.notes[0] == "times and speed-up not measured: the file takes batches of 2 only; pass --batch 2"


def test_weights_in_a_file_of_their_own_count(tmp_path: Path) -> None:
    whole = classifier(tmp_path / "whole.onnx", 32)
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(str(whole)), str(apart), save_as_external_data=True, location="apart.bin", size_threshold=0)
    (subject,) = file_subjects([read_file(apart)], None)
    assert subject.file_bytes == apart.stat().st_size + (tmp_path / "apart.bin").stat().st_size
    assert subject.file_sha256 == sha256(apart)
    assert subject.cost.params == 9 * 32 + 320 + 10


@pytest.mark.parametrize(
    "said",
    [
        {"mean": '"red"', "std": "[0.2]"}, {"mean": "[0.5, 0.5]", "std": "[0.2]"}, {"mean": "[NaN]", "std": "[0.2]"},
        {"mean": "[0.4]", "std": "[-1]"}, {"ratio": "7.5", "top1": "-3.0"}, {"top1": "9" * 6000},
        {"top1": "[" * 10**5}, {"top1": "NaN"},
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_ours_is_not_believed(tmp_path: Path, said: dict[str, str]) -> None:
    model = onnx.load(str(classifier(tmp_path / "odd.onnx", 8)))
    helper.set_model_props(model, said)
    onnx.save(model, str(tmp_path / "odd.onnx"))
    (subject,) = file_subjects([read_file(tmp_path / "odd.onnx")], None)
    assert (subject.feed, subject.about) == (Feed(mean=[0.5], std=[0.25]), About())


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    files = [classifier(tmp_path / folder / "model.onnx", 8) for folder in ("a", "b")]
    one, other = map(read_file, files)
    assert [subject.name for subject in file_subjects([one, other], None)] == ["a/model", "b/model"]
    assert [subject.name for subject in file_subjects([one, one], None)] == ["0: model", "1: model"]


def test_what_was_measured_before_an_interrupt_is_kept(
    two: list[Path], tmp_path: Path, by_hand: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmlc.bench.session import measure_cell

    def stopping(*given: Any, **how: Any) -> dict[Key, Measurement]:
        if by_hand:
            raise KeyboardInterrupt
        return measure_cell(*given, **how)

    monkeypatch.setattr("wmlc.bench.session.measure_cell", stopping)
    bench = bench_files(two, replace(QUICK, batches=(1, 2)), None, tmp_path / "bench.json")
    assert [row.batch for row in bench.rows] == [1, 1]
    assert bench.notes[-1] == "stopped after 1 of 2 cells"
    assert records.read(tmp_path / "bench.json", Bench, "bench", "bench again") == bench
    with pytest.raises(KeyboardInterrupt):  # before anything was measured
        bench_files(two, QUICK, None, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_an_engine_that_fails_in_one_launch_costs_its_cell_only(
    two: list[Path], tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, calls = InProcess.first, []

    def failing(self: InProcess, pixels_NHWC: np.ndarray) -> float:
        calls.append(len(pixels_NHWC))
        if len(pixels_NHWC) == 2 and calls.count(2) == 4:  # the second network in the first timed launch of batch 2
            raise EngineFailed("its engine's process ended (killed by SIGKILL)")
        return first(self, pixels_NHWC)

    monkeypatch.setattr(InProcess, "first", failing)
    rows = bench_files(two, replace(QUICK, batches=(1, 2, 3)), None, tmp_path / "bench.json").rows
    unmeasured = [(row.name, row.batch) for row in rows if row.latency_ms is None]
    assert unmeasured == [("narrow", 2)]
    assert "its engine's process ended (killed by SIGKILL)" in rows[3].notes[0]


def test_a_profile_that_fails_costs_no_times(
    two: list[Path], tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise InputError("its profiler is broken")

    monkeypatch.setattr("wmlc.bench.engines.ort_engine.OrtEngine.profile", failing)
    bench = bench_files(two, replace(QUICK, profile=True, launches=1), None, tmp_path / "bench.json")
    assert bench.profiles == []
    for row in bench.rows:
        assert row.latency_ms is not None and row.notes[-1] == "time a layer not measured: its profiler is broken"


def test_a_scenario_that_fails_costs_no_times(
    two: list[Path], tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen (mlcommons-loadgen)")

    def failing(*_: Any, **__: Any) -> None:
        raise EngineFailed("no answer")

    monkeypatch.setattr("wmlc.bench.cells.measure_scenario", failing)
    config = replace(QUICK, scenarios=("offline",), launches=1)
    for row in bench_files(two, config, None, tmp_path / "bench.json").rows:
        assert row.latency_ms is not None and row.scenarios == {}
        assert "scenario offline not measured: no answer" in row.notes


def test_scenarios_are_run_through_loadgen(two: list[Path], tmp_path: Path, in_process: None) -> None:
    pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen (mlcommons-loadgen)")
    config = replace(QUICK, scenarios=("single-stream", "offline"), launches=1)
    (row,) = bench_files(two[1:], config, None, tmp_path / "bench.json").rows
    assert list(row.scenarios) == ["single-stream", "offline"]
    assert all(found.n for found in row.scenarios.values())


def test_a_file_without_a_known_layer_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])], "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
    )  # fmt: skip
    save_onnx(tmp_path / "flat.onnx", graph)
    with pytest.raises(InputError, match=r"flat.onnx has no convolution or matrix product that is known here"):
        bench_files([tmp_path / "flat.onnx"], QUICK, None, tmp_path / "bench.json")


def test_files_that_do_not_go_together_are_refused(two: list[Path], tmp_path: Path) -> None:
    big = tmp_path / "big.onnx"
    model = onnx.load(str(two[0]))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 16
    onnx.save(model, str(big))
    with pytest.raises(
        InputError, match=r"all files must take images of one size .* wide: 1 x 8 x 8, big: 1 x 16 x 16"
    ):
        bench_files([two[0], big], QUICK, None, tmp_path / "bench.json")
    with pytest.raises(InputError, match="the engine torch does not run ONNX files"):
        bench_files(two, replace(QUICK, engines=("torch",)), None, tmp_path / "bench.json")
    (tmp_path / "text.onnx").write_text("no")
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("text.onnx", "none.onnx", "pipe.onnx"):
        with pytest.raises(InputError, match=rf"{name} is not a readable ONNX file \(.*\); name a .onnx classifier"):
            bench_files([tmp_path / name], QUICK, None, tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()


def test_wrong_words_are_refused_before_anything_runs(two: list[Path], tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        result = CliRunner().invoke(main, ["bench", *map(str, two), *words])
        assert result.exit_code == 1, result.output
        return result.output

    assert "--format must be one of table, md, csv, json, got 'xml'" in refused("--format", "xml")
    assert "bench measures a run or files; give --run or FILEs, not both" in refused("--run", "x")
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    assert "exists already; choose another --out" in refused("--out", str(taken))
    result = CliRunner().invoke(main, ["bench", "--data", "digits"])
    assert "--data is for files" in result.output
