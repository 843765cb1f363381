"""What a layer's time hangs on besides its channels: read off an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wmlc.bench.attribution import FileLayers
from wmlc.bench.engines import Nodes
from wmlc.bench.layers import SCALED
from wmlc.bench.layout import blocked_in
from wmlc.records import LayerShape

SPATIAL = 2  # dimensions before the sides of an image
FREE = (*SCALED, "Identity", "Cast", "Reshape", "Flatten", "Transpose", "Constant")  # that no time hangs on


class Shapes:
    """The layers of a full network's file: their shapes, and whose time an engine's nodes are.

    The file of the same network at other widths has the same names, so that this one tells for all.
    """

    def __init__(self, onnx_file: Path) -> None:
        self._file = FileLayers(onnx_file)
        then: dict[int, list[str]] = {}
        for index, node in enumerate(self._file.graph.nodes):
            if index not in self._file.layers and node.op_type not in FREE:
                owner = self._file.before(index)
                if owner is not None:
                    then.setdefault(owner, []).append(node.op_type)
        self.of = {
            layer.name: self._shape(index, tuple(then.get(index, ()))) for index, layer in self._file.layers.items()
        }

    def spent(self, nodes: Nodes) -> tuple[dict[str, float], float]:
        """The milliseconds of each layer by name, with what follows it, and those of no layer."""
        return self._file.with_what_follows(nodes)

    def blocked(self, nodes: Nodes) -> dict[str, bool]:
        """Of each convolution, whether ONNX Runtime computed it in its blocked layout."""
        return blocked_in(self._file, nodes)

    def _shape(self, index: int, then: tuple[str, ...]) -> LayerShape:
        graph = self._file.graph
        node, channels = graph.nodes[index], self._file.layers[index].channels
        given = {attribute.name: attribute for attribute in node.attribute}
        kernel = tuple(given["kernel_shape"].ints) if "kernel_shape" in given else ()
        groups = given["group"].i if "group" in given else 1
        kind: Literal["dense", "depthwise", "grouped"] = (
            "dense" if groups == 1 else "depthwise" if groups == channels[0] else "grouped"
        )
        sides = [
            graph.shapes.get(value, ())[SPATIAL:] if "Conv" in node.op_type else graph.shapes.get(value, ())[1:-1]
            for value in (node.input[0], node.output[0])
        ]
        strides = tuple(given["strides"].ints) if "strides" in given else ()
        return LayerShape(node.op_type, kernel, strides, kind, sides[0], sides[1], then)
