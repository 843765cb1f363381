"""A small network with residual blocks of two kinds: images [N, 3, 8, 8] → logits [N, 5]."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from hand_networks import conv, unlike_a_batch
from torch import Tensor, nn

from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.resizable import resizable
from wmlc.models.resizable import Resizable

SHAPE, CLASSES, WIDTH = (3, 8, 8), 5, 4
BLOCKS = ["stage1.basic", "stage1.squeezed", "stage2.1"]


class Basic(nn.Module):
    """Two convolutions under batch norm, and ReLU over the sum; the second has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1, self.two, self.norm2 = (
            conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH), conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.two(F.relu(self.norm1(self.one(x))))))


class Squeezed(nn.Module):
    """An inverted block whose channels are weighed by all of them: two groups of its own. It is told a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.deep, self.down = conv(WIDTH, 4, 1), conv(4, 4, groups=4), conv(4, WIDTH, 1)
        self.fewer, self.more = conv(4, 3, 1), conv(3, 4, 1)

    def forward(self, x: Tensor, rate: float) -> Tensor:
        y = self.deep(F.relu6(self.up(x)))
        return x + rate * self.down(y * self.more(F.relu(self.fewer(y.mean((2, 3), keepdim=True)))).sigmoid())


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.basic, self.squeezed = Basic(), Squeezed()

    def forward(self, x: Tensor) -> Tensor:
        return self.squeezed(self.basic(x), rate=0.7)


def make() -> nn.Sequential:
    """A stem, a stage of two residual blocks, one of a convolution and a block, and a head."""
    torch.manual_seed(0)
    made = nn.Sequential()
    made.add_module("stem", nn.Sequential(conv(3, WIDTH), nn.ReLU()))
    made.add_module("stage1", Stage())
    made.add_module("stage2", nn.Sequential(nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU()), Basic()))
    made.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)))
    unlike_a_batch(made)
    return made.eval()


IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
EVERY_CHOICE = [own for n in range(4) for own in itertools.combinations(BLOCKS, n)]


def read(made: nn.Sequential, divisor: int = 1) -> tuple[ChannelGraph, Resizable]:
    graph = read_channels(made, SHAPE, with_blocks=True)
    return graph, resizable(made, graph, SHAPE, CLASSES, divisor, "hand.py:make")


@functools.cache
def whole() -> tuple[nn.Sequential, ChannelGraph, Resizable]:
    """The network, and what is read of it; not to be changed."""
    made = make()
    return made, *read(made)


def counts_without(graph: ChannelGraph, blocks: tuple[str, ...]) -> np.ndarray:
    return np.array([0 if group.block in blocks else group.units for group in graph.groups])


def cut_to(made: nn.Sequential, graph: ChannelGraph, counts_G: np.ndarray) -> nn.Sequential:
    kept = {group.root: torch.arange(int(count)) for group, count in zip(graph.groups, counts_G, strict=True)}
    cut = cut_channels(made, graph.groups, kept).eval()
    assert isinstance(cut, nn.Sequential)
    return cut


def drawn(graph: ChannelGraph, number: int) -> np.ndarray:
    """Some units of each group, and some of the blocks."""
    draw = np.random.default_rng(number)
    out = EVERY_CHOICE[number % len(EVERY_CHOICE)]
    return np.array([0 if g.block in out else draw.integers(1, g.units + 1) for g in graph.groups])
