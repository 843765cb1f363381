"""A network's file at any widths, made without an export: against the exports. 17 exports, 8 s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hand_networks import CLASSES, SHAPE
from onnx import TensorProto, helper, numpy_helper
from resizables import chain, exported_once, int8_of_exported, real

from wmlc.bench.engines import ONNX
from wmlc.bench.latency.config import LatencyConfig
from wmlc.bench.latency.files import NetworkFiles, ToOnnx, Writers, _telling_counts
from wmlc.bench.latency.session import EngineClock
from wmlc.bench.latency.template import Template
from wmlc.errors import InputError
from wmlc.export.to_tensorrt import plan_for
from wmlc.models.resizable import Resizable


def drawn_counts(network: Resizable, seed: int) -> np.ndarray:
    """Counts that are none of those which a template is read off; two at least, as one scale is written otherwise."""
    draw, known = np.random.default_rng(100 + seed), _telling_counts(network).tolist()
    while (counts_G := np.array([draw.integers(2, most + 1) for most in network.full])).tolist() in known:
        pass
    return counts_G


def nodes(model: onnx.ModelProto) -> list[tuple[Any, ...]]:
    """All of a graph but its tensors: operators, names, attributes."""
    return [
        (node.op_type, node.name, *node.input, *node.output, *(each.SerializeToString() for each in node.attribute))
        for node in model.graph.node
    ]


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def whole_numbers(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensors that say shapes: of int64."""
    return {
        tensor.name: numpy_helper.to_array(tensor).flatten().tolist()
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT64
    }


def assert_as_exported(network: Resizable, to_onnx: ToOnnx, files: NetworkFiles, seed: int, directory: Path) -> None:
    """The template's file at drawn widths is that of the network which is really cut to them, but for the weights."""
    counts_G = drawn_counts(network, seed)
    made, exported = files.write(counts_G, f"made{seed}"), directory / f"exported{seed}.onnx"
    to_onnx(network.build(counts_G), network, exported)
    own, real_ = onnx.load(str(made)), onnx.load(str(exported))
    assert nodes(own) == nodes(real_)
    assert shapes(own) == shapes(real_) and whole_numbers(own) == whole_numbers(real_)
    for mine, theirs in zip(
        (*own.graph.input, *own.graph.output), (*real_.graph.input, *real_.graph.output), strict=True
    ):
        assert mine == theirs
    onnx.checker.check_model(own, full_check=True)
    assert_runs(made)


def assert_runs(file: Path) -> None:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    images = np.random.default_rng(0).standard_normal((2, *wanted.shape[1:])).astype(np.float32)
    (logits,) = session.run(None, {wanted.name: images})
    assert logits.shape[0] == 2 and np.isfinite(logits).all()


def test_the_file_at_any_widths_is_the_export_but_for_its_weights(tmp_path: Path) -> None:
    """Residual blocks, batch norms, a depthwise layer (whose number of groups is an attribute), a concatenation."""
    network = real("mixed")
    files = NetworkFiles(network, ONNX, Writers(exported_once, plan_for), 1, tmp_path)
    for seed in range(2):
        assert_as_exported(network, exported_once, files, seed, tmp_path)


