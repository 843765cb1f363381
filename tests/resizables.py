"""Networks at any widths for tests of latency tables: some of numbers alone, and a real one with a bit of everything."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_networks import CLASSES, SHAPE, conv, hand_network
from torch import Tensor, nn

from wmlc.bench.latency.files import Writers
from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup, Layer, Place
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.resizable import resizable
from wmlc.export import for_latency
from wmlc.export.to_tensorrt import plan_for
from wmlc.latency_model import LatencyModel
from wmlc.models.resizable import Resizable
from wmlc.records import EngineAt, LatencyTable, LayerShape, NetworkSpec, Point, ShapeTimes, WholeTime

LayerMs = Callable[[int, int, int], float]  # a layer's place, channels in and out → milliseconds

AT = EngineAt(
    engine="ort", version="1.2", precision="fp32", threads=1, batch=1, device="cpu", cpu="a CPU, AVX2", gpu=None
)
EIGHT = tuple(range(8, 65, 8))  # levels of a group of 64 channels


def conv_shape(side: int, kernel: int = 3, op: str = "Conv") -> LayerShape:
    """The shape of a dense convolution at `side` x `side` pixels."""
    sides = (side, side)
    return LayerShape(op, (kernel, kernel), (1, 1), "dense", sides, sides, ("Relu",))


def no_network(counts_G: np.ndarray) -> nn.Module:
    """Of networks that are numbers alone."""
    raise AssertionError("nothing is to be built here")


def no_file(counts_G: np.ndarray, directory: Path) -> None:
    """Of networks that are numbers alone."""
    raise AssertionError("nothing is to be written here")


def linked_by(pairs: Sequence[tuple[int | None, int | None]], levels: Sequence[Sequence[int]]) -> Resizable:
    """Layers that take and give the channels of these groups (None: 3, of images, or 10, of classes); numbers alone."""
    columns, rows = np.zeros((len(pairs), len(levels))), np.zeros((len(pairs), len(levels)))
    fixed_columns, fixed_rows = np.zeros(len(pairs)), np.zeros(len(pairs))
    for layer, (taken, given) in enumerate(pairs):
        if taken is None:
            fixed_columns[layer] = 3
        else:
            columns[layer, taken] = 1
        if given is None:
            fixed_rows[layer] = 10
        else:
            rows[layer, given] = 1
    return Resizable(
        arch="numbers", arch_args="", classes=10, input_shape=(3, 8, 8), divisor=8,
        groups=tuple(f"group{g}" for g in range(len(levels))), levels=tuple(tuple(own) for own in levels),
        layers=tuple(f"layer{layer}" for layer in range(len(pairs))), rows=rows, fixed_rows=fixed_rows,
        columns=columns, fixed_columns=fixed_columns, build=no_network, save=no_file,
    )  # fmt: skip


def chain(levels: Sequence[Sequence[int]]) -> Resizable:
    """Convolutions one after another, and a classifier: each group is given by one layer and taken by the next."""
    ends = [None, *range(len(levels)), None]
    return linked_by(list(itertools.pairwise(ends)), levels)


def empty_table(network: Resizable, at: EngineAt = AT) -> LatencyTable:
    """A table of which nothing is measured yet."""
    return LatencyTable(
        command="wmlc latency", at=at, arch=network.arch, arch_args=network.arch_args, classes=network.classes,
        input_shape=network.input_shape, divisor=network.divisor, layers=list(network.layers),
        levels={name: list(own) for name, own in zip(network.groups, network.levels, strict=True)},
        time="2026-11-25T00:00:00+00:00", commit=None, versions={},
    )  # fmt: skip


class Mixed(nn.Module):
    """A residual block under batch norms, an inverted one (depthwise), a concatenation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.one, self.norm1, self.two, self.norm2 = conv(8, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8)
        self.up, self.deep, self.down = conv(8, 12, 1), conv(12, 12, groups=12), conv(12, 8, 1)
        self.norm3, self.norm4 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
        self.side, self.join, self.fc = conv(8, 4), conv(12, 8), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        x = F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))
        x = x + self.down(F.relu6(self.norm4(self.deep(F.relu6(self.norm3(self.up(x)))))))
        x = F.relu(self.join(torch.cat([x, F.relu(self.side(x))], 1)))
        return self.fc(x.mean((2, 3)))


def real(name: str, divisor: int = 1) -> Resizable:
    """`Mixed`, or one of `hand_networks`, always with the same weights, at any widths."""
    torch.manual_seed(0)
    network = Mixed().eval() if name == "mixed" else hand_network(name)
    return resizable(network, read_channels(network, SHAPE), SHAPE, CLASSES, divisor, name)


_WRITE = for_latency.write_unchecked
_EXPORTED: dict[tuple[object, ...], bytes] = {}


