"""An ONNX graph made readable: functions inlined, fused operators taken apart, and what in it cannot be counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WEIGHT_AT = {  # operator whose MACs are counted → which of its inputs is the weight
    "Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "ConvInteger": 1, "MatMulInteger": 1, "QLinearConv": 3,
    "QLinearMatMul": 3, "FusedConv": 1, "FusedGemm": 1, "FusedMatMul": 1,
}  # fmt: skip
STANDARD, MICROSOFT = ("", "ai.onnx"), "com.microsoft"
UNCOUNTED = ("Einsum", "LSTM", "GRU", "RNN", "Attention", "DeformConv")  # multiply too, and are not counted here
CHEAP = (  # ONNX Runtime's own that hold no weight
    "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearConcat",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "LayerNormalization",
    "SkipLayerNormalization", "SimplifiedLayerNormalization", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
FUSED = {"FusedConv": ("Conv", 3), "FusedGemm": ("Gemm", 3), "FusedMatMul": ("MatMul", 2)}  # → operator, inputs
NOT_OF = {  # what fusing added, or what the plain operator does not have
    "FusedConv": ("activation", "activation_params"),
    "FusedGemm": ("activation", "activation_alpha", "activation_beta", "activation_gamma"),
    "FusedMatMul": ("alpha", "transA", "transB", "transBatchA", "transBatchB"),
}
MOST_INLINED = 100_000  # nodes: functions that call each other twice each grow beyond any memory


def all_graphs(graph: Any) -> Iterator[Any]:
    """A graph, then those in its nodes: the branches of an If, the body of a Loop."""
    yield graph
    for node in graph.node:
        yield from graphs_in(node)


def graphs_in(node: Any) -> Iterator[Any]:
    """All graphs in a node, those in their nodes too."""
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from all_graphs(inner)


def inlined(model: Any) -> Any:
    """The model with its functions' nodes in place of their calls; without them where those would be too many."""
    import onnx.inliner

    if overgrown(model):
        del model.functions[:]  # or inferring a shape would go through all of them
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception:  # the inliner's errors have no common class; what is not inlined is told as not counted
        return model


def overgrown(model: Any) -> bool:
    """Functions that call each other stand for more nodes than any engine could hold."""
    return bool(model.functions) and _size(model) > MOST_INLINED


def _size(model: Any) -> int:
    """How many nodes there are once all functions are inlined, counted no further than the most allowed."""
    bodies = {(each.domain, each.name): each.node for each in model.functions}
    known: dict[tuple[str, str], int] = {}

    def size(nodes: Any, depth: int) -> int:
        if depth > len(bodies):  # a function that calls itself
            return MOST_INLINED + 1
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in bodies and key not in known:
                known[key] = size(bodies[key], depth + 1)
            total += known.get(key, 1)
        return min(total, MOST_INLINED + 1)

    return size([node for graph in all_graphs(model.graph) for node in graph.node], 0)


def uncounted(model: Any) -> str | None:
    """In words, the first thing in a model that may multiply and whose MACs cannot be told; None: there is none."""
    for node in model.graph.node:
        if (fault := _uncounted(node)) is not None:
            return fault
        for inner in graphs_in(node):
            for each in inner.node:
                if each.op_type in WEIGHT_AT or _uncounted(each) is not None:
                    what = "which branch runs" if node.op_type == "If" else "how often it runs"
                    return f"a {each.op_type} stands inside of {node.op_type}, and {what} is known when it does"
    return None


def _uncounted(node: Any) -> str | None:
    if node.domain in STANDARD:
        return f"those of {node.op_type} are not counted" if node.op_type in UNCOUNTED else None
    if node.domain == MICROSOFT and node.op_type in (*WEIGHT_AT, *CHEAP):
        return None
    return f"{node.domain}'s {node.op_type} is not known here"


def unfused(graph: Any) -> None:
    """Fused operators become those that they were made of: their outputs have the same shapes."""
    for node in graph.node:
        given = {each.name: each for each in node.attribute}
        turned = any(name.startswith("trans") and each.i for name, each in given.items())
        if node.domain != MICROSOFT or node.op_type not in FUSED or (node.op_type == "FusedMatMul" and turned):
            continue
        kept = [each for name, each in given.items() if name not in NOT_OF[node.op_type]]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.op_type, inputs = FUSED[node.op_type]
        node.domain = ""
        del node.input[inputs:]


def close_sides(graph: Any, constants: Mapping[str, Any], sides: tuple[int, ...]) -> None:
    """Give the open sides of the images that come in these numbers, in the order of the file's layout."""
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) == 1 + len(sides):
            for dim, side in zip(list(dims)[1:], sides, strict=True):
                if dim.dim_value <= 0:
                    dim.dim_value = side
