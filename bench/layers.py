"""The layers of an ONNX file: channels, MACs, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wmlc.bench.graphs import WEIGHT_AT, all_graphs, close_sides, graphs_in, inlined, uncounted, unfused
from wmlc.errors import InputError

BIAS_AT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8}
INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")  # their weights are stored as integers
QLINEAR_DATA = (0, 3, 8)  # of QLinear operators: the inputs that are no scale and no zero point
SCALED = ("QuantizeLinear", "DequantizeLinear")  # their inputs after the first are scales and zero points
SAME_WEIGHT = (*SCALED, "Cast", "Identity", "Transpose", "Reshape")  # between a stored weight and its layer
KEEPS_TYPE = ("Relu", "Clip")  # between a layer and the QuantizeLinear that says in which type its output is written


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product; bytes by the types that the file holds and passes on."""

    name: str
    op: str
    channels: tuple[int, int]  # in, out
    macs: int  # of one image
    weight_bytes: int  # with the bias
    activation_bytes: int  # in and out, of one image

    def bytes_moved(self, batch: int) -> int:
        """Weights once, what comes in and goes out for each image of the batch."""
        return self.weight_bytes + batch * self.activation_bytes

    def intensity(self, batch: int) -> float:
        """FLOPs (twice the MACs) a byte moved: where it is small, memory sets the pace and not arithmetic."""
        return 2 * self.macs * batch / max(self.bytes_moved(batch), 1)


@dataclass(frozen=True)
class Graph:
    """An ONNX file as it is read here."""

    path: Path
    nodes: list[Any]
    maker: dict[str, int]  # value → index of the node that makes it
    readers: dict[str, list[int]]
    constants: dict[str, Any]  # name → tensor
    shapes: dict[str, tuple[int, ...]]  # of values and constants, as far as known
    item_bytes: dict[str, int]
    images: int  # that the shapes are for: 1, or the batch that the file fixes
    inside: list[Any]  # graphs in nodes, as the branches of an If
    uncounted: str | None  # in words, what multiplies in it and cannot be counted


class FileCost(NamedTuple):
    """What a file stores and what it computes for one image; `macs` is None for the reason `unknown`."""

    params: int
    macs: int | None
    unknown: str | None = None


def file_cost(onnx_file: Path, sides: tuple[int, ...] | None = None) -> FileCost:
    """Parameters, and MACs of one image, of an ONNX classifier. Args: the `sides` of images that a file leaves open.

    A parameter is an element of a tensor of numbers that the file stores, quantised or not, without scales, zero points
    and single numbers. A batch norm that was folded has left a bias: one parameter a channel, where the network that
    was exported had two. MACs are counted where all can be: a part of them would pass for a small network.
    """
    graph = read_graph(onnx_file, sides)
    params = _parameters(graph)
    if graph.uncounted:
        return FileCost(params, None, f"its MACs cannot be told: {graph.uncounted}")
    try:
        return FileCost(params, sum(layer.macs for _, layer in layers_of(graph)))
    except OpenShape as error:
        return FileCost(params, None, f"its MACs cannot be told: the shape of {error.value!r} is open")


def file_precision(onnx_file: Path) -> str:
    """What the file computes in: "int8" with quantised operators, else "fp16" where most weights are, else "fp32"."""
    from onnx import TensorProto

    model = _load(onnx_file)
    nodes = [node for graph in all_graphs(model.graph) for node in graph.node]
    if any("QuantizeLinear" in node.op_type or node.op_type.startswith("QLinear") or node.op_type.endswith("Integer")
           for node in nodes):  # fmt: skip
        return "int8"
    sizes = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in _constants(model).values():
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    return "fp16" if sizes[TensorProto.FLOAT16] > sizes[TensorProto.FLOAT] else "fp32"