def test_all_widths_back_at_the_full_ones_are_the_full_file(tmp_path: Path) -> None:
    network = real("mixed")
    files = NetworkFiles(network, ONNX, Writers(exported_once, plan_for), 1, tmp_path)
    files.write(network.full, "again")
    own, full = onnx.load(str(tmp_path / "again.onnx")), onnx.load(str(files.full))
    assert nodes(own) == nodes(full)
    assert list(own.graph.initializer) == list(full.graph.initializer)
    for seed in range(3):  # a file that was written leaves the next one as it is
        files.write(drawn_counts(network, seed), "other")
    files.write(network.full, "once more")
    assert (tmp_path / "once more.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


@pytest.mark.parametrize("name", ["shuffle", "grouped"])
def test_channels_that_are_split_or_grouped(name: str, tmp_path: Path) -> None:
    """ShuffleNet's halves, which shapes and slices in the file say; a grouped convolution's units of two channels."""
    network = real(name)
    assert_as_exported(
        network, exported_once, NetworkFiles(network, ONNX, Writers(exported_once, plan_for), 1, tmp_path), 0, tmp_path
    )


def test_an_int8_file(tmp_path: Path) -> None:
    """Scales a channel, integer weights and biases: as many as there are channels left."""
    network, to_onnx = real("mixed"), int8_of_exported
    assert_as_exported(
        network, to_onnx, NetworkFiles(network, ONNX, Writers(to_onnx, plan_for), 1, tmp_path), 0, tmp_path
    )


def test_the_widths_that_a_template_is_read_off_tell_groups_apart() -> None:
    for name in ("mixed", "concat", "shuffle"):
        network = real(name)
        counts_VG = _telling_counts(network)
        assert counts_VG[0].tolist() == network.full.tolist() and (counts_VG[1:] < network.full).all()
        steps = (counts_VG[0] - counts_VG[1:]).T.tolist()
        assert len({tuple(own) for own in steps}) == len(network.groups)


def test_no_two_groups_of_many_grow_in_proportion() -> None:
    """As 14, 14 and 3, 3 do, by which a number of one group would be told for 3/14 of the other's."""
    for groups in (30, 120):
        network = chain([[8, 16, 32, 64]] * groups)
        steps_GV = (network.full - _telling_counts(network)[1:]).T
        apart = steps_GV / steps_GV.sum(1, keepdims=True)
        assert len({tuple(own) for own in apart.round(9).tolist()}) == groups
    assert len(_telling_counts(chain([[1, 2]] * 12))) > 3, (
        "two units differ by one or by none, so it takes more exports"
    )


def test_a_number_that_may_follow_either_of_two_groups_is_refused() -> None:
    exports = [made_export(width) for width in (8, 6, 4)]
    with pytest.raises(InputError, match=r"first: 8, 6, 4\) may follow one channel group or another, so that no table"):
        Template.of(exports, np.array([[8, 16], [6, 12], [4, 8]]))


def test_a_built_network_is_dense_and_of_these_widths() -> None:
    network = real("mixed")
    counts_G = drawn_counts(network, 5)
    built = network.build(counts_G)
    modules = dict(built.named_modules())
    for layer, (_, given) in zip(network.layers, network.channels(counts_G), strict=True):
        assert modules[layer].weight.shape[0] == given, layer
    assert not built.training and built(torch.zeros(2, *SHAPE)).shape == (2, CLASSES)


def made_export(width: int, *, op: str = "Relu", weight: int | None = None) -> onnx.ModelProto:
    """A graph of a convolution of `width` filters, whose second weight has a number of its own."""
    weights = {
        "first": np.zeros((width, 3, 1, 1), np.float32),
        "second": np.zeros((width if weight is None else weight,), np.float32),
    }
    nodes_ = [
        helper.make_node("Conv", ["x", "first"], ["y"], name="conv"), helper.make_node(op, ["y"], ["z"], name="act")
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_model(helper.make_graph(nodes_, "made", [], [], tensors))


COUNTS_VG = np.array([[8], [5], [3]])


def test_a_number_that_follows_no_group_is_refused() -> None:
    exports = [made_export(8), made_export(5, weight=7), made_export(3, weight=2)]
    with pytest.raises(InputError) as refused:
        Template.of(exports, COUNTS_VG)
    assert str(refused.value) == (
        "a number in its export (second: 8, 7, 2) follows no channel group, so that no table can be made of it"
    )


@pytest.mark.parametrize("other", ["nodes", "tensors"])
def test_exports_of_other_nodes_are_refused(other: str) -> None:
    last = made_export(3, op="Sigmoid")
    if other == "tensors":
        last = made_export(3)
        last.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "third"))
    with pytest.raises(InputError, match="its export has other nodes at other widths, so that no table"):
        Template.of([made_export(8), made_export(5), last], COUNTS_VG)


def heads(first: int, second: int) -> onnx.ModelProto:
    """Two steps that lay out as many channels as heads have; the exporter keeps one number where both are alike."""
    sizes = {"val_1": first} if first == second else {"val_1": first, "val_2": second}
    weights = [
        numpy_helper.from_array(np.zeros((own, 1), np.float32), f"{k}.weight") for k, own in enumerate((first, second))
    ]
    shapes_ = [numpy_helper.from_array(np.array([own]), name) for name, own in sizes.items()]
    nodes_ = [
        helper.make_node("Reshape", ["0.weight", "val_1"], ["view"]),
        helper.make_node("Reshape", ["1.weight", next(reversed(sizes))], [f"view_{len(sizes)}"]),
    ]
    return helper.make_model(helper.make_graph(nodes_, "made", [], [], [*weights, *shapes_]))


def test_constants_that_are_one_where_they_are_alike_are_told_apart(tmp_path: Path) -> None:
    counts_VG = np.array([[8, 8], [5, 2], [3, 4]])
    template = Template.of([heads(*counts) for counts in counts_VG.tolist()], counts_VG)
    template.write(np.array([4, 7]), tmp_path / "made.onnx")
    made = onnx.load(str(tmp_path / "made.onnx"))
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert [given[node.input[0]].shape for node in made.graph.node] == [(4, 1), (7, 1)]
    assert [given[node.input[1]].tolist() for node in made.graph.node] == [[4], [7]]


def test_numbers_grow_by_multiples_and_with_sums(tmp_path: Path) -> None:
    """Twice a group and three, as of grouped layers; or with what is put together of two groups."""
    counts_VG = np.array([[8, 6], [5, 2], [3, 4]])
    exports = [made_export(2 * a + 3, weight=a + b + 1) for a, b in counts_VG.tolist()]
    template = Template.of(exports, counts_VG, [(1, np.array([1.0, 1.0]))])
    template.write(np.array([4, 5]), tmp_path / "made.onnx")
    assert shapes(onnx.load(str(tmp_path / "made.onnx"))) == {"first": (11, 3, 1, 1), "second": (10,)}


def test_tables_of_other_networks_lie_beside_it(tmp_path: Path) -> None:
    network = real("mixed", divisor=4)
    others = (
        network, replace(network, arch_args="k=3"), replace(network, divisor=8), replace(network, classes=6),
        replace(network, input_shape=(3, 16, 16)), replace(network, arch="other"),
    )  # fmt: skip
    with EngineClock(LatencyConfig(), Writers(exported_once, plan_for), tmp_path) as clock:
        assert len({clock.file_of(other) for other in others}) == len(others)
        assert len({clock.file_of(other).parent for other in others}) == 1
