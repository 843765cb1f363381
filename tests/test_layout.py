"""Which convolutions ONNX Runtime takes into its blocked layout: by its own graph, on files made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from made import made_layer
from onnx import TensorProto, helper, numpy_helper

from wmlc.bench import layout
from wmlc.bench.layout import blocked_layers, has_blocks, with_layout
from wmlc.errors import InputError

SIDE = 12


@pytest.fixture
def blocks() -> None:
    """Skips where there is nothing to leave."""
    if not has_blocks():
        pytest.skip("ONNX Runtime has no blocked layout for this CPU")


def chain(path: Path, *layers: tuple[int, int]) -> Path:
    """A file of 3 x 3 convolutions with a Relu after each: (channels out, groups) from three channels in, then a Gemm."""
    channels, nodes, weights, value = 3, [], [], "input"
    for number, (out, groups) in enumerate(layers):
        weight = np.full((out, channels // groups, 3, 3), 0.01, np.float32)
        weights.append(numpy_helper.from_array(weight, f"c{number}.weight"))
        nodes += [
            helper.make_node("Conv", [value, f"c{number}.weight"], [f"maps{number}"], f"/c{number}/Conv",
                             pads=[1] * 4, group=groups, kernel_shape=[3, 3], strides=[1, 1]),
            helper.make_node("Relu", [f"maps{number}"], [f"relu{number}"], f"/relu{number}/Relu"),
        ]  # fmt: skip
        channels, value = out, f"relu{number}"
    weights.append(numpy_helper.from_array(np.ones((2, channels), np.float32), "fc.weight"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["logits"], "/fc/Gemm", transB=1),
    ]
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIDE, SIDE]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])]  # fmt: skip
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.usefixtures("blocks")
def test_a_dense_convolution_fits_where_a_multiple_of_four_comes_in(tmp_path: Path) -> None:
    """18 come into the fourth, 20 and 32 into those around it; colours are read as they are."""
    found = blocked_layers(chain(tmp_path / "f.onnx", (16, 1), (20, 1), (18, 1), (32, 1), (32, 1)))
    assert found == {"c0": True, "c1": True, "c2": True, "c3": False, "c4": True}


@pytest.mark.usefixtures("blocks")
def test_depthwise_and_grouped_convolutions(tmp_path: Path) -> None:
    found = blocked_layers(chain(tmp_path / "f.onnx", (32, 1), (32, 32), (30, 1), (30, 30), (32, 1), (32, 8)))
    assert found == {"c0": True, "c1": True, "c2": True, "c3": False, "c4": False, "c5": False}


@pytest.mark.usefixtures("blocks")
def test_layers_are_named_as_in_a_profile_and_others_are_not_told(tmp_path: Path) -> None:
    file = chain(tmp_path / "f.onnx", (18, 1), (16, 1))
    rows = [
        made_layer("c0", 1.0),
        made_layer("c1", 1.0),
        made_layer("fc", 1.0, op="Gemm"),
        made_layer("other: Relu", 1.0),
    ]
    assert [row.blocked for row in with_layout(file, rows)] == [True, False, None, None]


@pytest.mark.usefixtures("blocks")
def test_int8_has_a_layout_of_its_own(tmp_path: Path) -> None:
    values = {"s": np.float32(0.1), "z": np.uint8(128), "zw": np.int8(0), "conv.weight": np.ones((8, 3, 3, 3), np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "conv.weight", "s", "zw", "s", "z"], ["maps"], "/conv/Conv"),
        helper.make_node("DequantizeLinear", ["maps", "s", "z"], ["output"]),
    ]
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
            helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 8, SIDE - 2, SIDE - 2])]  # fmt: skip
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "int8.onnx")
    assert blocked_layers(tmp_path / "int8.onnx") == {}


def test_where_a_cpu_has_no_such_layout_nothing_has_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "has_blocks", lambda: False)
    assert blocked_layers(chain(tmp_path / "f.onnx", (18, 1), (16, 1))) == {}


@pytest.mark.usefixtures("blocks")
def test_a_file_that_is_none_is_refused_in_one_line_and_costs_a_profile_nothing(tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"f\.onnx is not an ONNX file; extract it again$"):
        blocked_layers(tmp_path / "f.onnx")
    rows = [made_layer("c0", 1.0)]
    assert with_layout(tmp_path / "f.onnx", rows) == rows