def _load(onnx_file: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not onnx_file.is_file():
        raise InputError(f"{onnx_file} is not a file; extract it again")
    try:
        return inlined(onnx.load(onnx_file, load_external_data=False))
    except DecodeError:
        raise InputError(f"{onnx_file} is not an ONNX file; extract it again") from None


def read_graph(onnx_file: Path, sides: tuple[int, ...] | None = None) -> Graph:
    """The graph with the shapes and types of its values at a batch of 1, where the file leaves the batch open.

    Functions are read as what they stand for. Args: the `sides` of images that a file leaves open.
    """
    model = _load(onnx_file)
    constants = _constants(model)
    multiplies = uncounted(model)
    unfused(model.graph)
    images = _close_batch(model.graph, constants)
    if sides is not None:
        close_sides(model.graph, constants, sides)
    del model.graph.value_info[:]  # they say "batch"
    inferred = _inferred(model).graph
    shapes = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    types = {name: tensor.data_type for name, tensor in constants.items()}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        types.setdefault(value.name, kind.elem_type)
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in kind.shape.dim))
    nodes, readers = list(model.graph.node), dict[str, list[int]]()
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    item_bytes = {name: _item_bytes(kind) for name, kind in types.items()}
    inside = [inner for node in nodes for inner in graphs_in(node)]
    return Graph(onnx_file, nodes, maker, readers, constants, shapes, item_bytes, images, inside, multiplies)


