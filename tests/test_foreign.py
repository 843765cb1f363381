"""Files of others: what they take, give and say of themselves is checked, and every refusal says why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from image_folders import make_folder
from measured import InProcess, classifier, made_row
from onnx import TensorProto, helper, numpy_helper

from wmlc import records
from wmlc.accuracy import disagreement, parity, picked, reordered
from wmlc.bench import intervals
from wmlc.bench.cells import Images, Measurement, _check_agreement
from wmlc.bench.choose import Bounds, described
from wmlc.bench.config import FileSettings
from wmlc.bench.engines import worker
from wmlc.bench.foreign import choose_output, numbers, read_file
from wmlc.bench.layers import file_cost
from wmlc.bench.pictures import fit, match_classes
from wmlc.bench.subjects import file_subjects, fit_to_files
from wmlc.cli import main
from wmlc.data import DataConfig, open_data
from wmlc.errors import EngineFailed, InputError
from wmlc.records import Bench

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
OURS: dict[str, Any] = {
    "architecture": "x", "data": "digits", "method": None, "peer": 1, "ratio": 0.5, "achieved_ratio": 0.5,
    "ratio_of": None, "top1": 90.0, "commit": None, "class_names": list("abcdefghij"), "input_shape": [1, 8, 8],
    "mean": [0.3], "std": [0.4], "with_preprocess": False, "precision": "fp32", "params": 650, "macs": 640, "opset": 18,
}  # fmt: skip


def save(path: Path, nodes: Sequence[Any], outputs: Sequence[Any], *, dims: Sequence[Any] = ("n", 1, 8, 8),
         said: dict[str, str] | None = None, functions: Sequence[Any] = (), kind: int = FLOAT, **weights: Any) -> Path:  # fmt: skip
    """A file that takes `pixels`, with these nodes, outputs (name, type, dims), weights and metadata."""
    graph = helper.make_graph(
        list(nodes), "made", [helper.make_tensor_value_info("pixels", kind, list(dims))],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("my", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    helper.set_model_props(model, said or {})
    onnx.save(model, str(path))
    return path


def scorer(path: Path, *tail: Any, outputs: Sequence[Any], **more: Any) -> Path:
    """Conv 8 x 8 to `maps` [N, 10, 1, 1], flattened to `flat`, then `tail`; weights differ from class to class."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["maps"]),
        helper.make_node("Flatten", ["maps"], ["flat"]),
        *tail,
    ]
    return save(path, nodes, outputs, w=draw.normal(0, 1, (10, 1, 8, 8)).astype(np.float32), **more)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlc.bench.cells.Worker", InProcess)


def bench(*words: Any) -> Result:
    quick = ["--seconds", "0.01", "--launches", "1", "--force"]
    return CliRunner().invoke(main, ["bench", *map(str, words), *quick])


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "it is the pointer of Git LFS"),
        (b"", "it is empty"),
        (b"no", "it is no ONNX"),
        (None, "there is no such file"),
    ],
)
def test_why_there_is_no_file_is_said(tmp_path: Path, made: bytes | None, why: str) -> None:
    path = tmp_path / "x.onnx"
    if made is not None:
        path.write_bytes(made)
    with pytest.raises(InputError, match=rf"x.onnx is not a readable ONNX file \({why}"):
        read_file(path)


def test_why_a_file_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = classifier(tmp_path / "x.onnx", 8)
    newer, bare, apart = onnx.load(str(path)), onnx.load(str(path)), onnx.load(str(path))
    newer.ir_version = 99
    bare.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(apart, str(path), save_as_external_data=True, location="x.bin", size_threshold=0)
    (tmp_path / "x.bin").unlink()
    with pytest.raises(InputError, match=r"its weights are in x.bin, which is not beside it"):
        read_file(path)
    for model, why in ((newer, "its IR version is 99, this onnx reads up to"), (bare, "its input pixels has no shape")):
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=why):
            read_file(path)


