"""Networks at any widths for tests of latency tables: some of numbers alone, and a real one with a bit of everything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hand_networks import CLASSES, SHAPE, conv, hand_network
from torch import Tensor, nn

from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.resizable import resizable
from wmlc.export.for_latency import writer_for
from wmlc.models.resizable import Resizable
from wmlc.records import EngineAt, LatencyTable, LayerShape

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
        columns=columns, fixed_columns=fixed_columns, build=no_network,
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


_EXPORTED: dict[tuple[object, ...], bytes] = {}


def exported_once(network: nn.Module, kind: Resizable, path: Path) -> None:
    """The real export to fp32, made once in a session for the same network of the same widths."""
    key = kind.arch, *(tuple(own.shape) for own in network.state_dict().values())
    if key not in _EXPORTED:
        writer_for("fp32", "ort")(network, kind, path)
        _EXPORTED[key] = path.read_bytes()
    path.write_bytes(_EXPORTED[key])
