"""What widths cost: in parameters or MACs, or in milliseconds by a table.

Shape legend: G channel groups, L layers.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wmlc.compress.widths.budget import P_UP
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.latency_model import LatencyModel

TINY = 1e-9


@dataclass(frozen=True)
class Priced(abc.ABC):
    """A channel graph whose groups have a few levels each, and what any of them cost."""

    graph: ChannelGraph
    levels: tuple[tuple[int, ...], ...]  # units, ascending

    @functools.cached_property
    def chosen(self) -> dict[tuple[Any, ...], tuple[np.ndarray, float]]:
        """Results of `choose_within` by its arguments: corrections ask for the same peers again."""
        return {}

    @abc.abstractmethod
    def cost(self, counts_G: np.ndarray) -> float:
        """Of the whole network at these units."""

    @abc.abstractmethod
    def change(self, counts_G: np.ndarray, moved_G: np.ndarray) -> float:
        """By how much the cost at `moved_G` units is more than at `counts_G`."""

    def counts(self, place_G: np.ndarray) -> np.ndarray:
        """Units of a place."""
        return np.array([own[place] for own, place in zip(self.levels, place_G, strict=True)], dtype=int)

    def fits(self, counts_G: np.ndarray) -> bool:
        """Whether every layer keeps what the cap leaves it, or is left out with all of its block."""
        return self.graph.allows(counts_G) and not self.short(counts_G).any()

    def short(self, counts_G: np.ndarray) -> np.ndarray:
        """The layers that keep less than the cap leaves them, bool [L]; not those of a block that is left out."""
        size_L = self.graph.layer_sizes(counts_G, "params")
        return (size_L < self._least_L) & (size_L > 0)

    @functools.cached_property
    def _least_L(self) -> np.ndarray:
        """What the cap leaves each layer."""
        return (1 - P_UP) * self.graph.layer_sizes(self.graph.full, "params") - TINY


def blocks_optional(priced: Priced) -> Priced:
    """`priced`, where residual blocks may be left out: their groups may keep nothing too."""
    pairs = zip(priced.graph.groups, priced.levels, strict=True)
    return replace(priced, levels=tuple((0, *own) if group.block else own for group, own in pairs))


@dataclass(frozen=True)
class Counted(Priced):
    """Priced in parameters or MACs."""

    unit: str  # "params" or "macs"

    def cost(self, counts_G: np.ndarray) -> float:
        return float(self.graph.size(counts_G, self.unit))

    def change(self, counts_G: np.ndarray, moved_G: np.ndarray) -> float:
        return self.cost(moved_G) - self.cost(counts_G)


@dataclass(frozen=True)
class Timed(Priced):
    """Priced in milliseconds, by a table."""

    model: LatencyModel

    def cost(self, counts_G: np.ndarray) -> float:
        return self.model.whole(sum(self._layers_ms(range(len(self.graph.layers)), counts_G)))

    def change(self, counts_G: np.ndarray, moved_G: np.ndarray) -> float:
        changed = np.flatnonzero(counts_G != moved_G).tolist()
        layers = sorted({layer for group in changed for layer in self._sized_by[group]})
        return self.model.scale * (sum(self._layers_ms(layers, moved_G)) - sum(self._layers_ms(layers, counts_G)))

    def _layers_ms(self, layers: Sequence[int], counts_G: np.ndarray) -> list[float]:
        """Of each layer that is there, not in a block that is left out."""
        counts = counts_G.tolist()
        own = [self._layers[layer] for layer in layers]
        return [
            self.model.layer_ms(layer.name, layer.taken.channels(counts), layer.given.channels(counts))
            for layer in own
            if all(counts[group] for group in layer.block)
        ]

    @functools.cached_property
    def _layers(self) -> list[_Layer]:
        graph = self.graph
        block_of = {layer: block.groups for block in graph.blocks for layer in block.layers}
        taken, given = ([_Side.of(*own) for own in zip(*side, strict=True)] for side in (
            (graph.columns, graph.fixed_columns), (graph.rows, graph.fixed_rows),
        ))  # fmt: skip
        named = [layer.name for layer in graph.layers]
        return [_Layer(*own, block_of.get(n, ())) for n, own in enumerate(zip(named, taken, given, strict=True))]

    @functools.cached_property
    def _sized_by(self) -> list[list[int]]:
        """The layers that each group sizes."""
        sized_LG = (self.graph.rows != 0) | (self.graph.columns != 0)
        return [np.flatnonzero(sized_L).tolist() for sized_L in sized_LG.T]


@dataclass(frozen=True)
class _Side:
    """The channels that a layer takes or gives: some for each unit of a few groups, and some that are fixed."""

    each: tuple[tuple[int, int], ...]  # a group and its channels a unit
    fixed: int

    @classmethod
    def of(cls, each_G: np.ndarray, fixed: float) -> _Side:
        return cls(tuple((int(group), round(each_G[group])) for group in np.flatnonzero(each_G)), round(fixed))

    def channels(self, counts: Sequence[int]) -> int:
        """At these units of all groups."""
        return self.fixed + sum(each * counts[group] for group, each in self.each)


@dataclass(frozen=True)
class _Layer:
    name: str
    taken: _Side
    given: _Side
    block: tuple[int, ...]  # the groups of the one that it is left out with
