"""What fp16 and int8 files promise: the precision is really in them, ranges come from training images, a gate holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from made import made_framing
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from wmlc.accuracy import disagreement, relative_error
from wmlc.cli import main
from wmlc.data.memory import MemoryData
from wmlc.errors import EngineFailed, GateError, InputError
from wmlc.export import precision
from wmlc.export.about import write_about
from wmlc.export.config import CALIBRATORS, ExportConfig
from wmlc.export.extract import OnnxFile, extract, run_file, write_file
from wmlc.export.precision import to_fp16, to_int8
from wmlc.models.checkpoint import read_spec
from wmlc.records import FileAbout
from wmlc.run import Run, open_run_data

ARCHS = ("resnet20", "mobilenet_v2")
Exported = Callable[[str, str], Path]


def run_onnx(path: Path, fed: np.ndarray, as_written: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if as_written:  # int8-gpu's full 8-bit weights overflow ONNX Runtime's int8 kernels on a CPU without VNNI
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": fed})[0])


def layer_weights(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray, set[str]]]:
    """(layer, its weights as they are stored, the kinds of nodes between them and the layer)."""
    made = {output: node for node in model.graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            name, between = node.input[1], set()
            while name not in stored:
                between.add(made[name].op_type)
                name = made[name].input[0]
            yield node.name, numpy_helper.to_array(stored[name]), between


@pytest.mark.parametrize("arch", ARCHS)
def test_fp16_computes_in_half_and_talks_in_float(exported: Exported, arch: str) -> None:
    model = onnx.load(str(exported(arch, "fp16")))
    layers = list(layer_weights(model))
    assert layers and all(weights.dtype == np.float16 and not between for _, weights, between in layers)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("arch", ARCHS)
def test_int8_for_cpus_has_seven_bit_weights_and_unsigned_activations(exported: Exported, arch: str) -> None:
    model = onnx.load(str(exported(arch, "int8-cpu")))
    layers = list(layer_weights(model))
    assert layers
    for name, weights, between in layers:
        assert weights.dtype == np.int8 and between == {"DequantizeLinear"}, name
        assert np.abs(weights.astype(int)).max() <= 64, "8 bits overflow 16-bit sums on x86 without VNNI"
    zero_points = {tensor.name: tensor for tensor in model.graph.initializer}
    quantized = [zero_points[node.input[2]].data_type for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantized and set(quantized) == {TensorProto.UINT8}


@pytest.mark.parametrize("arch", ARCHS)
def test_int8_for_gpus_is_symmetric_with_float_biases(exported: Exported, arch: str) -> None:
    model = onnx.load(str(exported(arch, "int8-gpu")))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, _, between in layer_weights(model):
        assert between == {"QuantizeLinear", "DequantizeLinear"}, name
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
        if node.op_type == "Conv":
            assert stored[node.input[2]].dtype == np.float32


@pytest.mark.parametrize("form", ["fp16", "int8-cpu", "int8-gpu"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_file_answers_nearly_as_fp32_and_says_what_it_is(exported: Exported, arch: str, form: str) -> None:
    images = np.random.default_rng(1).standard_normal((6, 3, 32, 32), dtype=np.float32)
    file, kind = exported(arch, form), form.split("-")[0]
    logits, alone = (run_onnx(file, fed, as_written=form == "int8-gpu") for fed in (images, images[:1]))
    assert disagreement(relative_error(logits, run_onnx(exported(arch, "fp32"), images), kind), kind) is None
    np.testing.assert_allclose(alone, logits[:1], atol=1e-2)
    said = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert said["precision"] == f'"{kind}"' and said["peer"] == "1"
    assert said.get("target") == (f'"{form.split("-")[1]}"' if "-" in form else None)
    assert file.stat().st_size < exported(arch, "fp32").stat().st_size or form == "int8-gpu"


def test_a_weight_that_float16_cannot_hold_is_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(str(exported("resnet20", "fp32")))
    tensor = next(t for t in model.graph.initializer if t.name == "head.2.weight" or len(t.dims) == 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e9, tensor.name))
    onnx.save_model(model, str(tmp_path / "huge.onnx"))
    with pytest.raises(InputError, match="does not fit into float16; export it in fp32"):
        to_fp16(tmp_path / "huge.onnx", tmp_path / "half.onnx", FED)
    assert not (tmp_path / "half.onnx").exists()


def two_layers(path: Path, factor: float) -> Path:
    """Two linear layers of ours on 2 x 2 pixels, the first `factor` times as large, the second as much smaller."""
    draw, shape = np.random.default_rng(0), ["batch", 3, 2, 2]
    weights = {"a.weight": draw.standard_normal((12, 5)) * factor, "b.weight": draw.standard_normal((5, 4)) / factor}
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "a.weight"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b.weight"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["logits"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape if name == "input" else ["batch", 4])
            for name in ("input", "logits")]  # fmt: skip
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "two", ends[:1], ends[1:], tensors),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    write_about(model, FileAbout(
        architecture="resnet20", data=None, method=None, peer=1, ratio=0.5, achieved_ratio=0.5, ratio_of="params",
        top1=None, commit=None, class_names=["a", "b"], input_shape=(3, 2, 2), mean=[0.5] * 3, std=[0.5] * 3,
        framing=made_framing(2), with_preprocess=False, precision="fp32", params=1, macs=1, opset=20,
    ))  # fmt: skip
    onnx.save_model(model, str(path))
    return path


def test_int8_has_weights_in_int8_that_the_network_computes_of_others(tmp_path: Path) -> None:
    """As weight standardisation does: the quantizer would leave them, and their layer's arithmetic, in float32."""
    model = onnx.load(str(two_layers(tmp_path / "fp32.onnx", 1.0)))
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("b.weight", "b.raw")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0), "scale"))
    model.graph.node.insert(0, helper.make_node("Mul", ["b.raw", "scale"], ["b.weight"], name="standardise"))
    onnx.save_model(model, str(tmp_path / "fp32.onnx"))
    to_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", FED, target="cpu", calibrator="minmax")
    made = onnx.load(str(tmp_path / "int8.onnx"))
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds["a.weight_quantized"] == kinds["b.weight_quantized"] == TensorProto.INT8
    assert "Mul" not in {node.op_type for node in made.graph.node} and "b.raw" not in kinds
    logits = [run_onnx(tmp_path / name, FED) for name in ("fp32.onnx", "int8.onnx")]
    assert disagreement(relative_error(*logits, "int8"), "int8") is None