@pytest.mark.parametrize(
    ("dims", "kind", "why"),
    [
        ([0, 1, 8, 8], FLOAT, r"takes pixels: float32 \[0, 1, 8, 8\]: there is nothing in it"),
        (["n", 1, 8, 8], TensorProto.INT32, "takes int32 as pixels; .* of float32, float64, float16, uint8"),
        (["n", 64], FLOAT, "bench needs one input of images"),
        (["n", 5, 8, 8], FLOAT, "images of 5 channels"),
        (["n", 1, "h", "w"], FLOAT, "takes images of no fixed size"),
    ],
)
def test_inputs_that_are_no_images_are_refused(tmp_path: Path, dims: list[Any], kind: int, why: str) -> None:
    flat = [helper.make_node("Flatten", ["pixels"], ["y"])]
    with pytest.raises(InputError, match=why):
        file_subjects([save(tmp_path / "x.onnx", flat, [("y", kind, ["n", "k"])], dims=dims, kind=kind)], None)


def test_a_sequence_is_refused_in_words(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("pixels", FLOAT, ["n", 1, 8, 8])
    nodes = [helper.make_node("ConcatFromSequence", ["pixels"], ["y"], axis=0)]
    graph = helper.make_graph(nodes, "g", [sequence], [helper.make_tensor_value_info("y", FLOAT, ["n", 1, 8, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx")
    with pytest.raises(InputError, match="takes sequence as pixels; bench needs one input of images"):
        read_file(tmp_path / "x.onnx")


FEATURES, SCORES, IDS = ("maps", FLOAT, ["n", 20]), ("flat", FLOAT, ["n", 10]), ("ids", INT64, ["n"])


@pytest.mark.parametrize(
    ("outputs", "classes", "asked", "found"),
    [
        ([("maps", FLOAT, ["n", 10, 1, 1])], 10, None, "maps"),
        ([("maps", FLOAT, ["n", 1, 1, 10])], 10, None, "maps"),
        ([FEATURES, SCORES], 10, None, "flat"),
        ([FEATURES, SCORES], None, None, "--output NAME"),
        ([FEATURES, SCORES], None, "maps", "maps"),
        ([("maps", FLOAT, ["n", 10]), SCORES], 10, None, "maps, flat can each be the scores; say which with --output"),
        ([IDS, SCORES], 10, None, "flat"),
        ([IDS], 10, None, "ids"),
        ([("ids", INT64, ["n", 1])], 10, None, "ids"),
        ([("maps", FLOAT, None)], 10, None, "maps"),
        ([("maps", FLOAT, ["n"])], None, None, r"gives maps: float32 \[n\]; bench needs scores"),
        ([("maps", FLOAT, ["n", 1])], 2, None, "one number an image, which names no class of 2"),
        ([("maps", TensorProto.STRING, ["n"])], None, None, r"gives maps: string \[n\]; bench needs scores"),
        ([("maps", FLOAT, ["n", 5, 7])], None, None, "bench needs scores"),
        ([SCORES], 10, "none", r"--output none: .* gives flat"),
    ],
)
def test_the_output_that_fits_is_taken_or_asked_for(
    tmp_path: Path, outputs: list[Any], classes: int | None, asked: str | None, found: str
) -> None:
    values = [helper.make_tensor_value_info(*each) for each in outputs]
    file = read_file(scorer(tmp_path / "x.onnx", outputs=[SCORES]))
    from wmlc.bench.foreign import _value

    file.outputs[:] = [_value(value) for value in values]
    if " " not in found and "-" not in found:
        assert choose_output(file, classes, asked).name == found
    else:
        with pytest.raises(InputError, match=found):
            choose_output(file, classes, asked)


def test_answers_become_scores_or_class_ids() -> None:
    assert worker.scores(np.ones((4, 10, 1, 1)), 4).shape == worker.scores(np.ones((4, 1, 1, 10)), 4).shape == (4, 10)
    assert worker.scores(np.ones((4, 1)), 4).shape == (4, 1)
    for ids in (np.array([3, 1]), np.array([[3], [1]])):
        assert picked(worker.scores(ids, 2)).tolist() == [3, 1]
    with pytest.raises(EngineFailed, match=r"its output is \[1, 40\] for 4 images: the batch is fixed inside"):
        worker.scores(np.ones((1, 40)), 4)
    for wrong in (np.ones(4), np.array(["a"] * 4), np.ones((4, 5, 6))):
        with pytest.raises(InputError, match="its output is"):
            worker.scores(wrong, 4)


def test_top1_does_not_depend_on_how_scores_are_given(tmp_path: Path, in_process: None) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    reshaped = helper.make_node("Reshape", ["flat", "shape"], ["row"])
    files = [
        scorer(tmp_path / "plain.onnx", outputs=[SCORES]),
        scorer(tmp_path / "square.onnx", outputs=[("maps", FLOAT, ["n", 10, 1, 1])]),
        scorer(tmp_path / "ids.onnx", helper.make_node("ArgMax", ["flat"], ["ids"], axis=1, keepdims=0), outputs=[IDS]),
        scorer(tmp_path / "one.onnx", reshaped, outputs=[("row", FLOAT, ["n", 10])], shape=np.array([1, -1])),
    ]
    result = bench(*files, "--data", "digits", "--out", tmp_path / "b.json", "--format", "csv")
    assert result.exit_code == 0, result.output
    made = records.read(tmp_path / "b.json", Bench, "bench", "bench again")
    assert len({row.top1 for row in made.rows}) == 1 and (made.rows[0].top1 or 0) < 100
    assert "asked about 1 images a call, as the file fails at more" in made.rows[3].notes
    assert any(
        note.startswith("top-1 assumes pixels 0 … 1 with the data set's mean 0.306") for note in made.rows[0].notes
    )
    assert made.inputs[0] == (
        "plain: input pixels, float32 [N, C, H, W] of 8 x 8 x 1; pixels 0 … 1, less 0.306, over 0.377 (the data set's, "
        "assumed); pictures as the data set has them; output flat: float32 [n, 10]; classes by order, as the file names "
        "none"
    )


def test_nothing_measured_is_an_error(tmp_path: Path, in_process: None) -> None:
    fixed = classifier(tmp_path / "fixed.onnx", 8, batch=2)
    result = bench(fixed, "--no-accuracy", "--out", tmp_path / "b.json")
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last == "Error: nothing was measured: the file takes batches of 2 only; pass --batch 2"


@pytest.mark.parametrize(("said", "ours"), [({}, True), ({"precision": "float32"}, False), ({"mean": [0.1] * 3}, False),
                                            ({"top1": "good"}, False), ({"input_shape": [3, 8, 8]}, False)])  # fmt: skip
def test_metadata_is_ours_only_where_all_of_it_is(tmp_path: Path, said: dict[str, Any], ours: bool) -> None:
    told = {key: json.dumps(value) for key, value in (OURS | said).items()}
    (subject,) = file_subjects([scorer(tmp_path / "x.onnx", outputs=[SCORES], said=told)], None)
    assert subject.precision == "fp32" and (subject.about.top1 == 90) == ours
    assert list(subject.feed.mean or []) == ([0.3] if ours else [0.5])


def test_what_the_caller_says_of_pixels_is_taken(tmp_path: Path) -> None:
    file = scorer(tmp_path / "x.onnx", outputs=[SCORES])
    (subject,) = file_subjects([file], None, FileSettings(mean="0", std="1/255"))
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    np.testing.assert_allclose(subject.feed.images(pixels).ravel(), pixels.ravel(), rtol=1e-5)
    assert numbers("--mean", "0.1,0.2,0.3", 3) == [0.1, 0.2, 0.3]
    for wrong in ("red", "0.1,0.2", "nan", "1/0", "", "0"):
        with pytest.raises(InputError, match=r"--std must be a number or 3 with commas .* above 0"):
            numbers("--std", wrong, 3)
    with pytest.raises(InputError, match="--mean and --std go together"):
        FileSettings(mean="0")


def test_classes_are_matched_by_name() -> None:
    assert match_classes(["a", "b"], ["a", "b"]).words == "by name"
    assert match_classes(["b", "c", "a"], ["a", "b", "c"]).order == (1, 2, 0)
    assert match_classes(None, ["a", "b"]).fault is None
    fault = match_classes(["0", "1"], ["one", "zero"]).fault
    assert fault and fault.startswith("the file's 2 classes are 0, 1, the data set's 2 are one, zero; call the folders")


def test_the_files_order_of_classes_is_the_files(tmp_path: Path, in_process: None) -> None:
    """Of a file that calls class k what the set calls k + 1, each answer is one higher; other names give no top-1."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    shifted, other = [str((k + 1) % 10) for k in range(10)], list("abcdefghij")
    files, digits = [], [str(k) for k in range(10)]
    for name, names in (("same", digits), ("shifted", shifted), ("other", other)):
        told = {key: json.dumps(value) for key, value in (OURS | {"class_names": names}).items()}
        roll = helper.make_node("Gather", ["flat", "to"], ["scores"], axis=1)
        to = [(k + 1) % 10 for k in range(10)] if name == "shifted" else list(range(10))
        outputs = [("scores", FLOAT, ["n", 10])]
        files.append(scorer(tmp_path / f"{name}.onnx", roll, outputs=outputs, said=told, to=np.array(to)))
    assert bench(*files, "--data", "digits", "--out", tmp_path / "b.json").exit_code == 0
    same, moved, none = records.read(tmp_path / "b.json", Bench, "bench", "bench again").rows
    assert same.top1 == moved.top1 and none.top1 is None
    assert none.notes[0].startswith("top-1 and its drop not measured: the file's 10 classes are a, b, c, …")


def test_pictures_are_brought_to_what_a_file_takes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", size=(12, 20))
    data = open_data(DataConfig(name="imagefolder", root=root, workers=0))
    for shape in ((3, 16, 16), (3, 10, 24)):
        fitted = fit(data, shape)
        (pixels, _), *_ = fitted.images.test_pixels(4)
        assert tuple(pixels.shape[1:]) == (*shape[1:], shape[0]) and fitted.class_names
        assert f"{shape[1]} x {shape[2]}" in fitted.words
    digits = fit(open_data(DataConfig()), (3, 16, 16))
    (grey, _), *_ = digits.images.test_pixels(4)
    assert tuple(grey.shape) == (4, 16, 16, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert len(digits.images.record.mean) == 3 and "their grey channel 3 times" in digits.words
    with pytest.raises(InputError, match="the test images have 3 channels, the file takes 1"):
        fit(data, (1, 16, 16))


def test_a_file_of_any_size_takes_the_pictures_own(tmp_path: Path) -> None:
    pool = [helper.make_node("GlobalAveragePool", ["pixels"], ["m"]), helper.make_node("Flatten", ["m"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"])]  # fmt: skip
    file = save(
        tmp_path / "x.onnx", pool, [("y", FLOAT, [-1, 10])], dims=(-1, 1, -1, -1), w=np.ones((1, 10), np.float32)
    )
    (subject,) = file_subjects([file], fit_to_files([file], open_data(DataConfig())))
    assert (subject.input_shape, subject.batch, subject.cost.macs) == ((1, 8, 8), None, 10)


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
    assert disagreement(parity(near, expected, "fp32"), "fp32", changed=reordered(near, expected)) is None
    small = expected / 1e9  # far below any absolute tolerance, and still another network's
    assert disagreement(parity(small[::-1], small, "fp32"), "fp32") is not None
    assert reordered(small[:, ::-1], small) > 0.5 and reordered(small, small) == 0
    assert "no finite numbers" in (disagreement(parity(near * np.nan, expected, "fp16"), "fp16") or "")
    assert "another class" in (disagreement(5e-4, "fp32", changed=0.2) or "")
    zeros = np.zeros((4, 3), np.float32)
    assert parity(zeros, zeros, "fp32") == parity(zeros, zeros, "int8") == 0


def test_an_interval_of_times_is_above_zero() -> None:
    launches = [np.array([0.01, 5.0]), np.array([4.0, 0.02])]
    assert intervals.median_interval(launches, 0)[0] < 0
    low, high = intervals.times_interval(launches, 0)
    assert 0 < low < high < 1e15


def test_a_loop_without_end_costs_a_minute_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlc.bench.cells.FOREIGN_S", 2.5)
    value = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in (("i", INT64), ("go", TensorProto.BOOL), ("v", FLOAT))
    ]
    body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["next"])],
                             "body", value, [helper.make_tensor_value_info("on", TensorProto.BOOL, None),
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
    (subject,) = file_subjects([file], None, FileSettings(output="less"))
    own = Measurement(subject)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    from wmlc.bench.cells import Cell, _seat
    from wmlc.bench.config import BenchConfig

    with InProcess(_seat(subject, Cell(engine="ort", device="cpu", threads=1, batch=1), BenchConfig())) as engine:
        own.opened.append(engine.ready())
        engine.first(pixels[:1])
        _check_agreement(own, engine, Images(pixels_NHWC=pixels, data=None))  # type: ignore[arg-type]
    assert own.parity is not None and own.parity < 1e-4
