"""Which channels of a network hang together, and what it costs at any number of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wmlc.records import Cost

PLAIN_FIRST = (
    "take that off first (torch.nn.utils.parametrize.remove_parametrizations, of masks torch.nn.utils.prune.remove), "
    "and save the weights anew"
)
COMPUTED = (
    "no layer makes channels by a parameter of its own that another layer reads so; weights that are computed, as "
    f"under weight_norm and pruning masks, are none: {PLAIN_FIRST}"
)

Counts = np.ndarray  # units that each group keeps, int [G], or of several networks [N, G]


@dataclass(frozen=True)
class Place:
    """Where a group's units lie along one dimension of a parameter or buffer."""

    tensor: str
    dim: int
    positions: Tensor  # int64 [units, positions a unit]
    reads: bool  # the columns of a layer's weight, which take the channels in

    @property
    def module(self) -> str:
        """The name of the module that has the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Number:
    """A whole number in a module, or one in a tuple there, that gets smaller with a group, by `each` for a unit."""

    module: str
    name: str
    each: int
    index: int | None = None  # in the tuple


@dataclass(frozen=True)
class ChannelGroup:
    """Units of channels of which any number can be cut alike, named after the layer that makes them.

    A unit is what must be cut together: mostly a channel, of a grouped convolution one of every group.
    """

    root: str
    units: int
    places: tuple[Place, ...]
    attributes: tuple[Number, ...] = ()
    block: str = ""  # the residual block that is left out where no unit is kept; none: some unit has to be
    queries: tuple[Place, ...] = ()  # rows over which products of activations sum, of what is on the left there
    keys: tuple[Place, ...] = ()  # and on the right
    rooted: bool = False  # such products are divided by the root of as many: queries shrink by √(kept / units)

    @property
    def channels(self) -> int:
        """Channels of the root layer that a unit is."""
        return self.places[0].positions.shape[1]

    def lost(self, kept: Tensor) -> Tensor:
        """Which units go where the units `kept` [K] stay; bool [units]."""
        lost = torch.ones(self.units, dtype=torch.bool)
        lost[kept] = False
        return lost

    @property
    def stages(self) -> frozenset[str]:
        """Of the layers that make the channels."""
        return frozenset(place.tensor.split(".")[0] for place in self.places if not place.reads)

    @property
    def makers(self) -> tuple[str, ...]:
        """The modules that make the channels."""
        return tuple(dict.fromkeys(place.module for place in self.places if not place.reads))


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer by its weight, whose cost is the product of the weight's first two dimensions."""

    tensor: str
    unit_params: int  # a row and column
    unit_macs: float
    row_params: int  # 1 with a bias

    @property
    def name(self) -> str:
        """The module's."""
        return self.tensor.rpartition(".")[0]

    @property
    def stage(self) -> str:
        """The stage that it is in."""
        return self.tensor.split(".")[0]


@dataclass(frozen=True)
class LeftWhole:
    """Layers of which no channel is cut, and why."""

    layers: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Block:
    """A residual block that can be left out: its `groups` keep units, all of them, or none does."""

    name: str
    groups: tuple[int, ...]
    layers: tuple[int, ...]
    unit_params: np.ndarray  # its own besides those of layers, of each group's unit; [G]
    fixed_params: int


