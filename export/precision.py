"""An fp32 ONNX file → the same network in fp16 or int8, the precision inside the file.

N images, C channels, H height, W width
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from onnxscript import ir, optimizer

from wmlc.console import note, progress
from wmlc.errors import InputError, one_line
from wmlc.export.about import about_in, write_about
from wmlc.forms import INPUT

QUANTIZED_OPS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "ReduceMean", "GlobalAveragePool"]
PREPROCESS_OPS = ["Cast", "Div", "Sub"]  # pixels are scaled in fp32 in every precision
_CALIBRATION_BATCH = 16
ANY_SIZE = 2**40  # numbers in a tensor, which are all folded
FP16_HOLDS = float(np.finfo(np.float16).max)

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Two flavours, as neither side takes the other's (TensorRT refuses an int32 bias and unsigned activations;
# ONNX Runtime's CPU kernels are slow on the symmetric one). Weights are per channel and symmetric in both.
_FLAVOURS: dict[str, dict[str, Any]] = {
    "cpu": {
        "activation_type": QuantType.QUInt8,
        # 7 bits: x86 without VNNI adds pairs of u8·s8 products in 16 bits, which 8-bit weights overflow.
        "reduce_range": True,
        "extra_options": {},
    },
    "gpu": {
        "activation_type": QuantType.QInt8,
        "reduce_range": False,
        "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True},
    },
}


def to_fp16(fp32: Path, out: Path, images: np.ndarray) -> None:
    """Write `fp32` to `out` with weights and arithmetic in float16; inputs and outputs stay as they are.

    On a CPU, float16 is computed in float32, so that nothing there shows what overflows on a GPU. Hence the largest
    activations of the float32 network on `images` (as `to_int8`'s) are looked at: a layer that takes or gives more
    than half of what float16 holds, 65,504, stays in float32, and a note names it.
    The lowest of all float32 numbers, which attention's masks are made of, becomes the lowest of float16.
    Raises `InputError` where a weight does not fit into float16, or the activations are no finite numbers.
    """
    model = onnx.load(str(fp32))
    too_large = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and _largest(onnx.numpy_helper.to_array(tensor)) > FP16_HOLDS
    ]
    if too_large:
        raise InputError(f"{', '.join(too_large[:3])} of {fp32.name} does not fit into float16; export it in fp32")
    largest = largest_activations(model, images)
    if wrong := [name for name, value in largest.items() if not np.isfinite(value)]:
        raise InputError(
            f"{wrong[0]} of {fp32.name} has activations that are no finite numbers on {len(images)} training images; "
            "train the network again"
        )
    hot = {name: value for name, value in largest.items() if value > FP16_HOLDS / 2}
    kept = [node.name for node in model.graph.node if hot.keys() & {*node.input, *node.output}]
    with _quiet(), _said_of(fp32, out, "converted to float16"):
        half = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=PREPROCESS_OPS, node_block_list=kept, max_finite_val=FP16_HOLDS
        )
        _without_twins(half)
        if kept:
            _join_casts(half)
        OnnxModel(half).topological_sort()  # the casts were put at the end
        _save(half, out, precision="fp16")
    if hot:
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [name for node in model.graph.node if node.name in kept for name in node.input if name in weights]
        layers = [name.removesuffix(".weight") for name in inputs if name.endswith(".weight")]
        named = f" ({', '.join(layers[:3])}{' …' if len(layers) > 3 else ''})" if layers else ""
        note(
            f"{len(kept)} of {len(model.graph.node)} operators{named} stay in fp32: activations reach "
            f"{max(hot.values()):,.0f} on {len(images)} training images, and float16 holds {FP16_HOLDS:,.0f}"
        )


def _largest(numbers: np.ndarray) -> float:
    """The largest absolute value, but for those that stand for as much as there is."""
    sizes = np.abs(numbers)
    return float(sizes.max(initial=0, where=sizes < np.finfo(np.float32).max))


def largest_activations(model: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    """The largest absolute value of each float32 tensor between the operators of `model`, over all `images`.

    They are computed inside the network, so that no activation has to be kept.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    computed = {name for node in model.graph.node for name in node.output}
    names = [
        value.name
        for value in (*typed.graph.value_info, *typed.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name in computed
    ]
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    for number, name in enumerate(names):
        size, largest = f"wmlc_size_{number}", f"wmlc_largest_{number}"
        asked.graph.node.append(onnx.helper.make_node("Abs", [name], [size]))
        asked.graph.node.append(onnx.helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        asked.graph.output.append(onnx.helper.make_tensor_value_info(largest, onnx.TensorProto.FLOAT, []))
    session = onnxruntime.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [
        session.run(None, {INPUT: images[at : at + _CALIBRATION_BATCH]})
        for at in range(0, len(images), _CALIBRATION_BATCH)
    ]
    return dict(zip(names, np.max(np.asarray(found), axis=0).tolist(), strict=True))  # a NaN stays one


def _without_twins(model: onnx.ModelProto) -> None:
    """Of what two operators take that stay in float32 the converter makes a cast for each, both of one name."""
    seen, kept = set[str](), list[onnx.NodeProto]()
    for node in model.graph.node:
        if node.op_type != "Cast" or node.output[0] not in seen:
            kept.append(node)
        seen |= set(node.output)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _join_casts(model: onnx.ModelProto) -> None:
    """Between two operators that stay in float32 the converter casts to float16 and back, which would overflow."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    to = {name: onnx.helper.get_node_attr_value(node, "to") for name, node in casts.items()}
    outputs, whole = {value.name for value in model.graph.output}, dict[str, str]()
    for name, node in casts.items():
        half = node.input[0]
        if to[name] == onnx.TensorProto.FLOAT and to.get(half) == onnx.TensorProto.FLOAT16:
            node.input[0] = casts[half].input[0]
            if name not in outputs:
                whole[name] = node.input[0]
    for node in model.graph.node:
        node.input[:] = [whole.get(name, name) for name in node.input]
    used = outputs | {name for node in model.graph.node if node.output[0] not in whole for name in node.input}
    kept = [node for node in model.graph.node if node.op_type != "Cast" or node.output[0] in used]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def to_int8(fp32: Path, out: Path, images: np.ndarray, *, target: str, calibrator: str) -> None:
    """Write `fp32` to `out` with int8 weights and activations as Q/DQ nodes, for the `target` cpu or gpu.

    The ranges of activations are read off `images` (float32 [N, C, H, W] normalised, or uint8 [N, H, W, C] for a
    file with preprocessing), which must be training images, by the method `calibrator`. The logits stay float32.
    """
    flavour = _FLAVOURS[target]
    ranges = {"CalibStridedMinMax": 1, "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
    with (
        _quiet(), _said_of(fp32, out, "quantized to int8"), progress("calibrating", len(images)) as advance,
        tempfile.TemporaryDirectory(dir=out.parent) as own,
    ):  # fmt: skip
        copied = Path(own) / fp32.name  # beside which the quantizer writes
        onnx.save_model(_with_whole_weights(onnx.load(str(fp32))), str(copied))
        quantization.quantize_static(
            str(copied),
            str(out),
            _Images(images, advance),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED_OPS,
            per_channel=True,
            reduce_range=flavour["reduce_range"],
            activation_type=flavour["activation_type"],
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[calibrator],
            extra_options={"WeightSymmetric": True, **ranges, **flavour["extra_options"]},
        )
    with _said_of(fp32, out, "quantized to int8"):
        made = onnx.load(str(out))
    _save(made, out, precision="int8", target=target, calibrator=calibrator, calibration_images=len(images))


def _with_whole_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the weights of layers as numbers where operators make them of others (weight standardisation).

    The quantizer looks at no weight that is computed. Where none is, the very model.
    """
    from_images, known = {INPUT}, {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if from_images & {*node.input}:
            from_images |= {*node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    if all(node.input[1] in known | from_images for node in layers):
        return model
    folded = ir.from_proto(model)
    optimizer.fold_constants(folded, onnx_shape_inference=False, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    optimizer.remove_unused_nodes(folded)
    return ir.to_proto(folded)


@contextlib.contextmanager
def _said_of(fp32: Path, out: Path, what: str) -> Iterator[None]:
    """What converters and protobuf raise, as one line that says `what` failed: on a full disk they read half a file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # they have no class of their own
        free = ", ".join(
            f"{shutil.disk_usage(place).free:,} bytes are free in {place}"
            for place in dict.fromkeys((out.parent, Path(tempfile.gettempdir())))
        )
        raise InputError(
            f"{fp32.name} could not be {what} ({one_line(str(error)) or type(error).__name__}; {free}); "
            "if a disk is full, free some space, or set TMPDIR to another place"
        ) from error


class _Images(quantization.CalibrationDataReader):
    """Batches for the calibrator, which asks for them one at a time, so that their activations fit in memory."""

    def __init__(self, images: np.ndarray, advance: Any) -> None:
        self._batches = [images[at : at + _CALIBRATION_BATCH] for at in range(0, len(images), _CALIBRATION_BATCH)]
        self._now: Iterator[np.ndarray] = iter(())
        self._advance = advance

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._now = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._now, None)
        if batch is None:
            return None
        self._advance(len(batch))
        return {INPUT: batch}


def _save(model: onnx.ModelProto, out: Path, **changed: Any) -> None:
    """Write `model`, whose metadata is still its fp32 file's but for what has `changed`, and for its accuracy."""
    write_about(model, replace(about_in(model, out), top1=None, **changed))
    onnx.checker.check_model(model)
    onnx.save_model(model, str(out))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice, which is about files that were not optimised at export as ours are."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