def exported_once(network: nn.Module, kind: Resizable, path: Path) -> None:
    """The real export to fp32, made once in a session for the same network of the same widths."""
    key = type(network), *((name, tuple(own.shape)) for name, own in network.state_dict().items())
    if key not in _EXPORTED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(for_latency, "write_unchecked", _WRITE)  # where `int8_of_exported` has put itself
            for_latency.onnx_writer("fp32", "cpu")(network, kind, path)
        _EXPORTED[key] = path.read_bytes()
    path.write_bytes(_EXPORTED[key])


def int8_of_exported(network: nn.Module, kind: Resizable, path: Path) -> None:
    """The int8 file, made of `exported_once`."""

    def write(network: nn.Module, spec: NetworkSpec, fp32: Path) -> None:
        exported_once(network, kind, fp32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(for_latency, "write_unchecked", write)
        for_latency.onnx_writer("int8", "cpu")(network, kind, path)


def graph_like(network: Resizable) -> ChannelGraph:
    """The channel graph of numbers alone: layers of 1 x 1 kernels without biases, at so many pixels as they have."""

    def group(index: int, name: str) -> ChannelGroup:
        units = network.levels[index][-1]
        ends = [(sides, layer) for sides in (0, 1) for layer in range(len(network.layers))]
        places = [
            Place(f"{network.layers[layer]}.weight", side, torch.arange(units)[:, None], side == 1)
            for side, layer in ends
            if (network.rows if side == 0 else network.columns)[layer, index]
        ]
        return ChannelGroup(name, units, tuple(places))

    return ChannelGraph(
        groups=tuple(group(index, name) for index, name in enumerate(network.groups)),
        layers=tuple(Layer(f"{name}.weight", 1, 4.0**place, 0) for place, name in enumerate(network.layers)),
        rows=network.rows, fixed_rows=network.fixed_rows, columns=network.columns, fixed_columns=network.fixed_columns,
        unit_params=np.zeros(len(network.groups)), fixed_params=0, other_macs=0, products={},
    )  # fmt: skip


def table_by(network: Resizable, layer_ms: LayerMs, *, overhead_ms: float = 0.0, scale: float = 1.0) -> LatencyTable:
    """A finished table of every pair of each layer's widths, at which layer l takes `layer_ms`(l, in, out)."""
    shapes = []
    for place, layer in enumerate(network.layers):
        pairs = {tuple(network.channels(own)[place].tolist()) for own in _all_of_two(network, place)}
        took = {pair: layer_ms(place, *pair) for pair in sorted(pairs)}
        points = [Point(*pair, ms, ms, ms, 3) for pair, ms in took.items()]
        shapes.append(ShapeTimes(shape=conv_shape(2**place), layers=[layer], points=points))
    return replace(empty_table(network), shapes=shapes, overhead_ms=overhead_ms, scale=scale, finished=True)


def _all_of_two(network: Resizable, layer: int) -> Iterator[np.ndarray]:
    """Counts at all levels of the groups that size a layer, the others being whole."""
    own = np.flatnonzero((network.rows[layer] != 0) | (network.columns[layer] != 0))
    for levels in itertools.product(*(network.levels[group] for group in own)):
        counts_G = network.full
        counts_G[own] = levels
        yield counts_G


class FakeClock:
    """What measures without an engine: its table says `layer_ms`, whole networks take `truth`(counts, sum) instead."""

    def __init__(self, layer_ms: LayerMs, truth: Callable[[np.ndarray, float], float], at: EngineAt = AT) -> None:
        self.at, self._layer_ms, self._truth = at, layer_ms, truth
        self.tables = 0
        self.timed: list[list[tuple[int, ...]]] = []  # of each call
        self._last: tuple[Resizable, LatencyModel] | None = None

    def __enter__(self) -> FakeClock:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def table(self, network: Resizable) -> LatencyTable:
        self.tables += 1
        return table_by(network, self._layer_ms, overhead_ms=0.05)

    def true_ms(self, network: Resizable, counts_G: np.ndarray) -> float:
        if self._last is None or self._last[0] is not network:
            self._last = network, LatencyModel(table_by(network, self._layer_ms, overhead_ms=0.05))
        model = self._last[1]
        there = [own for own in zip(network.layers, network.channels(counts_G), strict=True) if own[1].all()]
        return self._truth(counts_G, model.total([name for name, _ in there], np.array([own for _, own in there])))

    def time(self, network: Resizable, counts: Sequence[np.ndarray]) -> list[WholeTime]:
        self.timed.append([tuple(map(int, own)) for own in counts])
        found, full_ms = [], self.true_ms(network, network.full)
        for own in counts:
            ms = self.true_ms(network, own)
            found.append(
                WholeTime(
                    counts=[int(c) for c in own], ms=ms, low=0.99 * ms, high=1.01 * ms, full_ms=full_ms, launches=6
                )
            )
        return found


WRITERS = Writers(exported_once, plan_for)