@dataclass(frozen=True)
class ChannelGraph:
    """A full network's channel groups, the layers that they size, and what is left whole.

    The rows of a layer's weight are `rows` [L, G] @ counts [G] + `fixed_rows` [L], its columns likewise; a layer of a
    block that is left out has neither.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    rows: np.ndarray
    fixed_rows: np.ndarray
    columns: np.ndarray
    fixed_columns: np.ndarray
    unit_params: np.ndarray  # of each group's unit besides those in layers: biases, norms; [G]
    fixed_params: int
    other_macs: int  # that hang on no group
    products: Mapping[tuple[int, ...], int]  # MACs that are proportional to the units of these groups
    left_whole: tuple[LeftWhole, ...] = ()
    blocks: tuple[Block, ...] = ()
    named: Callable[[str], str] = str  # a layer's name here → in the network as people know it

    @property
    def cost(self) -> Cost:
        """The whole network's, before any cut."""
        return Cost(params=self.params, macs=self.macs)

    @property
    def params(self) -> int:
        """Of the whole network."""
        return round(float(self.size(self.full, "params")))

    @functools.cached_property
    def macs(self) -> int:
        """Of the whole network, for one image."""
        return round(float(self.size(self.full, "macs")))

    @functools.cached_property
    def full(self) -> Counts:
        """Units of each group before any cut; read-only."""
        counts = np.array([group.units for group in self.groups], dtype=int)
        counts.setflags(write=False)
        return counts

    @functools.cached_property
    def _in_blocks(self) -> np.ndarray:
        """Layers of blocks, and a group of each one's block; int [2, n]."""
        pairs = [(layer, block.groups[0]) for block in self.blocks for layer in block.layers]
        return np.array(pairs, dtype=int).reshape(-1, 2).T

    def layer_sizes(self, counts: Counts, unit: str) -> np.ndarray:
        """Each layer's parameters or MACs (`unit`) when the groups keep `counts`; float [L] or [N, L]."""
        rows, columns = counts @ self.rows.T + self.fixed_rows, counts @ self.columns.T + self.fixed_columns
        layers, groups = self._in_blocks
        rows[..., layers] *= counts[..., groups] > 0
        if unit == "macs":
            return np.array([layer.unit_macs for layer in self.layers]) * rows * columns
        each = np.array([layer.unit_params for layer in self.layers]) * rows * columns
        return each + np.array([layer.row_params for layer in self.layers]) * rows

    def size(self, counts: Counts, unit: str) -> np.ndarray:
        """The whole network's parameters or MACs when the groups keep `counts`; float, or [N]."""
        total = self.layer_sizes(counts, unit).sum(-1)
        if unit == "macs":
            for groups, macs in self.products.items():
                total = total + macs * (counts[..., list(groups)] / self.full[list(groups)]).prod(-1)
            return total + self.other_macs
        for block in self.blocks:
            total = total - self._without(block, counts) * (counts @ block.unit_params + block.fixed_params)
        return total + counts @ self.unit_params + self.fixed_params

    def macs_left(self, counts: Counts) -> np.ndarray:
        """The share of the whole network's MACs that is left when the groups keep `counts`; float, or [N]."""
        return self.size(counts, "macs") / self.macs

    def left_out(self, counts: Counts) -> list[str]:
        """The blocks that are left out when the groups keep `counts` [G]."""
        return [block.name for block in self.blocks if self._without(block, counts)]

    def allows(self, counts: Counts) -> bool:
        """Whether at `counts` [G] only groups of blocks keep nothing, and of a block all or none."""
        nothing = counts == 0
        if not nothing.any():
            return True
        gone = [block.groups for block in self.blocks if nothing[list(block.groups)].all()]
        return int(nothing.sum()) == sum(map(len, gone))

    @staticmethod
    def _without(block: Block, counts: Counts) -> np.ndarray:
        """Whether the block is left out; bool, or [N]."""
        return np.asarray(counts[..., block.groups[0]] == 0)


def nothing_to_cut(graph: ChannelGraph) -> str:
    """Why a network has no channels that can go."""
    why = "; ".join(f"{', '.join(map(graph.named, own.layers[:3]))}: {own.why}" for own in graph.left_whole[:3])
    return f"no channel of the network can be cut: {why or COMPUTED}"


def left_whole(graph: ChannelGraph) -> str:
    """How many layers keep all of their channels, and why the first does."""
    layers = list(dict.fromkeys(name for own in graph.left_whole for name in own.layers))
    if not layers:
        return ""
    verb = "layers keep" if len(layers) > 1 else "layer keeps"
    return f", and {len(layers)} {verb} all channels, as {graph.named(layers[0])} does: {graph.left_whole[0].why}"


def channel_importance(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> list[Tensor]:
    """A score for each unit of each group: the sum over every parameter that goes with it."""
    totals = []
    for group in graph.groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for place in group.places:
            if place.tensor in scores:
                score = scores[place.tensor].double().cpu().movedim(place.dim, 0)
                total += score[place.positions].reshape(group.units, -1).sum(1)
        totals.append(total)
    return totals
