"""Small ONNX files as others make them, and a quick bench of such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from wmlc.cli import main

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
FEATURES, SCORES, IDS = ("maps", FLOAT, ["n", 20]), ("flat", FLOAT, ["n", 10]), ("ids", INT64, ["n"])
OURS: dict[str, Any] = {
    "architecture": "x", "data": "digits", "method": None, "peer": 1, "ratio": 0.5, "achieved_ratio": 0.5,
    "ratio_of": None, "top1": 90.0, "commit": None, "class_names": list("abcdefghij"), "input_shape": [1, 8, 8],
    "mean": [0.3], "std": [0.4],
    "framing": {"shorter_side": None, "size": [8, 8], "interpolation": "bilinear"}, "with_preprocess": False,
    "precision": "fp32", "params": 650, "macs": 640, "opset": 18,
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


def bench(*words: Any) -> Result:
    quick = ["--seconds", "0.01", "--launches", "1", "--force"]
    return CliRunner().invoke(main, ["bench", *map(str, words), *quick])
