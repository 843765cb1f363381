"""Files of others: what they take, give and say of themselves is checked, and every refusal says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_files import FEATURES, FLOAT, IDS, INT64, OURS, SCORES, bench, save, scorer
from image_folders import make_folder
from measured import classifier
from onnx import TensorProto, helper

from wmlc import records
from wmlc.accuracy import picked
from wmlc.bench.config import FileSettings
from wmlc.bench.engines import worker
from wmlc.bench.foreign import _value, choose_output, read_file
from wmlc.bench.pictures import fit, match_classes
from wmlc.bench.subjects import file_subjects, fit_to_files
from wmlc.data import DataConfig, open_data
from wmlc.data.normalisation import numbers
from wmlc.errors import EngineFailed, InputError
from wmlc.records import Bench


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
        file_subjects(
            [read_file(save(tmp_path / "x.onnx", flat, [("y", kind, ["n", "k"])], dims=dims, kind=kind))], None
        )


def test_a_sequence_is_refused_in_words(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("pixels", FLOAT, ["n", 1, 8, 8])
    nodes = [helper.make_node("ConcatFromSequence", ["pixels"], ["y"], axis=0)]
    graph = helper.make_graph(nodes, "g", [sequence], [helper.make_tensor_value_info("y", FLOAT, ["n", 1, 8, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "x.onnx")
    with pytest.raises(InputError, match="takes sequence as pixels; bench needs one input of images"):
        read_file(tmp_path / "x.onnx")


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
    assert "asked about 1 image a call, as the file fails at more" in made.rows[3].notes
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
    (subject,) = file_subjects([read_file(scorer(tmp_path / "x.onnx", outputs=[SCORES], said=told))], None)
    assert subject.precision == "fp32" and (subject.about.top1 == 90) == ours
    assert list(subject.feed.mean or []) == ([0.3] if ours else [0.5])


def test_what_the_caller_says_of_pixels_is_taken(tmp_path: Path) -> None:
    file = scorer(tmp_path / "x.onnx", outputs=[SCORES])
    (subject,) = file_subjects([read_file(file)], None, FileSettings(mean="0", std="1/255"))
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
    (subject,) = file_subjects([read_file(file)], fit_to_files([read_file(file)], open_data(DataConfig())))
    assert (subject.input_shape, subject.batch, subject.cost.macs) == ((1, 8, 8), None, 10)