FED = np.random.default_rng(1).standard_normal((20, 3, 2, 2), dtype=np.float32)


def test_activations_that_float16_cannot_hold_stay_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for factor, kept in ((1.0, ""), (1e4, "3 of 5 operators (a, b) stay in fp32: activations reach ")):
        fp32, half = two_layers(tmp_path / "fp32.onnx", factor), tmp_path / "half.onnx"
        to_fp16(fp32, half, FED)
        said = capsys.readouterr().err
        assert said.startswith(kept) and bool(said) == bool(kept)
        expected = run_onnx(fp32, FED)
        (rounded,) = ReferenceEvaluator(str(half)).run(None, {"input": FED})  # as a GPU: after each operator
        np.testing.assert_allclose(rounded, expected, atol=0.01 * np.abs(expected).max())
        types = {tensor.name: tensor.data_type for tensor in onnx.load(str(half)).graph.initializer}
        assert set(types.values()) == {TensorProto.FLOAT if kept else TensorProto.FLOAT16}


def test_what_two_operators_in_float32_take_is_cast_once(tmp_path: Path) -> None:
    """Differences stay in float32, as normalisation does."""
    fp32, half = two_layers(tmp_path / "fp32.onnx", 1.0), tmp_path / "half.onnx"
    model = onnx.load(str(fp32))
    nodes = list(model.graph.node)
    nodes[3].input[0] = "more"
    nodes[3:3] = [
        helper.make_node("Sub", ["r", "a"], ["first"], name="one"), helper.make_node("Sub", ["a", "r"], ["other"], name="two"),
        helper.make_node("Max", ["first", "other"], ["more"], name="apart"),
    ]  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save_model(model, str(fp32))
    to_fp16(fp32, half, FED)
    expected = run_onnx(fp32, FED)
    np.testing.assert_allclose(run_onnx(half, FED), expected, atol=0.01 * np.abs(expected).max())


