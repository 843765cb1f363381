"""Whose layer a node's time is, in each engine's own names."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from measured import foreign_file, layers_in

from wmlc.bench.attribution import FileLayers, attribute
from wmlc.bench.engines import Nodes
from wmlc.bench.engines.openvino_engine import OpenVinoEngine
from wmlc.bench.engines.ort_engine import OrtEngine, OrtTensorRtEngine, node_times
from wmlc.bench.engines.torch_engine import CompiledEngine, TorchEngine
from wmlc.bench.engines.trt_engine import TrtEngine, layer_labels, median_times
from wmlc.errors import InputError
from wmlc.records import LayerTime

SHAPE = (3, 32, 32)
Export = Callable[[str, str], Path]


def some_images(batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, *SHAPE), dtype=np.float32)


def check_attribution(file: Path, nodes: Nodes) -> list[LayerTime]:
    """Every layer of the file got time, and the times add up to the nodes'."""
    rows = attribute(FileLayers(file), nodes)
    layers = [layer.name for layer in layers_in(file)]
    assert [row.layer for row in rows][: len(layers)] == layers
    assert all(row.layer == f"other: {row.op}" for row in rows[len(layers) :])
    assert sum(row.ms for row in rows) == pytest.approx(sum(ms for _, _, ms in nodes))
    assert all(ms >= 0 for _, _, ms in nodes)
    return rows


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-cpu"])
def test_onnx_runtimes_nodes_find_their_layers(exported: Export, arch: str, form: str) -> None:
    engine = OrtEngine(exported(arch, form), 1, "cpu")
    nodes = engine.profile(some_images(), 3)
    engine.close()
    rows = check_attribution(exported(arch, form), nodes)
    computing = [op for _, op, _ in nodes if op in ("Conv", "QLinearConv", "Gemm", "QGemm")]
    assert len(computing) == len(layers_in(exported(arch, form)))
    assert not {"other: Conv", "other: QLinearConv", "other: Gemm", "other: QGemm"} & {row.layer for row in rows}


def test_a_foreign_files_nodes_find_their_layers(tmp_path: Path) -> None:
    file = foreign_file(tmp_path, 8)
    engine = OrtEngine(file, 1, "cpu")
    nodes = engine.profile(np.ones((1, 3, 8, 8), np.float32), 3)
    engine.close()
    check_attribution(file, nodes)


def test_a_files_names_are_shown_without_what_a_terminal_would_obey(tmp_path: Path) -> None:
    """No record takes it, and all that was measured would be lost with it."""
    model = onnx.load(foreign_file(tmp_path, 8))
    for node in model.graph.node:
        node.name = f"\x1b[31m{node.name or node.op_type}"
    onnx.save(model, tmp_path / "coloured.onnx")
    nodes = [(node.name, node.op_type, 1.0) for node in model.graph.node]
    rows = attribute(FileLayers(tmp_path / "coloured.onnx"), nodes)
    assert rows and all(row.layer.isprintable() and row.op.isprintable() for row in rows)


def test_torchs_modules_are_the_layers(exported: Export, pruned_network: Callable[[str], Path]) -> None:
    engine = TorchEngine(pruned_network("resnet20"), 1, "cpu")
    before = engine.infer(some_images())
    nodes = engine.profile(some_images(), 3)
    rows = check_attribution(exported("resnet20", "fp32"), nodes)
    assert {"other: BatchNorm2d", "other: ReLU", "other: between modules"} <= {row.layer for row in rows}
    np.testing.assert_array_equal(engine.infer(some_images()), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in engine._network.modules())
    engine.close()


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino (pip install openvino)")
@pytest.mark.parametrize("form", ["fp32", "int8-cpu"])
def test_openvinos_nodes_find_their_layers(exported: Export, form: str) -> None:
    engine = OpenVinoEngine(exported("resnet20", form), 1, "cpu")
    nodes = engine.profile(some_images(), 5)
    engine.close()
    check_attribution(exported("resnet20", form), nodes)


def test_engines_without_layers_say_so() -> None:
    for engine, said in (
        (CompiledEngine, r"torch-compile fuses modules and has no times of its layers; use --engine torch or ort"),
        (OrtTensorRtEngine, r"ort-trt runs the network as one node and has no times of its layers; use --engine trt"),
    ):
        with pytest.raises(InputError, match=said):
            engine.profile(object.__new__(engine), some_images(), 1)


