"""Where a TensorRT plan leaves ONNX Runtime, layer by layer.

N images, C channels, H height, W width
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnx

from wmlc.accuracy import relative_rms
from wmlc.errors import InputError
from wmlc.export.to_tensorrt import build_plan
from wmlc.forms import INPUT, open_as_written
from wmlc.trt_machine import load_tensorrt

COMPARED_OPS = ("Conv", "Gemm", "Relu", "Clip", "Add")  # whose outputs `compare_layers` looks at


def compare_layers(onnx_file: Path, images_NCHW: np.ndarray) -> list[tuple[str, float]]:
    """Where TensorRT leaves ONNX Runtime: (layer, distance) in the file's order, on float32 `images_NCHW`.

    The distance is sqrt(mean((t - o)²) / mean(o²)) between a layer's outputs t in TensorRT and o in ONNX Runtime on the
    CPU, which runs every node as it stands. All layers' outputs are returned, so TensorRT fuses less than in the plan.
    Raises `InputError` where GPU, driver, tensorrt or polygraphy are missing, and as `build_plan`.
    """
    trt = load_tensorrt("comparing layers")
    if importlib.util.find_spec("polygraphy") is None:
        raise InputError("comparing layers needs polygraphy, which is not installed (pip install 'wmlc[trt]')")
    polygraphy = importlib.import_module("polygraphy.backend.trt")

    with tempfile.TemporaryDirectory() as directory:
        marked, plan = Path(directory) / "layers.onnx", Path(directory) / "layers.plan"
        names = mark_layers(onnx_file, marked)
        build_plan(trt, marked, plan, batch_range=(len(images_NCHW),) * 3)
        expected = dict(zip(names, run_plainly(marked, images_NCHW), strict=True))
        with polygraphy.TrtRunner(polygraphy.EngineFromBytes(plan.read_bytes())) as runner:
            got = runner.infer({INPUT: images_NCHW})
            return [(name, relative_rms(got[name], expected[name])) for name in names]


def mark_layers(onnx_file: Path, out: Path) -> list[str]:
    """Write `onnx_file` to `out` with the outputs of all its layers (`COMPARED_OPS`) as outputs; all their names."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(onnx_file)))
    typed = {value.name: value for value in model.graph.value_info}
    layers = [name for node in model.graph.node if node.op_type in COMPARED_OPS for name in node.output]
    final = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([typed[name] for name in layers if name in typed] + final)
    onnx.save_model(model, str(out))
    return [value.name for value in model.graph.output]


def run_plainly(onnx_file: Path, images_NCHW: np.ndarray) -> list[np.ndarray]:
    """All outputs of an ONNX file in ONNX Runtime on the CPU, every node as it stands."""
    return [np.asarray(output) for output in open_as_written(onnx_file).run(None, {INPUT: images_NCHW})]
