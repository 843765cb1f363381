"""Profiles: whose layer a node's time is, what a layer costs, and where a speed-up was lost."""

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
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from wmlc.bench.engines.openvino_engine import OpenVinoEngine
from wmlc.bench.engines.ort_engine import OrtEngine, OrtTensorRtEngine, node_times
from wmlc.bench.engines.torch_engine import CompiledEngine, TorchEngine
from wmlc.bench.engines.trt_engine import TrtEngine, layer_labels, median_times
from wmlc.bench.layers import attribute, file_cost, file_precision, read_layers
from wmlc.bench.profile import (
    compare,
    joined_by,
    merge,
    profile_record,
    profile_table,
    profiled_words,
    where_lost,
)
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network
from wmlc.models.cost import layer_costs, total_cost

ARCHS = ("resnet20", "resnet50", "mobilenet_v2")
FORMS = ("fp32", "fp16", "int8-cpu")
SHAPE = (3, 32, 32)
Export = Callable[[str, str], Path]
Nodes = list[tuple[str, str, float]]


def some_images(batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, *SHAPE), dtype=np.float32)


# --- what layers cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", (*FORMS, "int8-gpu"))
def test_a_file_has_the_layers_of_its_network(
    exported: Export, pruned_network: Callable[[str], Path], arch: str, form: str
) -> None:
    network, file = load_network(pruned_network(arch)), exported(arch, form)
    costs = {name: cost.macs for name, cost in layer_costs(network, SHAPE).items() if cost.macs}
    layers = read_layers(file)
    assert {layer.name: layer.macs for layer in layers} == costs
    assert all(layer.channels[0] * layer.channels[1] > 0 for layer in layers)
    assert file_precision(file) == form.removesuffix("-cpu").removesuffix("-gpu")
    folded = sum(module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    whole = total_cost(network, SHAPE)
    params, macs = file_cost(file)
    assert macs == whole.macs
    dropped = 10 if arch == "mobilenet_v2" else 0  # a bias of zeros, which the exporter leaves out
    assert params == whole.params - folded - dropped


def test_bytes_are_those_of_the_types_in_the_file(exported: Export) -> None:
    """stage1.0.conv1 of ResNet-20: 16 x 16 x 3 x 3 weights, 16 biases, 16 x 32 x 32 values in and out."""
    for form, item, bias in (("fp32", 4, 4), ("fp16", 2, 2), ("int8-cpu", 1, 4), ("int8-gpu", 1, 4)):
        layer = next(layer for layer in read_layers(exported("resnet20", form)) if layer.name == "stage1.0.conv1")
        weights, activations = 16 * 16 * 9 * item + 16 * bias, 2 * 16 * 32 * 32 * item
        assert layer.channels == (16, 16)
        assert layer.bytes_moved(1) == weights + activations
        assert layer.bytes_moved(8) == weights + 8 * activations
        assert layer.intensity(8) == 2 * 8 * layer.macs / layer.bytes_moved(8)


def foreign(tmp_path: Path, width: int, *, names: str = "w", batch: Any = "n", pixels: Any = 8) -> Path:
    """A file from elsewhere: Conv, Relu, a depthwise Conv, pooling, MatMul and Add; nodes without names."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", f"{names}1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", f"{names}2"], ["c"], group=width, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", f"{names}3"], ["f"]),
        helper.make_node("Add", ["f", f"{names}4"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, pixels, pixels])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 5])],
        [weight(f"{names}1", width, 3, 3, 3), weight(f"{names}2", width, 1, 2, 2), weight(f"{names}3", width, 5),
         weight(f"{names}4", 5)],
    )  # fmt: skip
    file = tmp_path / f"foreign{width}-{names}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_foreign_file_is_read_for_one_image(tmp_path: Path, batch: Any) -> None:
    file = foreign(tmp_path, 6, batch=batch)
    layers = read_layers(file)
    assert [(layer.name, layer.op, layer.channels) for layer in layers] == [
        ("w1", "Conv", (3, 6)), ("w2", "Conv", (6, 6)), ("w3", "MatMul", (6, 5)),
    ]  # fmt: skip
    assert [layer.macs for layer in layers] == [6 * 3 * 9 * 64, 6 * 4 * 16, 30]
    assert layers[2].activation_bytes == 4 * (6 + 5)
    assert file_cost(file) == (6 * 27 + 6 * 4 + 30 + 5, sum(layer.macs for layer in layers))
    assert file_precision(file) == "fp32"


def test_files_that_cannot_be_read_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leaves the shape of 'a' open, so its MACs .*; export it for images of one"):
        read_layers(foreign(tmp_path, 6, pixels="side"))
    with pytest.raises(InputError, match=r"none\.onnx is not a file; extract it again"):
        read_layers(tmp_path / "none.onnx")
    (tmp_path / "words.onnx").write_text("not a network")
    with pytest.raises(InputError, match=r"words\.onnx is not an ONNX file; extract it again"):
        file_precision(tmp_path / "words.onnx")


# --- whose time it is ---------------------------------------------------------------------------------------------------


def check_attribution(file: Path, nodes: Nodes) -> list[dict[str, Any]]:
    """Every layer of the file got time, and the times add up to the nodes'."""
    rows = attribute(file, nodes)
    layers = [layer.name for layer in read_layers(file)]
    assert [row["layer"] for row in rows][: len(layers)] == layers
    assert all(row["layer"] == f"other: {row['op']}" for row in rows[len(layers) :])
    assert sum(row["ms"] for row in rows) == pytest.approx(sum(ms for _, _, ms in nodes))
    assert all(ms >= 0 for _, _, ms in nodes)
    return rows


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtimes_nodes_find_their_layers(exported: Export, arch: str, form: str) -> None:
    engine = OrtEngine(exported(arch, form), 1, "cpu")
    nodes = engine.profile(some_images(), 3)
    engine.close()
    rows = check_attribution(exported(arch, form), nodes)
    computing = [op for _, op, _ in nodes if op in ("Conv", "QLinearConv", "Gemm", "QGemm")]
    assert len(computing) == len(read_layers(exported(arch, form)))
    assert not {"other: Conv", "other: QLinearConv", "other: Gemm", "other: QGemm"} & {row["layer"] for row in rows}


def test_a_foreign_files_nodes_find_their_layers(tmp_path: Path) -> None:
    file = foreign(tmp_path, 8)
    engine = OrtEngine(file, 1, "cpu")
    nodes = engine.profile(np.ones((1, 3, 8, 8), np.float32), 3)
    engine.close()
    check_attribution(file, nodes)


def test_torchs_modules_are_the_layers(exported: Export, pruned_network: Callable[[str], Path]) -> None:
    engine = TorchEngine(pruned_network("resnet20"), 1, "cpu")
    before = engine.infer(some_images())
    nodes = engine.profile(some_images(), 3)
    rows = check_attribution(exported("resnet20", "fp32"), nodes)
    assert {"other: BatchNorm2d", "other: ReLU", "other: between modules"} <= {row["layer"] for row in rows}
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
    layers = {layer.name: layer for layer in read_layers(file)}
    rows = attribute(
        file,
        [
            (f"Reformatting CopyNode for Input Tensor 0 to {first} + node_relu_7", "Reformat", 0.5),
            (f"{first} || {side}", "CaskConvolution", 3.0),
            (f"stage2.0.conv2.weight + {second} + PWN(node_relu_8)", "CaskConvolution", 2.0),
            (f"{{ForeignNode[node_mean...{by_weight['head.fc.weight']}]}}", "Myelin", 1.0),
            ("a name that means nothing", "", 0.25),
        ],
    )
    ours, theirs = (layers[f"stage2.0.{name}"].macs for name in ("conv1", "downsample.0"))
    assert {row["layer"]: row["ms"] for row in rows} == {
        "stage2.0.conv1": pytest.approx(3 * ours / (ours + theirs)), "stage2.0.conv2": 2.0,
        "stage2.0.downsample.0": pytest.approx(3 * theirs / (ours + theirs)),
        "head.fc": 1.0, "other: Reformat": 0.5, "other: unknown": 0.25,
    }  # fmt: skip


def test_what_follows_a_layer_is_its_time_only_if_nothing_else_is(exported: Export) -> None:
    file = exported("resnet20", "fp32")
    stem = next(node for node in onnx.load(file).graph.node if "stem.conv.weight" in node.input)
    fused, alone = [("relu_nchwc", "Conv", 2.0)], [(stem.name, "Conv", 1.0), ("node_relu", "Relu", 0.5)]
    assert attribute(file, fused) == [{"layer": "stem.conv", "op": "Conv", "ms": 2.0}]
    assert [(row["layer"], row["ms"]) for row in attribute(file, alone)] == [("stem.conv", 1.0), ("other: Relu", 0.5)]


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
    extract_plan(source, plan, batch_range=(1, 4, 8), cache_dir=tmp_path / "cache")
    engine = TrtEngine(plan, 1, "cuda")
    rows = attribute(source, engine.profile(some_images(4), 5))
    assert {"stem.conv", "stage3.2.conv2"} <= {row["layer"] for row in rows}
    engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and its driver")
def test_torchs_modules_are_the_layers_on_a_gpu(exported: Export, pruned_network: Callable[[str], Path]) -> None:
    engine = TorchEngine(pruned_network("resnet20"), 1, "cuda")
    rows = attribute(exported("resnet20", "fp32"), engine.profile(some_images(), 3))
    assert {layer.name for layer in read_layers(exported("resnet20", "fp32"))} <= {row["layer"] for row in rows}
    engine.close()


# --- where it was lost --------------------------------------------------------------------------------------------------


def record(name: str, *rows: tuple[str, str, int, float], **more: Any) -> dict[str, Any]:
    """A profile by hand: (layer, operator, MACs, ms)."""
    layers = [
        {"layer": layer, "op": op, "ms": ms, "macs": macs, "channels": [macs, macs] if macs else None, "bytes": None, "intensity": None}
        for layer, op, macs, ms in rows
    ]  # fmt: skip
    return {"name": name, "profiled_ms": sum(row[3] for row in rows), "p50_ms": None, "layers": layers, **more}


BASE = record(
    "baseline", ("stage1.0.conv1", "Conv", 100, 1.0), ("stage2.0.conv1", "Conv", 100, 1.0),
    ("stage3.0.conv1", "Conv", 100, 1.0), ("other: Add", "Add", 0, 0.3),
)  # fmt: skip
PEER = record(
    "peer1", ("stage1.0.conv1", "Conv", 100, 1.0), ("stage2.0.conv1", "Conv", 50, 0.6),
    ("stage3.0.conv1", "Conv", 30, 1.2), ("other: Add", "Add", 0, 0.27),
)  # fmt: skip


def test_the_stage_where_it_was_lost_is_named() -> None:
    """Lost: 0.1 in stage2, 0.9 in stage3, 0.27 - 0.3 x 0.6 = 0.09 without MACs, nothing by cutting unevenly."""
    assert where_lost(BASE, PEER, 3.3 / 3.07, 300 / 180) == (
        "1.07 times as fast where its MACs are 1.67 times fewer (0.64 paid out); lost: 83 % in stage3, 9 % in "
        "stage2, 8 % in operators without MACs (Add); no faster: stage3.0.conv1"
    )


def test_the_parts_add_up_to_what_was_lost() -> None:
    """T_peer - R T_baseline, whatever the layers: 3.07 - 0.6 x 3.3."""
    from wmlc.bench.profile import _losses

    assert sum(_losses(compare(BASE, PEER), 0.6).values()) == pytest.approx(3.07 - 0.6 * 3.3)


def test_cutting_where_it_costs_little_is_a_loss_too() -> None:
    """Each layer as fast as its MACs, and yet: what was cut took a tenth of the time."""
    base = record("baseline", ("a.conv", "Conv", 100, 9.0), ("b.conv", "Conv", 100, 1.0))
    peer = record("peer1", ("a.conv", "Conv", 100, 9.0), ("b.conv", "Conv", 10, 0.1))
    assert where_lost(base, peer, 10 / 9.1, 200 / 110) == (
        "1.10 times as fast where its MACs are 1.82 times fewer (0.60 paid out); lost: 100 % by cutting where a "
        "MAC takes less time than elsewhere"
    )


@pytest.mark.parametrize(("speedup", "ratio"), [(1.5, 1.5 / 0.9), (1.0, 1.0), (2.0, 1.0), (None, 2.0), (1.0, None)])
def test_no_line_where_it_was_paid_out_or_not_measured(speedup: float | None, ratio: float | None) -> None:
    assert where_lost(BASE, PEER, speedup, ratio) is None


def test_odd_numbers_get_honest_words() -> None:
    idle = record("baseline", ("a.conv", "Conv", 100, 0.0))
    assert (where_lost(idle, {**idle, "name": "peer1"}, 1.0, 2.0) or "").endswith(
        "; not in the layers, whose times went from 0 to 0 ms: outside of them, or the machine was busy"
    )
    quick = record("peer1", *((row["layer"], row["op"], row["macs"] // 2, row["ms"] / 2) for row in BASE["layers"]))
    assert "; not in the layers, whose times went from 3.3 to 1.65 ms: outside of them" in (
        where_lost(BASE, quick, 1.5, 2.0) or ""
    )
    strange = record("elsewhere", ("x", "Gemm", 10, 1.0))
    assert (where_lost(BASE, strange, 1.0, 2.0) or "").endswith(
        "; its layers are not those of baseline, so where it was lost is not known"
    )
    slower = record("peer1", *((row["layer"], row["op"], row["macs"], 1.5) for row in BASE["layers"]))
    assert "not firm, as layers that are the same took 1.50 times as long in its profile" in (
        where_lost(BASE, slower, 0.6, 1.0) or ""
    )


def test_many_layers_that_got_no_faster_are_counted() -> None:
    base = record("baseline", *((f"s.{i}", "Conv", 100, 1.0) for i in range(8)))
    peer = record("peer1", *((f"s.{i}", "Conv", 50, 1.0 + i / 100) for i in range(8)))
    assert (where_lost(base, peer, 0.97, 2.0) or "").endswith("no faster: s.7, s.6, s.5, s.4, s.3 and 3 more")


def test_layers_are_joined_by_name_else_by_position_else_not() -> None:
    moved = record(
        "peer1", *((f"renamed{i}", row["op"], row["macs"], row["ms"]) for i, row in enumerate(PEER["layers"][:3]))
    )
    assert [joined_by(BASE, other) for other in (PEER, moved, record("x", ("y", "Gemm", 1, 1.0)))] == ["name", "position", None]  # fmt: skip
    by_name, by_place = compare(BASE, PEER), compare(BASE, moved)
    assert by_place[:3] == by_name[:3]
    assert by_place[3]["ms"] == [0.3, None] and by_place[3]["times_faster"] is None
    assert [(row["shared"], row["no_faster"]) for row in by_name] == [(True, False), (False, False), (False, True), (False, False)]  # fmt: skip
    apart = compare(BASE, record("x", ("y", "Gemm", 1, 1.0)))
    assert apart[-1]["ms"] == [None, 1.0] and len(apart) == 5


def test_profiles_of_one_network_are_merged_by_their_medians() -> None:
    rounds = [record("peer1", ("a", "Conv", 1, ms), ("other: Add", "Add", 0, 2 * ms)) for ms in (1.0, 5.0, 2.0)]
    merged = merge(rounds)
    assert [row["ms"] for row in merged["layers"]] == [2.0, 4.0] and merged["profiled_ms"] == 6.0
    assert merge(rounds[:1]) == rounds[0]


# --- the record and the table -------------------------------------------------------------------------------------------


def test_a_record_holds_each_layer_and_fits_the_terminal(exported: Export) -> None:
    file = exported("resnet20", "fp32")
    nodes = [(layer.name, "Conv2d", 0.5) for layer in read_layers(file)] + [("", "Flatten", 0.25)]
    made = profile_record(
        name="peer1", peer=1, precision="fp32", engine="torch", threads=1, batch=8, onnx_file=file, nodes=nodes, p50_ms=20.0
    )  # fmt: skip
    assert json.loads(json.dumps(made)) == made
    assert made["profiled_ms"] == 22 * 0.5 + 0.25
    first, last = made["layers"][0], made["layers"][-1]
    assert (first["layer"], first["op"], first["channels"]) == ("stem.conv", "Conv", [3, 16])
    assert first["intensity"] == pytest.approx(16 * first["macs"] / first["bytes"])
    assert last == {"layer": "other: Flatten", "op": "Flatten", "ms": 0.25, "channels": None, "macs": 0, "bytes": None, "intensity": None}  # fmt: skip
    assert profiled_words(made) == (
        "peer1: its layers add up to 11.2 ms with the profiler on, a call takes 20 ms without it (p50)"
    )
    halved = {**made, "layers": [{**row, "macs": row["macs"] // 2, "ms": row["ms"] * 0.99} for row in made["layers"]]}
    header, rows = profile_table(made, halved)
    assert all(len(row) == len(header) for row in rows)
    assert sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)) <= 100
    assert rows[0] == ("stem.conv", "3,16", "442k→221k", "11.3", "0.500→0.495", "1.01", "no faster")
    assert rows[-1] == ("Flatten", "-", "-", "-", "0.250→0.247", "1.01", "")