def test_names_as_tensorrt_joins_them_are_taken_apart(exported: Export) -> None:
    """One node for two layers is shared out by MACs; a copy is never the layer that reads it."""
    file = exported("resnet20", "fp32")
    model = onnx.load(file)
    by_weight = {node.input[1]: node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    first, second, side = (by_weight[f"stage2.0.{name}.weight"] for name in ("conv1", "conv2", "downsample.0"))
    layers = {layer.name: layer for layer in layers_in(file)}
    rows = attribute(
        FileLayers(file),
        [
            (f"Reformatting CopyNode for Input Tensor 0 to {first} + node_relu_7", "Reformat", 0.5),
            (f"{first} || {side}", "CaskConvolution", 3.0),
            (f"stage2.0.conv2.weight + {second} + PWN(node_relu_8)", "CaskConvolution", 2.0),
            (f"{{ForeignNode[node_mean...{by_weight['head.fc.weight']}]}}", "Myelin", 1.0),
            ("a name that means nothing", "", 0.25),
        ],
    )
    ours, theirs = (layers[f"stage2.0.{name}"].macs for name in ("conv1", "downsample.0"))
    assert {row.layer: row.ms for row in rows} == {
        "stage2.0.conv1": pytest.approx(3 * ours / (ours + theirs)), "stage2.0.conv2": 2.0,
        "stage2.0.downsample.0": pytest.approx(3 * theirs / (ours + theirs)),
        "head.fc": 1.0, "other: Reformat": 0.5, "other: unknown": 0.25,
    }  # fmt: skip


def test_what_follows_a_layer_is_its_time_only_if_nothing_else_is(exported: Export) -> None:
    file = exported("resnet20", "fp32")
    stem = next(node for node in onnx.load(file).graph.node if "stem.conv.weight" in node.input)
    fused, alone = [("relu_nchwc", "Conv", 2.0)], [(stem.name, "Conv", 1.0), ("node_relu", "Relu", 0.5)]
    assert [(row.layer, row.op, row.ms) for row in attribute(FileLayers(file), fused)] == [("stem.conv", "Conv", 2.0)]
    assert [(row.layer, row.ms) for row in attribute(FileLayers(file), alone)] == [
        ("stem.conv", 1.0),
        ("other: Relu", 0.5),
    ]


def test_onnx_runtimes_events_are_summed_a_call() -> None:
    """The first call is left out; a node that runs twice in a call counts twice, one that is named alike does not."""

    def node(ts: int, dur: int, name: str = "n", index: str = "0") -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": "Conv", "node_index": index}}  # fmt: skip

    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 90, "args": {}} for ts in (0, 100, 200)]
    events = [node(1, 999), node(101, 10), node(120, 30), node(140, 7, index="1"), node(201, 20), node(220, 40)]
    assert node_times([*events, *runs], 2) == [("n", "Conv", 0.05), ("n", "Conv", 0.0035)]


def test_tensorrts_layers_are_called_by_their_nodes() -> None:
    said = {
        "Layers": [
            {
                "Name": "conv_myl0_1",
                "LayerType": "kgen",
                "Metadata": "[ONNX Layer: node_Conv_1]\x1e[ONNX Layer: node_relu]",
            },
            {"Name": "Reformatting to conv", "LayerType": "Reformat", "Metadata": "[ONNX Layer: node_Conv_1]"},
            "a name alone",
        ]
    }
    assert layer_labels(json.dumps(said)) == {
        "conv_myl0_1": ("node_Conv_1 + node_relu", "kgen"), "Reformatting to conv": ("Reformatting to conv", "Reformat"),
    }  # fmt: skip
    assert median_times([[("a", 1.0), ("b", 2.0), ("a", 1.0)], [("a", 4.0)]]) == [("a", 3.0), ("b", 1.0)]


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and importlib.util.find_spec("tensorrt")),
    reason="needs an NVIDIA GPU, its driver and tensorrt (pip install 'wmlc[trt]')",
)
def test_tensorrts_times_find_their_layers(exported: Export, tmp_path: Path) -> None:
    from wmlc.export.to_tensorrt import extract_plan

    source, plan = exported("resnet20", "fp32"), tmp_path / "peer.plan"
    extract_plan(source, plan, batch_range=(1, 4, 8))
    engine = TrtEngine(plan, 1, "cuda")
    rows = attribute(FileLayers(source), engine.profile(some_images(4), 5))
    assert {"stem.conv", "stage3.2.conv2"} <= {row.layer for row in rows}
    engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and its driver")
def test_torchs_modules_are_the_layers_on_a_gpu(exported: Export, pruned_network: Callable[[str], Path]) -> None:
    engine = TorchEngine(pruned_network("resnet20"), 1, "cuda")
    rows = attribute(FileLayers(exported("resnet20", "fp32")), engine.profile(some_images(), 3))
    assert {layer.name for layer in layers_in(exported("resnet20", "fp32"))} <= {row.layer for row in rows}
    engine.close()


def test_a_layers_time_stands_beside_what_it_costs(exported: Export) -> None:
    file = exported("resnet20", "fp32")
    nodes = [(layer.name, "Conv2d", 0.5) for layer in layers_in(file)] + [("", "Flatten", 0.25)]
    *layers, last = attribute(FileLayers(file), nodes, batch=8)
    assert sum(layer.ms for layer in layers) == 22 * 0.5
    for time, layer in zip(layers, layers_in(file), strict=True):
        assert (time.layer, time.op, time.channels, time.macs) == (layer.name, layer.op, layer.channels, layer.macs)
        assert (time.bytes, time.intensity) == (layer.bytes_moved(8), layer.intensity(8))
    assert layers[0].channels == (3, 16)
    assert last == LayerTime(
        layer="other: Flatten", op="Flatten", ms=0.25, channels=None, macs=0, bytes=None, intensity=None
    )
