"""An engine's times of its nodes, laid on the layers of the ONNX file that it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from wmlc.bench.engines import Nodes
from wmlc.bench.layers import SCALED, Graph, Layer, layers_of, read_graph
from wmlc.records import LayerTime

FOLLOWS = {  # what engines fuse into the layer before it
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Add", "Sum",
    "Mul", "BatchNormalization", "Cast", "Identity", *SCALED,
}  # fmt: skip
COMPUTES = re.compile("conv(?!ert)|gemm|matmul|matrixmultiply|fullyconnected|^$", re.IGNORECASE)  # "": not told
# What engines put around a node's or a value's name.
ADDED = re.compile(r"^InsertedPrecisionFreeCast_|^fused |_token_\d+$|_nchwc$|/WithoutBiases$|/MatMulAddFusion$")
BETWEEN = re.compile(r" \+ | \|\| |PWN\(|[(),]")  # the names that an engine joined into one
RANGE = re.compile(r"ForeignNode\[(.+)\.\.\.(.+)\]")  # TensorRT's, all nodes from one to another
MOVES = "Reformatting "  # how TensorRT's copies begin, which go on with the name of what reads them
OTHER = "other: "


def attribute(onnx_file: Path, nodes: Nodes, batch: int = 1) -> list[LayerTime]:
    """Lay an engine's times, taken at this batch size, on the layers of the file, in the order of its graph.

    The file is that of the network which the engine ran, for torch and TensorRT too. A node belongs to the layer whose
    name, node or output it is named after; one that computes and is named after what follows a layer (the Relu or Add
    that was fused into it) to that layer, unless another node has taken it; and where one that computes and one layer
    are left over, they belong together. One node for several layers is shared out by MACs. The rest is summed an
    operator, as "other: ReorderOutput". Nothing is lost or counted twice; a layer without time is left out.
    """
    graph = read_graph(onnx_file)
    layers = dict(layers_of(graph))
    names = _Names(graph, layers)
    owners = [names.direct(label) for label, _, _ in nodes]
    taken = {index for owner in owners for index in owner}
    for place, (label, op, _) in enumerate(nodes):
        if not owners[place] and COMPUTES.search(op) and (found := names.before(label, taken)) is not None:
            owners[place] = [found]
            taken.add(found)
    left = [place for place, (_, op, _) in enumerate(nodes) if op and not owners[place] and COMPUTES.search(op)]
    if len(left) == len(free := layers.keys() - taken) == 1:  # no name is needed to tell whose it is
        owners[left[0]] = list(free)
        taken |= free
    spent, rest = dict.fromkeys(layers, 0.0), dict[str, float]()
    for owner, (_, op, ms) in zip(owners, nodes, strict=True):
        whole = sum(layers[index].macs for index in owner)
        for index in owner:
            spent[index] += ms * layers[index].macs / whole if whole else ms / len(owner)
        if not owner:
            rest[op or "unknown"] = rest.get(op or "unknown", 0.0) + ms
    known = [_layer_time(layer, spent[index], batch) for index, layer in layers.items() if index in taken]
    others = [
        LayerTime(layer=OTHER + op, op=op, ms=ms, channels=None, macs=0, bytes=None, intensity=None)
        for op, ms in rest.items()
    ]
    return known + others


def _layer_time(layer: Layer, ms: float, batch: int) -> LayerTime:
    return LayerTime(
        layer=layer.name, op=layer.op, ms=ms, channels=layer.channels, macs=layer.macs, bytes=layer.bytes_moved(batch),
        intensity=layer.intensity(batch),
    )  # fmt: skip


class _Names:
    """Which layer a name of an engine's means; a layer is the index of its node."""

    def __init__(self, graph: Graph, layers: Mapping[int, Layer]) -> None:
        self._graph, self._layers = graph, layers
        self._named = {node.name: index for index, node in enumerate(graph.nodes) if node.name}
        self._layer_named = {layer.name: index for index, layer in layers.items()}

    def direct(self, label: str) -> list[int]:
        """The layers that are named in `label` themselves or by the value that they make."""
        if spans := RANGE.search(label):
            ends = [self._node(name) for name in spans.groups()]
            first, last = (ends[0], ends[1]) if None not in ends else (0, -1)
            return [index for index in self._layers if first <= index <= last]  # type: ignore[operator]
        return sorted({index for index in self._nodes(label) if index in self._layers})

    def before(self, label: str, taken: set[int]) -> int | None:
        """The last layer, not yet `taken`, whose output only passes what engines fuse on its way to the node named."""
        found, waiting, seen = set[int](), self._nodes(label), set[int]()
        while waiting:
            index = waiting.pop()
            if index in self._layers:
                found.add(index)
            elif index not in seen and self._graph.nodes[index].op_type in FOLLOWS:
                seen.add(index)
                waiting += [
                    self._graph.maker[name] for name in self._graph.nodes[index].input if name in self._graph.maker
                ]
        return max(found - taken, default=None)

    def _nodes(self, label: str) -> list[int]:
        if label.startswith(MOVES):
            return []
        found = [self._node(name) for name in (label, *BETWEEN.split(label))]
        return [index for index in dict.fromkeys(found) if index is not None]

    def _node(self, name: str) -> int | None:
        name = name.strip()
        while (shorter := ADDED.sub("", name)) != name and name not in self._named:
            name = shorter
        for known in (self._layer_named, self._named, self._graph.maker):
            if name in known:
                return known[name]
        return None
