"""What a bench of any file counts and compares: MACs, agreement, intervals, time limits, and a record that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_files import FLOAT, INT64, SCORES, bench, save, scorer
from measured import InProcess, classifier, made_row
from onnx import TensorProto, helper

from wmlc import records
from wmlc.accuracy import disagreement, relative_error, reordered
from wmlc.bench import intervals
from wmlc.bench.cells import Cell, Images, Measurement, _check_agreement, _seat
from wmlc.bench.choose import Bounds, described, times
from wmlc.bench.config import BenchConfig, FileSettings
from wmlc.bench.engines.machine import read_environment
from wmlc.bench.foreign import read_file
from wmlc.bench.layers import file_cost
from wmlc.bench.merge import with_former
from wmlc.bench.subjects import file_subjects
from wmlc.errors import InputError
from wmlc.files import sha256
from wmlc.records import Bench, Row
from wmlc.run import Run
from wmlc.settings import BenchSettings


def conv(kind: str, domain: str = "", **given: Any) -> list[Any]:
    return [helper.make_node(kind, ["pixels", "w"], ["maps"], domain=domain, **given),
            helper.make_node("Flatten", ["maps"], ["flat"])]  # fmt: skip


def test_macs_are_counted_through_functions_and_fused_operators(tmp_path: Path) -> None:
    weight = np.ones((10, 1, 8, 8), np.float32)
    body = helper.make_function("my", "Layer", ["x", "k"], ["y"], [helper.make_node("Conv", ["x", "k"], ["y"])],
                                [helper.make_opsetid("", 18)])  # fmt: skip
    called = save(tmp_path / "f.onnx", conv("Layer", "my"), [SCORES], functions=[body], w=weight)
    fused = save(tmp_path / "g.onnx", conv("FusedConv", "com.microsoft", activation="Relu"), [SCORES], w=weight)
    assert file_cost(called) == file_cost(fused) == (640, 640, None)


def test_macs_that_cannot_be_told_are_none_with_the_reason(tmp_path: Path) -> None:
    weight = np.ones((10, 1, 8, 8), np.float32)
    branch = helper.make_graph([helper.make_node("Conv", ["pixels", "w"], ["y"])], "b", [],
                               [helper.make_tensor_value_info("y", FLOAT, None)])  # fmt: skip
    either = helper.make_node("If", ["yes"], ["maps"], then_branch=branch, else_branch=branch)
    nodes = [either, helper.make_node("Flatten", ["maps"], ["flat"])]
    cost = file_cost(save(tmp_path / "if.onnx", nodes, [SCORES], w=weight, yes=np.array(True)))
    assert cost.params == 640 and cost.macs is None and "a Conv stands inside of If" in (cost.unknown or "")
    strange = file_cost(save(tmp_path / "s.onnx", conv("Conv", "com.microsoft.nchwc"), [SCORES], w=weight))
    assert strange.macs is None and "com.microsoft.nchwc's Conv is not known here" in (strange.unknown or "")
    functions = [
        helper.make_function("my", f"F{i}", ["x"], ["y"], [
            helper.make_node(f"F{i + 1}" if i < 40 else "Relu", ["x"], ["m"], domain="my" if i < 40 else ""),
            helper.make_node(f"F{i + 1}" if i < 40 else "Relu", ["m"], ["y"], domain="my" if i < 40 else ""),
        ], [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)])
        for i in range(41)
    ]  # fmt: skip
    bomb = save(tmp_path / "b.onnx", [helper.make_node("F0", ["pixels"], ["y"], domain="my")],
                [("y", FLOAT, ["n", 1, 8, 8])], functions=functions)  # fmt: skip
    assert "my's F0 is not known here" in (file_cost(bomb).unknown or "")
    with pytest.raises(InputError, match="its functions stand for more than 100,000 nodes"):
        read_file(bomb)


def test_a_network_without_macs_is_reported_chosen_among_and_refused_a_bound() -> None:
    row = made_row(1, macs=None, flops=None)
    assert "an unknown number of MACs" in described(row)
    assert "cannot be told" in Bounds(max_macs=1e9).misses(row)[0][1]


def test_weights_of_integer_operators_count_and_scales_do_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["pixels"], ["q", "qs", "qz"]),
        helper.make_node("ConvInteger", ["q", "w", "qz"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["floats"], to=FLOAT),
        helper.make_node("Mul", ["qs", "ws"], ["scale"]), helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["maps"]), helper.make_node("Flatten", ["maps"], ["flat"]),
    ]  # fmt: skip
    file = save(tmp_path / "q.onnx", nodes, [SCORES], w=np.ones((10, 1, 8, 8), np.uint8),
                ws=np.ones((10, 1, 1), np.float32), bias=np.ones((10, 1, 1), np.float32))  # fmt: skip
    assert file_cost(file) == (650, 640, None)


def test_agreement_is_relative_to_the_logits() -> None:
    draw = np.random.default_rng(0)
    expected = draw.normal(0, 1e5, (50, 10)).astype(np.float32)
    near = expected * (1 + 1e-6 * draw.standard_normal(expected.shape)).astype(np.float32)
    assert disagreement(relative_error(near, expected, "fp32"), "fp32", changed=reordered(near, expected)) is None
    small = expected / 1e9  # far below any absolute tolerance, and still another network's
    assert disagreement(relative_error(small[::-1], small, "fp32"), "fp32") is not None
    assert reordered(small[:, ::-1], small) > 0.5 and reordered(small, small) == 0
    assert "no finite numbers" in (disagreement(relative_error(near * np.nan, expected, "fp16"), "fp16") or "")
    assert "another class" in (disagreement(5e-4, "fp32", changed=0.2) or "")
    ids = np.arange(256) % 10  # of a network that gives no scores, one in a hundred may change as well
    few, many = (np.where(np.arange(256) < count, ids + 1, ids) for count in (2, 4))
    assert disagreement(relative_error(few, ids, "fp32"), "fp32", changed=reordered(few, ids), ids=True) is None
    assert disagreement(relative_error(many, ids, "fp32"), "fp32", changed=reordered(many, ids), ids=True) == (
        "its engine gives 1.6% of the images another class than torch, allowed is 1%"
    )
    zeros = np.zeros((4, 3), np.float32)
    assert relative_error(zeros, zeros, "fp32") == relative_error(zeros, zeros, "int8") == 0


def test_an_interval_of_times_is_above_zero() -> None:
    launches = [np.array([0.01, 5.0]), np.array([4.0, 0.02])]
    assert intervals.median_interval(launches, 0)[0] < 0
    low, high = intervals.times_interval(launches, 0)
    assert 0 < low < high < 1e15


def test_a_loop_without_end_costs_a_minute_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlc.bench.cells.FOREIGN_S", 2.5)
    value = [
        helper.make_tensor_value_info(name, kind, [] if kind != FLOAT else None)
        for name, kind in (("i", INT64), ("go", TensorProto.BOOL), ("v", FLOAT))
    ]
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["next"])],
                             "body", value, [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                                             helper.make_tensor_value_info("next", FLOAT, None)])  # fmt: skip
    nodes = [helper.make_node("Loop", ["trips", "yes", "flat"], ["scores"], body=body)]
    file = scorer(tmp_path / "loop.onnx", *nodes, outputs=[("scores", FLOAT, ["n", 10])],
                  trips=np.array(2**62), yes=np.array(True))  # fmt: skip
    result = bench(file, "--out", tmp_path / "b.json")
    assert result.exit_code == 1
    assert "nothing was measured: its engine gave no answer in 2.5 s and was ended" in result.output.splitlines()[-1]


def test_a_record_that_cannot_be_written_is_said_before_and_shown_after(
    tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = classifier(tmp_path / "x.onnx", 8)
    (tmp_path / "taken").mkdir()
    assert "it is a directory" in bench(file, "--out", tmp_path / "taken").output

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wmlc.bench.session.records.write", full)
    result = bench(file, "--out", tmp_path / "b.json")
    assert result.exit_code == 1 and any(line.startswith("x ") for line in result.output.splitlines())
    assert result.output.splitlines()[-1] == (
        f"Error: cannot write {tmp_path / 'b.json'}: No space left on device; what was measured stands above"
    )


def test_the_reference_is_asked_for_the_output_that_counts(tmp_path: Path, in_process: None) -> None:
    file = scorer(
        tmp_path / "x.onnx", helper.make_node("Neg", ["flat"], ["less"]), outputs=[SCORES, ("less", FLOAT, ["n", 10])]
    )
    (subject,) = file_subjects([read_file(file)], None, FileSettings(output="less"))
    own = Measurement(subject)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)

    with InProcess(_seat(subject, Cell(engine="ort", device="cpu", threads=1, batch=1), BenchConfig())) as engine:
        own.opened.append(engine.ready())
        engine.first(pixels[:1])
        _check_agreement(own, engine, Images(pixels_NHWC=pixels, data=None))  # type: ignore[arg-type]
    assert own.apart is not None and own.apart < 1e-4


def test_a_second_bench_keeps_the_rows_of_other_cells(tmp_path: Path) -> None:
    """Of files that are still there; those of a file that was made anew since are gone with it."""
    run = Run(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"a")
    there = sha256(tmp_path / "a.onnx")
    environment = read_environment({"ort": "cpu"}, (1,))

    def made(precisions: tuple[str, ...], *rows: Row) -> Bench:
        return Bench(command="", environment=environment, settings=BenchSettings(precisions=precisions), data=None,
                     notes=[], rows=list(rows), pareto=[], profiles=[])  # fmt: skip

    old = made(
        ("fp32", "int8"),
        made_row(1, precision="int8", file_sha256=there),
        made_row(2, precision="int8"),
        made_row(1, 9.0),
    )
    old = replace(old, notes=["peers 1 and 2 cannot be told apart"])
    records.write(run.bench, old)
    new = made(("fp32",), made_row(1, 1.0, file_sha256=there))
    both = with_former(new, run.bench, run)
    assert [(row.precision, row.peer, times(row).p50) for row in both.rows] == [("fp32", 1, 1.0), ("int8", 1, 1.0)]
    assert both.settings.precisions == ("fp32", "int8") and both.pareto
    assert [row.time for row in both.rows] == [None, environment.time]
    assert both.notes == [f"of {environment.time}: peers 1 and 2 cannot be told apart"]
    records.write(run.bench, both)
    assert with_former(new, run.bench, run).notes == both.notes, "no more of them each time"
    other = replace(new, environment=replace(environment, cpu="another"))
    assert with_former(other, run.bench, run) == other and not run.bench.exists()
    assert records.read(next(tmp_path.glob("bench-*.json")), Bench, "bench", "bench again") == both
    assert with_former(new, run.bench, run) == new


@pytest.mark.parametrize(
    ("environment", "settings", "why"),
    [
        ({"versions": {"onnxruntime-gpu": "2.0"}}, {}, "another version of onnxruntime-gpu"),
        ({"devices": {"ort": "cuda"}}, {}, "another device of ort"),
        (
            {},
            {"precisions": ("int8", "fp32")},
            "another baseline, in fp32 (--precision fp32,int8 measures both against",
        ),
        ({}, {"precisions": ("fp32", "int8"), "target": "gpu"}, "int8 for another target"),
    ],
)
def test_a_bench_that_is_nothing_to_compare_with_is_moved_beside(
    environment: dict[str, Any], settings: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, here = Run(tmp_path), replace(read_environment({"ort": "cpu"}, (1,)), versions={"onnxruntime-gpu": "1.0"})
    old = Bench(command="", environment=here, settings=BenchSettings(precisions=("fp32", "int8")), data=None,
                notes=[], rows=[], pareto=[], profiles=[])  # fmt: skip
    records.write(run.bench, old)
    new = replace(old, environment=replace(here, **environment), settings=replace(old.settings, **settings))
    assert with_former(new, run.bench, run) == new and not run.bench.exists()
    said = " ".join(capsys.readouterr().err.split())
    assert f"the former bench is of {why}" in said and len(list(tmp_path.glob("bench-*.json"))) == 1
