"""An fp32 ONNX file → the same network in fp16 or int8, the precision inside the file.

N images, C channels, H height, W width
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from wmlc.console import progress
from wmlc.errors import InputError
from wmlc.export.about import about_of, write_about

QUANTIZED_OPS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "ReduceMean", "GlobalAveragePool"]
PREPROCESS_OPS = ["Cast", "Div", "Sub"]  # pixels are scaled in fp32 in every precision
_CALIBRATION_BATCH = 16

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


def to_fp16(fp32: Path, out: Path) -> None:
    """Write `fp32` to `out` with weights and arithmetic in float16; inputs and outputs stay as they are.

    Raises `InputError` where a weight does not fit into float16 (above 65,504).
    """
    model = onnx.load(str(fp32))
    too_large = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) > np.finfo(np.float16).max
    ]
    if too_large:
        raise InputError(f"{', '.join(too_large[:3])} of {fp32.name} does not fit into float16; export it in fp32")
    with _quiet():
        half = convert_float_to_float16(model, keep_io_types=True, op_block_list=PREPROCESS_OPS)
    OnnxModel(half).topological_sort()  # the casts were put at the end
    _save(half, out, precision="fp16")


def to_int8(fp32: Path, out: Path, images: np.ndarray, *, target: str, calibrator: str) -> None:
    """Write `fp32` to `out` with int8 weights and activations as Q/DQ nodes, for the `target` cpu or gpu.

    The ranges of activations are read off `images` (float32 [N, C, H, W] normalised, or uint8 [N, H, W, C] for a
    file with preprocessing), which must be training images, by the method `calibrator`. The logits stay float32.
    """
    flavour = _FLAVOURS[target]
    ranges = {"CalibStridedMinMax": 1, "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
    with _quiet(), progress("calibrating", len(images)) as advance:
        quantization.quantize_static(
            str(fp32),
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
    made = onnx.load(str(out))
    _save(made, out, precision="int8", target=target, calibrator=calibrator, calibration_images=len(images))


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
        return {"input": batch}


def _save(model: onnx.ModelProto, out: Path, **changed: Any) -> None:
    """Write `model`, whose metadata is still its fp32 file's but for what has `changed`."""
    write_about(model, replace(about_of(model, out), **changed))
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
