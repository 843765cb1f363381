"""Which convolutions ONNX Runtime computes in its blocked layout, and which it leaves because channels do not fit.

On a CPU it keeps what goes from one convolution to the next as NCHWc: in blocks of the 8 or 16 channels that its vector
instructions take at once. A dense or depthwise convolution fits where the channels that come in are a multiple of 4, or
fewer than a block; one of several groups where each of them takes whole blocks. Any other runs in the plain layout, and
what comes in and goes out is reordered for it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wmlc.bench.attribution import FileLayers
from wmlc.bench.engines import Nodes
from wmlc.errors import InputError, one_line
from wmlc.records import LayerTime

BLOCKED = "com.microsoft.nchwc"  # the domain of operators in that layout
CONVOLUTIONS = ("Conv", "FusedConv")  # not QLinearConv, as int8 has a layout of its own
BLOCKED_NAME = "_nchwc"  # how the name of a node in that layout ends, in a profile too


def blocked_layers(onnx_file: Path) -> dict[str, bool]:
    """Of each convolution in floating point, by the name of its layer, whether ONNX Runtime's blocked layout takes it.

    Read off the graph that it makes of the file for this CPU. Nothing where this CPU has no such layout. Raises
    `InputError` for a file that cannot be opened.
    """
    if not has_blocks():
        return {}
    file = FileLayers(onnx_file)
    nodes = _optimised(str(onnx_file), onnx_file)
    owners = file.owners([(node.name, node.op_type, 0.0) for node in nodes])
    return {
        file.layers[index].name: node.domain == BLOCKED
        for owner, node in zip(owners, nodes, strict=True)
        if node.op_type in CONVOLUTIONS
        for index in owner
    }


def blocked_in(file: FileLayers, nodes: Nodes) -> dict[str, bool]:
    """The same as `blocked_layers`, read off ONNX Runtime's profile of a run on a CPU that `has_blocks`."""
    return {
        file.layers[index].name: label.endswith(BLOCKED_NAME)
        for owner, (label, op, _) in zip(file.owners(nodes), nodes, strict=True)
        if op in CONVOLUTIONS
        for index in owner
    }


def with_layout(onnx_file: Path, layers: Sequence[LayerTime]) -> list[LayerTime]:
    """The layers of a profile of this file, each told as `blocked_layers` does; as they are where nobody can tell."""
    try:
        blocked = blocked_layers(onnx_file)
    except InputError:  # as of a shape that only the engine's process knew; the times are good without
        blocked = {}
    return [replace(layer, blocked=blocked.get(layer.layer)) for layer in layers]


@functools.cache
def has_blocks() -> bool:
    """Whether ONNX Runtime has a blocked layout for this CPU: that it takes a convolution of which it is sure."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((32, 32, 3, 3), dtype=np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, side, side])
        for name, side in (("x", 8), ("y", 6))
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "one", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return any(node.domain == BLOCKED for node in _optimised(model.SerializeToString(), "a convolution"))


def _optimised(model: str | bytes, what: Path | str) -> Sequence[Any]:
    """The nodes of the graph that ONNX Runtime runs for a file or for the bytes of one, in order."""
    import onnx
    import onnxruntime as ort

    ort.set_default_logger_severity(4)  # it warns that such a graph is for this machine alone
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / "optimised.onnx"
        options.optimized_model_filepath = str(written)
        try:
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise InputError(f"{what} cannot be opened by onnxruntime ({one_line(error, 300)})") from None
        return list(onnx.load(str(written), load_external_data=False).graph.node)
