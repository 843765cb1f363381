"""An engine's times of its nodes, laid on the layers of the ONNX file that it runs."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from wmlc.bench.engines import Nodes
from wmlc.bench.layers import SCALED, Graph, Layer, layers_of, read_graph
from wmlc.errors import plain
from wmlc.layer_pairs import OTHER
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


def attribute(file: FileLayers, nodes: Nodes, batch: int = 1) -> list[LayerTime]:
    """Lay an engine's times, taken at this batch size, on the layers of the file, in the order of its graph.

    The file is that of the network which the engine ran, for torch and TensorRT too. A node belongs to the layer whose
    name, node or output it is named after; one that computes and is named after what follows a layer (the Relu or Add
    that was fused into it) to that layer, unless another node has taken it; and where one that computes and one layer
    are left over, they belong together. One node for several layers is shared out by MACs. The rest is summed an
    operator, as "other: ReorderOutput". Nothing is lost or counted twice; a layer without time is left out.
    """
    owners = file.owners(nodes)
    spent, rest = file.spent(nodes, owners), dict[str, float]()
    for owner, (_, op, ms) in zip(owners, nodes, strict=True):
        if not owner:
            rest[op or "unknown"] = rest.get(op or "unknown", 0.0) + ms
    known = [_layer_time(file.layers[index], ms, batch) for index, ms in spent.items()]
    others = [
        LayerTime(layer=OTHER + plain(op), op=plain(op), ms=ms, channels=None, macs=0, bytes=None, intensity=None)
        for op, ms in rest.items()
    ]
    return known + others


class FileLayers:
    """The layers of an ONNX file by the index of their node, to lay an engine's times on."""

    def __init__(self, onnx_file: Path) -> None:
        self.graph = read_graph(onnx_file)
        self.layers = dict(layers_of(self.graph))
        self._names = _Names(self.graph, self.layers)

    def owners(self, nodes: Nodes) -> list[list[int]]:
        """Whose time each node's is; nobody's, of one that belongs to no layer."""
        owners = [self._names.direct(label) for label, _, _ in nodes]
        taken = {index for owner in owners for index in owner}
        for place, (label, op, _) in enumerate(nodes):
            if owners[place] or not COMPUTES.search(op):
                continue
            if (found := self._names.before(label, FOLLOWS, taken)) is not None:
                owners[place] = [found]
                taken.add(found)
        left = [place for place, (_, op, _) in enumerate(nodes) if op and not owners[place] and COMPUTES.search(op)]
        if len(left) == len(free := self.layers.keys() - taken) == 1:  # no name is needed to tell whose it is
            owners[left[0]] = list(free)
        return owners

    def spent(self, nodes: Nodes, owners: Sequence[Sequence[int]]) -> dict[int, float]:
        """The milliseconds of each layer that owns a node, in the order of the graph."""
        spent: dict[int, float] = {}
        for owner, (_, _, ms) in zip(owners, nodes, strict=True):
            whole = sum(self.layers[index].macs for index in owner)
            for index in owner:
                part = ms * self.layers[index].macs / whole if whole else ms / len(owner)
                spent[index] = spent.get(index, 0.0) + part
        return {index: spent[index] for index in self.layers if index in spent}

    def before(self, node: int) -> int | None:
        """The last layer that a node's inputs come from."""
        return self._names.last_before([node], None, set())

    def with_what_follows(self, nodes: Nodes) -> tuple[dict[str, float], float]:
        """The milliseconds of each layer by name, those of all between it and the next ones with it; and the rest."""
        owners = self.owners(nodes)
        for place, (label, _, _) in enumerate(nodes):
            if not owners[place] and (found := self._names.before(label, None, set())) is not None:
                owners[place] = [found]
        rest = sum(ms for owner, (_, _, ms) in zip(owners, nodes, strict=True) if not owner)
        return {self.layers[index].name: ms for index, ms in self.spent(nodes, owners).items()}, rest


def _layer_time(layer: Layer, ms: float, batch: int) -> LayerTime:
    return LayerTime(
        layer=plain(layer.name), op=plain(layer.op), ms=ms, channels=layer.channels, macs=layer.macs,
        bytes=layer.bytes_moved(batch), intensity=layer.intensity(batch),
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

    def before(self, label: str, through: Container[str] | None, taken: set[int]) -> int | None:
        """The last layer before the nodes that `label` names; see `last_before`."""
        return self.last_before(self._nodes(label), through, taken)

    def last_before(self, waiting: list[int], through: Container[str] | None, taken: set[int]) -> int | None:
        """The last layer, not yet `taken`, whose output passes only operators of `through` (None: any but layers) on
        its way to one of the nodes `waiting`."""
        found, seen = set[int](), set[int]()
        while waiting:
            index = waiting.pop()
            if index in self._layers:
                found.add(index)
            elif index not in seen and (through is None or self._graph.nodes[index].op_type in through):
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
