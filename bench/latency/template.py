"""One exported ONNX file → the same network at any widths, in milliseconds instead of an export each.

All that differs between two exports of one network at different widths are whole numbers: sizes of its tensors, shapes
that it reshapes to, groups of its convolutions. Each of them grows with the units of one channel group, or with what a
layer takes of several. Which, is read off a few exports; the values are the full network's first ones, as no time hangs
on them.

G channel groups, V exports
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmlc.errors import InputError

SAME = 1e-6  # of whole numbers and simple fractions of them


@dataclass(frozen=True)
class _Number:
    """A whole number in a file: `fixed` + `each` [G] @ counts [G]."""

    fixed: int
    each: np.ndarray | None  # None: none

    def at(self, counts_G: np.ndarray) -> int:
        return self.fixed + (0 if self.each is None else round(float(self.each @ counts_G)))


Places = dict[Any, list[_Number]]


class Template:
    """An ONNX file as a function of the units that each channel group keeps."""

    def __init__(self, full: Any, dims: Places, values: Places, attributes: Places) -> None:
        self._full, self._dims, self._values, self._attributes = full, dims, values, attributes

    @classmethod
    def of(
        cls, exports: Sequence[Any], counts_VG: np.ndarray, known: Sequence[tuple[int, np.ndarray]] = ()
    ) -> Template:
        """Read a template off `exports` of a network at these counts, the first being the full one.

        Args: sums of groups that numbers may grow with too, each (fixed, [G]). Raises `InputError` where the exports
        have not the same nodes, and where a number follows no group.
        """
        if any(_nodes(export) != _nodes(exports[0]) for export in exports[1:]):
            exports = [_named_by_place(export) for export in exports]
        full, *others = exports
        reader = _Reader(counts_VG, known)
        stored = [{tensor.name: tensor for tensor in export.graph.initializer} for export in exports]
        if any(tensors.keys() != stored[0].keys() for tensors in stored) or any(
            _nodes(export) != _nodes(full) for export in others
        ):
            raise InputError("its export has other nodes at other widths, so that no table can be made of it")
        dims: Places = {}
        values: Places = {}
        for name, tensor in stored[0].items():
            sizes = [tuple(tensors[name].dims) for tensors in stored]
            if len(set(sizes)) > 1:
                dims[name] = reader.numbers(sizes, name)
            elif _is_whole(tensor):
                found = [_array(tensors[name]).flatten().tolist() for tensors in stored]
                if any(own != found[0] for own in found):
                    values[name] = reader.numbers(found, name)
        attributes: Places = {}
        for index, node in enumerate(full.graph.node):
            for place, attribute in enumerate(node.attribute):
                given = [_ints(export.graph.node[index].attribute[place]) for export in exports]
                if any(own != given[0] for own in given):
                    attributes[index, place] = reader.numbers(given, f"{attribute.name} of {node.name}")
        return cls(full, dims, values, attributes)

    def write(self, counts_G: np.ndarray, path: Path) -> None:
        """The file at these counts."""
        import onnx
        from onnx import numpy_helper

        made = onnx.ModelProto()
        made.CopyFrom(self._full)
        del made.graph.value_info[:]  # they say the full network's shapes
        for tensor in made.graph.initializer:
            if (sizes := self._dims.get(tensor.name)) is not None:
                kept = _array(tensor)[tuple(slice(number.at(counts_G)) for number in sizes)]
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), tensor.name))
            elif (numbers := self._values.get(tensor.name)) is not None:
                whole = np.array([number.at(counts_G) for number in numbers])
                array = _array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(whole.astype(array.dtype).reshape(array.shape), tensor.name))
        for (index, place), numbers in self._attributes.items():
            attribute = made.graph.node[index].attribute[place]
            if attribute.ints:
                attribute.ints[:] = [number.at(counts_G) for number in numbers]
            else:
                attribute.i = numbers[0].at(counts_G)
        onnx.save_model(made, str(path))


def told_apart(counts_VG: np.ndarray, known: Sequence[tuple[int, np.ndarray]]) -> tuple[int, int]:
    """How many groups and `known` sums of them are told apart by how they grow at these counts, and of how many."""
    each_SG = np.array([*np.eye(counts_VG.shape[1]), *(each_G for _, each_G in known)])
    each_SG = each_SG[:, counts_VG[0] > 1][each_SG[:, counts_VG[0] > 1].any(1)]  # a group of one unit stays
    steps_SV = each_SG @ (counts_VG[0] - counts_VG[1:]).T[counts_VG[0] > 1]
    grows = steps_SV.any(1)
    return len(_directions(steps_SV[grows])), len(_directions(each_SG))


def _directions(vectors: np.ndarray) -> set[tuple[float, ...]]:
    """The directions of vectors without negative numbers, none of them zero."""
    return {tuple(own) for own in np.round(vectors / vectors.sum(1, keepdims=True), 9).tolist()}


class _Reader:
    """Tells with which group a number grows, by its values in all exports."""

    def __init__(self, counts_VG: np.ndarray, known: Sequence[tuple[int, np.ndarray]]) -> None:
        groups = counts_VG.shape[1]
        singles = [(0, np.eye(groups)[group]) for group in range(groups)]
        self._counts_VG = counts_VG
        self._sums = [(fixed, each, counts_VG @ each + fixed) for fixed, each in (*singles, *known)]

    def numbers(self, values: Sequence[Sequence[int]], where: str) -> list[_Number]:
        """The numbers at a place, of their values in each export."""
        return [self._number(np.array(own), where) for own in zip(*values, strict=True)]

    def _number(self, values_V: np.ndarray, where: str) -> _Number:
        if (values_V == values_V[0]).all():
            return _Number(int(values_V[0]), None)
        found: list[_Number] = []
        for fixed, each_G, sums_V in self._sums:
            steps, grown = sums_V[0] - sums_V[1:], values_V[0] - values_V[1:]
            times = float(grown @ steps) / (float(steps @ steps) or 1.0)
            if times and np.allclose(times * steps, grown, rtol=0, atol=SAME):
                left = values_V[0] - times * sums_V[0]
                found.append(_Number(round(float(left + times * fixed)), times * each_G))
        if not found:
            raise self._untold(values_V, where, "follows no channel group")
        first, *others = found
        if any(not np.allclose(first.each, other.each, rtol=0, atol=SAME) for other in others):  # type: ignore[arg-type]
            raise self._untold(values_V, where, "may follow one channel group or another")
        return first

    def _untold(self, values_V: np.ndarray, where: str, why: str) -> InputError:
        shown = ", ".join(map(str, values_V))
        return InputError(f"a number in its export ({where}: {shown}) {why}, so that no table can be made of it")


def _named_by_place(export: Any) -> Any:
    """A copy of an export in which each step's constants are its own, and what it gives is named after its place.

    The exporter keeps one constant for all that are alike, which at other widths are others, and numbers them through.
    Tensors of the network, whose names have dots, stay.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(export)
    if any(attribute.HasField("g") for node in export.graph.node for attribute in node.attribute):
        return made  # what is within a branch goes by these names too
    constants = {tensor.name: tensor for tensor in export.graph.initializer if "." not in tensor.name}
    named = {own.name: own.name for own in (*export.graph.input, *export.graph.output)}
    kept = [tensor for tensor in export.graph.initializer if tensor.name not in constants]
    del made.graph.initializer[:], made.graph.value_info[:]
    made.graph.initializer.extend(kept)
    for index, node in enumerate(made.graph.node):
        for slot, name in enumerate(node.input):
            if name in constants:
                node.input[slot] = f"constant_{index}_{slot}"
                made.graph.initializer.add().CopyFrom(constants[name])
                made.graph.initializer[-1].name = node.input[slot]
            else:
                node.input[slot] = named.get(name, name)
        for slot, name in enumerate(node.output):
            node.output[slot] = named.setdefault(name, f"value_{index}_{slot}")
    return made


def _nodes(export: Any) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(node.op_type, tuple(node.input), tuple(node.output)) for node in export.graph.node]


def _is_whole(tensor: Any) -> bool:
    from onnx import TensorProto

    return bool(tensor.data_type == TensorProto.INT64)


def _array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def _ints(attribute: Any) -> list[int]:
    return list(attribute.ints) or [attribute.i]