def _inferred(model: Any) -> Any:
    """The model with what is known of its shapes; as it is where they contradict each other."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # an error of the checker's own, or of protobuf above 2 GB: a shape stays open then
        return model


def _constants(model: Any) -> dict[str, Any]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            stored.update((node.output[0], given.t) for given in node.attribute if given.name == "value")
    return stored


def _close_batch(graph: Any, constants: Mapping[str, Any]) -> int:
    """Set the first dimension of what comes in to 1 and forget what goes out; the batch where it is fixed."""
    images = 1
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims:
            if dims[0].dim_value > 0:
                images = dims[0].dim_value
            else:
                dims[0].dim_value = 1
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return images


def _item_bytes(kind: int) -> int:
    from onnx import helper

    try:
        return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError):  # undefined
        return 0


def layers_of(graph: Graph) -> Iterable[tuple[int, Layer]]:
    """The convolutions and matrix products of an ONNX classifier in fp32, fp16 or int8: (index of its node, layer).

    A layer is named after its weight, "stage1.0.conv1" for "stage1.0.conv1.weight", also where that is quantised; else,
    as where the weight has no such name, after its node. A name that stands twice, as of a weight that two layers
    share, gets a number. Raises `InputError` where a shape is left open.
    """
    times: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op_type in WEIGHT_AT:
            name = _name(graph, node)
            times[name] = times.get(name, 0) + 1
            yield index, _layer(graph, node, name if times[name] == 1 else f"{name} ({times[name]})")


def _layer(graph: Graph, node: Any, name: str) -> Layer:
    weight, out = node.input[WEIGHT_AT[node.op_type]], node.output[0]
    shape, out_shape, in_shape = (_shape(graph, value) for value in (weight, out, node.input[0]))
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if "Conv" in node.op_type:
        turned, groups = node.op_type == "ConvTranspose", given.get("group", 1)
        channels = (shape[0], shape[1] * groups) if turned else (shape[1] * groups, shape[0])
        macs = math.prod(shape) * math.prod((in_shape if turned else out_shape)[2:])
    else:
        depth = in_shape[0] if given.get("transA") else in_shape[-1]
        channels = (depth, out_shape[-1])
        macs = math.prod(out_shape) * depth // graph.images
    bias = [name for name in node.input[BIAS_AT.get(node.op_type, 99) :][:1] if name]
    activations = _bytes(graph, _source(graph, node.input[0])) + _bytes(graph, _sink(graph, out))
    return Layer(
        name=name, op=node.op_type, channels=channels, macs=macs, activation_bytes=activations // graph.images,
        weight_bytes=sum(_bytes(graph, _source(graph, value)) for value in (weight, *bias)),
    )  # fmt: skip


def _name(graph: Graph, node: Any) -> str:
    """Of the stored weight if it ends in ".weight", else of the node, else of the weight, the output at last."""
    weight = node.input[WEIGHT_AT[node.op_type]]
    while weight not in graph.constants and weight in graph.maker:
        before = graph.nodes[graph.maker[weight]]
        if before.op_type not in SAME_WEIGHT:
            break
        weight = before.input[0]
    stored = weight.removesuffix("_quantized") if weight in graph.constants else ""
    if stored.endswith(".weight"):
        return stored.removesuffix(".weight")
    return str(node.name or stored or node.output[0])


def _source(graph: Graph, value: str) -> str:
    """What is read in place of `value`: where it is dequantised, the integers."""
    made_by = graph.nodes[graph.maker[value]] if value in graph.maker else None
    return made_by.input[0] if made_by is not None and made_by.op_type == "DequantizeLinear" else value


def _sink(graph: Graph, value: str) -> str:
    """What is written in place of `value`: where it is quantised at once, or after its Relu, the integers."""
    end = value
    while len(readers := graph.readers.get(end, [])) == 1:
        reader = graph.nodes[readers[0]]
        if reader.op_type == "QuantizeLinear":
            return str(reader.output[0])
        if reader.op_type not in KEEPS_TYPE:
            break
        end = reader.output[0]
    return value


class OpenShape(InputError):
    """The shape of `value` is not known."""

    def __init__(self, path: Path, value: str) -> None:
        super().__init__(
            f"{path} leaves the shape of {value!r} open, so its MACs cannot be told; export it for images of one size"
        )
        self.value = value


def _shape(graph: Graph, value: str) -> tuple[int, ...]:
    if value not in graph.shapes:
        raise OpenShape(graph.path, value)
    return graph.shapes[value]


def _bytes(graph: Graph, value: str) -> int:
    return math.prod(_shape(graph, value)) * graph.item_bytes.get(value, 0)


def _parameters(graph: Graph) -> int:
    """See `file_cost`."""
    quantised = {node.input[0] for node in graph.nodes if node.op_type == "DequantizeLinear"}
    for node in graph.nodes:
        if node.op_type in INTEGER:
            at = (WEIGHT_AT[node.op_type], BIAS_AT.get(node.op_type, 99))
            quantised |= {_stored(graph, node.input[index]) for index in at if index < len(node.input)}
    beside, own = _scales(graph), graph.constants.items()
    apart = [(tensor.name, tensor) for each in graph.inside for tensor in each.initializer]
    return sum(
        math.prod(tensor.dims)
        for name, tensor in (*own, *apart)
        if tensor.dims and name not in beside and (_is_float(tensor) or name in quantised)
    )


def _is_float(tensor: Any) -> bool:
    from onnx import TensorProto

    return tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _stored(graph: Graph, value: str) -> str:
    """The constant that `value` is, before it was reshaped or cast."""
    while value not in graph.constants and value in graph.maker:
        node = graph.nodes[graph.maker[value]]
        if node.op_type not in SAME_WEIGHT or not node.input:
            break
        value = node.input[0]
    return value


def _scales(graph: Graph) -> set[str]:
    """The constants that say how integers are scaled, and where their zero is."""
    said: set[str] = set()
    measured = {name for node in graph.nodes if node.op_type == "DynamicQuantizeLinear" for name in node.output[1:]}
    for node in graph.nodes:
        if node.op_type in SCALED:
            said |= set(node.input[1:])
        elif node.op_type.startswith("QLinear"):
            said |= {name for index, name in enumerate(node.input) if index not in QLINEAR_DATA}
        elif node.op_type == "Mul" and measured & set(node.input):  # a weight's scale times that of what came in
            said |= set(node.input)
    return {_stored(graph, name) for name in said if name}