def test_activations_that_are_no_numbers_are_said_to_be(tmp_path: Path) -> None:
    fed = FED.copy()
    fed[3, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="has activations that are no finite numbers on 20 training images; train the"):
        to_fp16(two_layers(tmp_path / "fp32.onnx", 1.0), tmp_path / "half.onnx", fed)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_reads_all_images(
    exported: Exported, tmp_path: Path, calibrator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = precision._Images.get_next

    def get_next(self: Any) -> Any:
        batch = original(self)
        seen.append(0 if batch is None else len(batch["input"]))
        return batch

    monkeypatch.setattr(precision._Images, "get_next", get_next)
    images = np.random.default_rng(0).standard_normal((20, 3, 32, 32), dtype=np.float32)
    to_int8(exported("resnet20", "fp32"), tmp_path / "q.onnx", images, target="cpu", calibrator=calibrator)
    assert sum(seen) == 20
    fed = images[:4]
    assert (
        relative_error(run_onnx(tmp_path / "q.onnx", fed), run_onnx(exported("resnet20", "fp32"), fed), "int8") < 0.25
    )


def test_ranges_come_from_training_images_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a test image was asked for")

    asked: list[int] = []
    original = MemoryData.train_pixels
    monkeypatch.setattr(MemoryData, "test_pixels", refuse)
    monkeypatch.setattr(MemoryData, "train_pixels", lambda self, count: asked.append(count) or original(self, count))
    config = ExportConfig(precision="int8", calibration=24)
    write_file(run, 1, tmp_path / "q.onnx", open_run_data(run), config, measured=False)
    assert 24 in asked and (tmp_path / "q.onnx").is_file()


def test_more_calibration_images_than_there_are_means_all(run: Run, tmp_path: Path) -> None:
    config = ExportConfig(precision="int8", calibration=10**6)
    write_file(run, 1, tmp_path / "q.onnx", open_run_data(run), config, measured=False)
    said = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "q.onnx")).metadata_props}
    assert int(said["calibration_images"]) == open_run_data(run).record.train


@pytest.mark.parametrize("form", [{"precision": "fp16"}, {"precision": "int8"}, {"precision": "int8", "target": "gpu"}])
def test_the_accuracy_stands_beside_fp32s(run: Run, tmp_path: Path, form: dict[str, str]) -> None:
    (made,) = extract(run, "1", tmp_path / "p.onnx", ExportConfig(**form), force=False)
    spec, data = read_spec(run.network(1)), open_run_data(run)
    expected, labels = [], []
    for pixels, ids in data.test_pixels(64):
        expected += OnnxFile(tmp_path / "p.onnx", spec, ExportConfig(**form)).logits(pixels.numpy()).argmax(1).tolist()
        labels += ids.tolist()
    assert made.top1 == pytest.approx(100 * np.mean(np.array(expected) == np.array(labels)))
    assert made.fp32_top1 is not None and made.test_images == len(labels)
    said = CliRunner().invoke(
        main,
        ["extract", "--run", str(run.root), "--peer", "1", "--out", str(tmp_path / "q.onnx")]
        + [word for key, value in form.items() for word in (f"--{key}", value)],
    )
    assert said.exit_code == 0
    assert f"; top-1 {made.top1:.2f}, in fp32 {made.fp32_top1:.2f}: drop " in said.output


