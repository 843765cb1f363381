"""Benches of ONNX files of any origin, the table in other formats, sweeps, and what an engine that fails costs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from wmlc.bench.cells import measure_cell
from wmlc.bench.config import BenchConfig
from wmlc.bench.session import bench_files
from wmlc.bench.subjects import file_subjects
from wmlc.cli import main
from wmlc.data import DataConfig, open_data
from wmlc.errors import EngineFailed, InputError

QUICK = BenchConfig(seconds=0.02, launches=2, accuracy=False)


def classifier(
    path: Path, width: int, *, batch: int | str = "n", kind: int = TensorProto.FLOAT, last: bool = False
) -> Path:
    """A made-up network: images → (cast) → (transpose) → conv 3x3 of `width` → global mean → fully connected, 10 classes."""
    draw = np.random.default_rng(0)
    weights = {
        "conv.weight": draw.normal(0, 0.2, (width, 1, 3, 3)), "fc.weight": draw.normal(0, 0.2, (10, width)),
        "fc.bias": np.zeros(10),
    }  # fmt: skip
    nodes, value = [], "pixels"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [value], ["floats"], to=TensorProto.FLOAT))
        value = "floats"
    if last:
        nodes.append(helper.make_node("Transpose", [value], ["planes"], perm=[0, 3, 1, 2]))
        value = "planes"
    nodes += [
        helper.make_node("Conv", [value, "conv.weight"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["scores"], transB=1),
    ]
    shape = [batch, 8, 8, 1] if last else [batch, 1, 8, 8]
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [classifier(tmp_path / "wide.onnx", 32), classifier(tmp_path / "narrow.onnx", 8)]


def test_files_of_any_origin_are_measured_the_first_being_the_baseline(two, tmp_path):
    record = bench_files(two, replace(QUICK, batches=(1, 3)), None, tmp_path / "bench.json")
    assert [(row["name"], row["peer"], row["batch"]) for row in record["rows"]] == [
        ("wide", 0, 1), ("narrow", 1, 1), ("wide", 0, 3), ("narrow", 1, 3),
    ]  # fmt: skip
    wide, narrow = record["rows"][:2]
    assert wide["macs"] == 8 * 8 * 9 * 32 + 320 and narrow["macs"] == 8 * 8 * 9 * 8 + 80
    assert wide["params"] == 9 * 32 + 320 + 10
    assert narrow["mac_ratio"] == wide["macs"] / narrow["macs"]
    assert narrow["speedup"]["n"] > 0 and wide["speedup"]["median"] == 1
    assert narrow["ratio"] is narrow["top1"] is None
    assert record["data"] is None
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(record))


@pytest.mark.parametrize(
    ("kind", "last"), [(TensorProto.UINT8, True), (TensorProto.UINT8, False), (TensorProto.FLOAT, True)]
)
def test_layouts_and_types_are_fed_as_the_file_takes_them(tmp_path, kind, last):
    file = classifier(tmp_path / "other.onnx", 8, kind=kind, last=last)
    (row,) = bench_files([file], QUICK, None, tmp_path / "bench.json")["rows"]
    assert row["latency_ms"]["n"] >= 100 and row["logits_apart"] < 1e-3


def test_accuracy_of_a_file_is_measured_on_a_named_set(two, tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    data = open_data(DataConfig())
    record = bench_files(two, replace(QUICK, accuracy=True), data, tmp_path / "bench.json")
    for row in record["rows"]:
        assert 0 <= row["top1"] <= 100
    assert record["pareto"][0]["points"]


def test_a_file_of_one_batch_size_costs_only_the_other_cells(tmp_path):
    file = classifier(tmp_path / "fixed.onnx", 8, batch=2)
    one, two = bench_files([file], replace(QUICK, batches=(1, 2)), None, tmp_path / "bench.json")["rows"]
    assert one["latency_ms"] is None and two["latency_ms"] is not None
    assert one["notes"][0] == "times and speed-up not measured: the file takes batches of 2 only"


def test_a_batch_that_does_not_divide_the_images_is_filled_up(tmp_path):
    file = classifier(tmp_path / "fixed.onnx", 8, batch=7)
    (row,) = bench_files([file], replace(QUICK, batches=(7,)), None, tmp_path / "bench.json")["rows"]
    assert row["latency_ms"] is not None and row["logits_apart"] < 1e-3


def test_weights_in_a_file_of_their_own_count(tmp_path):
    whole = classifier(tmp_path / "whole.onnx", 32)
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(str(whole)), str(apart), save_as_external_data=True, location="apart.bin", size_threshold=0)
    (row,) = bench_files([apart], QUICK, None, tmp_path / "bench.json")["rows"]
    assert row["file_bytes"] == apart.stat().st_size + (tmp_path / "apart.bin").stat().st_size
    assert row["params"] == 9 * 32 + 320 + 10


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    files = [classifier(tmp_path / folder / "model.onnx", 8) for folder in ("a", "b")]
    assert [subject.name for subject in file_subjects(files, None)] == ["a/model", "b/model"]
    assert [subject.name for subject in file_subjects([files[0], files[0]], None)] == ["0: model", "1: model"]


def test_a_file_without_a_known_layer_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])], "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "flat.onnx"))
    with pytest.raises(InputError, match=r"flat.onnx has no convolution or matrix product that is known here"):
        bench_files([tmp_path / "flat.onnx"], QUICK, None, tmp_path / "bench.json")


def test_what_was_measured_before_an_interrupt_is_kept(two, tmp_path, monkeypatch):
    measured = []

    def stopping(cell, *rest, **how):
        if measured:
            raise KeyboardInterrupt
        measured.append(cell)
        return measure_cell(cell, *rest, **how)

    monkeypatch.setattr("wmlc.bench.session.measure_cell", stopping)
    with pytest.raises(InputError, match=r"stopped after 1 of 2 cells; .*bench.json has what was measured"):
        bench_files(two, replace(QUICK, batches=(1, 2)), None, tmp_path / "bench.json")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [row["batch"] for row in record["rows"]] == [1, 1]
    assert "stopped after 1 of 2 cells" in record["notes"]


def test_files_that_do_not_go_together_are_refused(two, tmp_path):
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
    with pytest.raises(InputError, match=r"text.onnx is not a readable ONNX file .*; name a .onnx classifier"):
        bench_files([tmp_path / "text.onnx"], QUICK, None, tmp_path / "bench.json")
    assert not (tmp_path / "bench.json").exists()


def test_a_sweep_has_a_cell_for_each_engine_and_batch(two, tmp_path):
    pytest.importorskip("openvino", reason="needs OpenVINO")
    config = replace(QUICK, engines=("ort", "openvino"), batches=(1, 2))
    rows = bench_files(two, config, None, tmp_path / "bench.json")["rows"]
    assert [(row["engine"], row["batch"], row["name"]) for row in rows] == [
        (engine, batch, name) for engine in ("ort", "openvino") for batch in (1, 2) for name in ("wide", "narrow")
    ]
    for row in rows:
        assert row["speedup"]["median"] > 0 and row["logits_apart"] < 1e-3
        assert row["provider"].startswith({"ort": "CPUExecutionProvider", "openvino": "OpenVINO 20"}[row["engine"]])


def test_an_engine_that_fails_in_one_launch_costs_its_cell_only(two, tmp_path, monkeypatch):
    from wmlc.bench.engines.worker import Worker

    first, calls = Worker.first, []

    def failing(self, pixels_NHWC):
        calls.append(len(pixels_NHWC))
        if len(pixels_NHWC) == 2 and calls.count(2) == 4:  # the second network in the first timed launch of batch 2
            raise EngineFailed("its engine's process ended (killed by SIGKILL)")
        return first(self, pixels_NHWC)

    monkeypatch.setattr(Worker, "first", failing)
    rows = bench_files(two, replace(QUICK, batches=(1, 2, 3)), None, tmp_path / "bench.json")["rows"]
    measured = {(row["name"], row["batch"]): row["latency_ms"] is not None for row in rows}
    assert [cell for cell, there in measured.items() if not there] == [("narrow", 2)]
    assert "its engine's process ended (killed by SIGKILL)" in rows[3]["notes"][0]


def test_what_each_layer_takes_is_profiled_side_by_side(two, tmp_path, capsys):
    record = bench_files(two, replace(QUICK, profile=True), None, tmp_path / "bench.json")
    wide, narrow = record["profiles"]
    assert [(p["name"], p["peer"]) for p in (wide, narrow)] == [("wide", 0), ("narrow", 1)]
    assert {"conv", "fc"} <= {layer["layer"] for layer in narrow["layers"]}
    assert "narrow beside wide, ort, batch 1" in capsys.readouterr().out


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_formats(two, tmp_path):
    def run(shown: str):
        words = ["bench", *map(str, two), "--seconds", "0.02", "--launches", "2", "--no-accuracy", "--format", shown]
        return CliRunner().invoke(main, [*words, "--out", str(tmp_path / f"{shown}.json")])

    markdown = run("md")
    assert markdown.exit_code == 0, markdown.output
    lines = table(markdown.stdout)
    assert [line.count("|") for line in lines] == [12] * 4 + [9] * 4
    assert set(lines[1]) == set("| -:") and lines[1].startswith("| ---") and lines[1].endswith("---: |")
    rows = list(csv.DictReader(io.StringIO(run("csv").stdout)))
    record = json.loads((tmp_path / "csv.json").read_text())
    assert [row["name"] for row in rows] == ["wide", "narrow"]
    assert [float(row["latency_ms_p50"]) for row in rows] == [row["latency_ms"]["p50"] for row in record["rows"]]
    assert json.loads(run("json").stdout) == json.loads((tmp_path / "json.json").read_text())
    assert record["command"].startswith("wmlc bench ") and record["command"].endswith("csv.json")
    assert "\x1b" not in markdown.stdout


def test_wrong_words_are_refused_before_anything_runs(two, tmp_path):
    def refused(*words: str) -> str:
        result = CliRunner().invoke(main, ["bench", *map(str, two), *words])
        assert result.exit_code == 1, result.output
        return result.output

    assert "format must be one of table, md, csv, json, got 'xml'" in refused("--format", "xml")
    assert "bench measures a run or files; give --run or FILEs, not both" in refused("--run", "x")
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    assert "exists already; choose another --out" in refused("--out", str(taken))
    result = CliRunner().invoke(main, ["bench", "--data", "digits"])
    assert "--data and --data-root are for files" in result.output


def test_a_scenario_that_fails_costs_no_times(two, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise EngineFailed("no answer")

    monkeypatch.setattr("wmlc.bench.cells.measure_scenario", failing)
    pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen (mlcommons-loadgen)")
    for row in bench_files(two, replace(QUICK, scenarios=("offline",)), None, tmp_path / "bench.json")["rows"]:
        assert row["latency_ms"] is not None and row["scenarios"] == {}
        assert "scenario offline not measured: no answer" in row["notes"]


def test_scenarios_are_run_through_loadgen(two, tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen (mlcommons-loadgen)")
    config = replace(QUICK, scenarios=("single-stream", "offline"), seconds=0.1)
    for row in bench_files(two, config, None, tmp_path / "bench.json")["rows"]:
        assert row["scenarios"]["single-stream"]["n"] > 0
        assert row["scenarios"]["offline"]["n"] > 0