def test_preprocessing_stays_in_float_in_every_precision(run: Run, tmp_path: Path) -> None:
    pixels, spec = open_run_data(run).train_pixels(6), read_spec(run.network(2))
    for kind in ("fp16", "int8"):
        plain, inside = tmp_path / f"{kind}.onnx", tmp_path / f"{kind}-pixels.onnx"
        list(extract(run, "2", plain, ExportConfig(precision=kind), force=False))
        list(extract(run, "2", inside, ExportConfig(precision=kind, with_preprocess=True), force=False))
        expected = OnnxFile(plain, spec, ExportConfig(precision=kind)).logits(pixels.numpy())
        got = run_onnx(inside, pixels.numpy())
        assert disagreement(relative_error(got, expected, "fp16"), "fp16") is None


def test_a_file_that_lost_too_much_is_not_written(run: Run, tmp_path: Path) -> None:
    config = ExportConfig(precision="int8", max_drop=-100.0)
    with pytest.raises(GateError, match=r"p\.onnx was not written: peer1 in int8-cpu loses .* --max-drop allows -100"):
        list(extract(run, "1", tmp_path / "p.onnx", config, force=False))
    with pytest.raises(GateError, match=r"baseline .*; .*peer1 .*; .*peer2 "):
        list(extract(run, "all", tmp_path / "p.onnx", config, force=False))
    assert list(tmp_path.iterdir()) == []


def test_the_runs_own_files_carry_their_form(run: Run) -> None:
    assert run_file(run, 1, "fp32").name == "family-peer1.onnx"
    assert run_file(run, 1, "int8-gpu").name == "family-int8-gpu-peer1.onnx"
    assert run_file(run, 0, "int8-gpu", ".plan").name == "family-int8-gpu-baseline.plan"


def test_agreement_is_measured_by_precision() -> None:
    expected = np.array([[3.0, 4.0]])
    assert relative_error(expected + 0.5, expected, "fp32") == pytest.approx(0.5 / 4)
    assert relative_error(expected + 0.5, expected, "int8") == pytest.approx(0.5 / np.sqrt(12.5))
    assert "of their own size, allowed is 0.02" in (disagreement(0.5, "fp16") or "")
    assert disagreement(float("nan"), "int8") is not None
    assert "no agreement with torch is defined" in (disagreement(0.0, "fp8") or "")
    with pytest.raises(EngineFailed):
        relative_error(expected[:, :1], expected, "fp32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "--precision must be one of fp32, fp16, int8, got 'fp8'"),
        ({"precision": "int8", "target": "tpu"}, "--target must be one of cpu, gpu, got 'tpu'"),
        ({"target": "gpu"}, "--target is a choice of int8; fp32 files are the same for cpu and gpu"),
        ({"calibrator": "entropy"}, "--calibrator is for --precision int8; fp32 needs no ranges"),
        ({"calibrator": "magic"}, "--calibrator must be one of minmax, entropy, percentile, got 'magic'"),
        ({"calibration": 0}, "--calibration must be at least 1 image, got 0"),
        ({"max_drop": 1.0}, "--max-drop compares with the same network in fp32; give it with --precision fp16 or int8"),
        (
            {"batch_range": (8, 1, 32)},
            "--batch-range must be three batch sizes from 1 to 65,536, ascending, like 1,8,32; got 8,1,32",
        ),
    ],
)
def test_what_no_file_can_be_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        ExportConfig(**settings)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--batch-range", "1,2,4", "--compare", "--out", "p.onnx"],
            "Error: --batch-range, --compare is about TensorRT plans; give --out a name ending in .plan, got p.onnx\n",
        ),
        (
            ["--precision", "int8", "--out", "dir"],
            "Error: --precision int8 goes into an ONNX file or a plan; give --out a name ending in .onnx, got dir\n",
        ),
        (
            ["--batch-range", "1,8", "--out", "p.onnx"],
            "Error: --batch-range must be three batch sizes, like 1,8,32; got '1,8'\n",
        ),
    ],
)
def test_the_command_line_says_what_does_not_go_together(run: Run, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["extract", "--run", str(run.root), "--peer", "1", *options])
    assert (result.exit_code, result.output) == (1, message)
