"""Widths of all groups that keep the most within a budget: a knapsack over groups, by dynamic programming.

What a layer costs hangs on the widths of two groups or more, so that no group has a price of its own. The knapsack is
solved at the prices that hold where it stands, no group going far, and again from there, until nothing is gained; then
exact exchanges of single steps. With prices that do not hang on each other the first pass is the optimum.

Shape legend: G channel groups, K levels of a group, L layers. A place [G] says at which of its levels each group is.
An item is what is chosen for together: the groups of a block, which keep units all or not at all, or one group.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wmlc.compress.widths.budget import P_UP
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.latency_model import LatencyModel
from wmlc.models.resizable import linked_groups

BINS = 2000  # that a budget is divided into
PASSES = 30
REACHES = (8, 3, 2, 1)  # levels that a group may go in a pass: all, then the fewer, the better its prices hold
EXCHANGES = 40  # groups, above which exchanges of two are not tried
STEPS = (1, 2)  # levels that either goes in an exchange
TINY = 1e-9


@dataclass(frozen=True)
class Priced(abc.ABC):
    """A channel graph whose groups have a few levels each, and what any of them cost."""

    graph: ChannelGraph
    levels: tuple[tuple[int, ...], ...]  # units, ascending

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
        return (size_L < (1 - P_UP) * self.graph.layer_sizes(self.graph.full, "params") - TINY) & (size_L > 0)


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
        changed_G = counts_G != moved_G
        layers = np.flatnonzero(((self.graph.rows != 0) | (self.graph.columns != 0))[:, changed_G].any(1))
        return self.model.scale * (sum(self._layers_ms(layers, moved_G)) - sum(self._layers_ms(layers, counts_G)))

    def _layers_ms(self, layers: Sequence[int] | range | np.ndarray, counts_G: np.ndarray) -> list[float]:
        """Of each layer that is there, not in a block that is left out."""
        graph = self.graph
        gone = {layer for block in graph.blocks if not counts_G[list(block.groups)].all() for layer in block.layers}
        return [
            self.model.layer_ms(
                graph.layers[layer].name,
                round(float(graph.columns[layer] @ counts_G + graph.fixed_columns[layer])),
                round(float(graph.rows[layer] @ counts_G + graph.fixed_rows[layer])),
            )
            for layer in layers
            if layer not in gone
        ]


def choose_within(
    priced: Priced, worth: Sequence[np.ndarray], start_G: np.ndarray, free_G: np.ndarray, budget: float
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The units [G] that are worth most within `budget`, and the least cost that was found.

    Those are looked for hard where the narrowest widths are not within the budget, and then they are the units. Args:
    what each group is `worth` at each of its levels [K], rising, but for the step from none to the fewest; the units of
    the groups that are not free to be chosen, or of all if that is within the budget.
    """
    search = _Search(priced, worth, start_G, free_G)
    lowest_G = search.narrowest()
    if search.cost(lowest_G) > budget:
        lowest_G = search.fastest(lowest_G)
    least = search.cost(lowest_G)
    if least > budget:
        return search.counts(lowest_G), least
    found = [search.from_here(place_G, budget) for place_G in search.starts(budget, lowest_G)]
    return search.counts(max(found, key=search.value)), least


class _Search:
    """Places of the free groups; the others stay as they are."""

    def __init__(self, priced: Priced, worth: Sequence[np.ndarray], start_G: np.ndarray, free_G: np.ndarray) -> None:
        self.priced, self.worth, self.start_G = priced, worth, start_G
        self.free = [int(group) for group in np.flatnonzero(free_G)]
        self.last_G = np.array([len(own) - 1 for own in priced.levels])
        self.linked_GG = linked_groups(priced.graph.rows, priced.graph.columns)
        together = {group: block.groups for block in priced.graph.blocks for group in block.groups}
        self.items = list(dict.fromkeys(together.get(group, (group,)) for group in self.free))

    @staticmethod
    def _put(place_G: np.ndarray, groups: Sequence[int], levels: Sequence[int]) -> np.ndarray:
        moved_G = place_G.copy()
        moved_G[list(groups)] = levels
        return moved_G

    @staticmethod
    def _moved(place_G: np.ndarray, move: Sequence[tuple[int, int]]) -> np.ndarray:
        moved_G = place_G.copy()
        for group, by in move:
            moved_G[group] += by
        return moved_G

    def counts(self, place_G: np.ndarray) -> np.ndarray:
        counts_G = self.start_G.copy()
        counts_G[self.free] = self.priced.counts(place_G)[self.free]
        return counts_G

    def cost(self, place_G: np.ndarray) -> float:
        return self.priced.cost(self.counts(place_G))

    def value(self, place_G: np.ndarray) -> float:
        return sum(float(self.worth[group][place_G[group]]) for group in self.free)

    def better(self, place_G: np.ndarray, than_G: np.ndarray, budget: float) -> bool:
        """Worth more, and within the budget and the cap."""
        if self.value(place_G) <= self.value(than_G) + TINY or self.cost(place_G) > budget:
            return False
        return self.priced.fits(self.counts(place_G))

    def narrowest(self) -> np.ndarray:
        """The narrowest place that the cap allows, groups made wider in turn where their layers fall short."""
        return self._fitting(np.where(np.isin(np.arange(len(self.last_G)), self.free), 0, self.last_G))

    def fastest(self, place_G: np.ndarray) -> np.ndarray:
        """The place of the least cost, from one on: a group changes, and those beside it give way or follow.

        The narrowest is not it where the cap holds a dear group's layer by a cheap one, or a kernel dislikes a width.
        """
        least, changed = self.cost(place_G), True
        while changed:
            changed = False
            for group, level in [(own, level) for own in self.free for level in range(self.last_G[own] + 1)]:
                moved_G = self._fitting(self._put(place_G, [group], [level]), held=group)
                for other in self.free:
                    if self.linked_GG[group, other]:
                        moved_G[other] = self._fastest_level(moved_G, other)
                if (cost := self.cost(moved_G)) < least - TINY and self.priced.fits(self.counts(moved_G)):
                    place_G, least, changed = moved_G, cost, True
        return place_G

    def _fastest_level(self, place_G: np.ndarray, group: int) -> int:
        """Of the levels of a group at which the cap holds the one that takes the least; this one if none."""
        counts_G, least, best = self.counts(place_G), 0.0, int(place_G[group])
        for level, units in enumerate(self.priced.levels[group]):
            moved_G = counts_G.copy()
            moved_G[group] = units
            change = self.priced.change(counts_G, moved_G)
            if change < least - TINY and self.priced.fits(moved_G):
                least, best = change, level
        return best

    def _fitting(self, place_G: np.ndarray, held: int | None = None) -> np.ndarray:
        """The place with groups but the one `held` made wider, the relatively narrowest first, until the cap holds."""
        place_G, graph = place_G.copy(), self.priced.graph
        growable_G = np.isin(np.arange(len(place_G)), self.free) & (np.arange(len(place_G)) != held)
        while True:
            counts_G = self.counts(place_G)
            short_L = self.priced.short(counts_G)
            sizes_G = (graph.rows[short_L] + graph.columns[short_L]).any(0)
            growable = np.flatnonzero(sizes_G & growable_G & (place_G < self.last_G))
            if not len(growable):
                return place_G
            place_G[min(growable, key=lambda g: counts_G[g] / graph.full[g])] += 1

    def starts(self, budget: float, lowest_G: np.ndarray) -> list[np.ndarray]:
        """Places within the budget to begin at: with all blocks, and without those that can be left out."""
        out = [group for group in self.free if not self.priced.levels[group][0]]
        found = [self._evenly(budget, lowest_G, self.free)]
        if out:
            without_G = self._put(lowest_G, out, [0] * len(out))
            found.append(self._evenly(budget, without_G, [group for group in self.free if group not in out]))
        return [place_G for place_G in found if self.cost(place_G) <= budget]

    def from_here(self, place_G: np.ndarray, budget: float) -> np.ndarray:
        """The place that is reached from one within the budget while anything gains."""
        for _ in range(PASSES):
            for reach in REACHES:
                moved_G = self.knapsack(place_G, budget, reach)
                if self.better(moved_G, place_G, budget):
                    place_G = moved_G
                    break
            else:
                break
        return self.exchanged(place_G, budget)

    def _evenly(self, budget: float, lowest_G: np.ndarray, groups: Sequence[int]) -> np.ndarray:
        """Groups at about one share of their units, as large as the budget allows; else the lowest."""
        full_G = self.priced.graph.full
        for share in np.linspace(1, 0, 65):
            place_G = lowest_G.copy()
            for group in groups:
                levels = np.array(self.priced.levels[group])
                wanted = int(np.flatnonzero(levels <= max(share * full_G[group], levels[levels > 0][0]))[-1])
                place_G[group] = max(wanted, lowest_G[group])
            if self.cost(place_G) <= budget and self.priced.fits(self.counts(place_G)):
                return place_G
        return lowest_G

    def knapsack(self, place_G: np.ndarray, budget: float, reach: int) -> np.ndarray:
        """The place worth most within `reach` levels of this one, at the prices that hold here."""
        counts_G, choices = self.counts(place_G), []
        for groups in self.items:
            near = [
                range(max(0, place_G[group] - reach), min(self.last_G[group], place_G[group] + reach) + 1)
                for group in groups
            ]
            levels = [own for own in itertools.product(*near) if self._together(groups, own)]
            at = [self._put(place_G, groups, own) for own in levels]
            prices = [self.priced.change(counts_G, self.counts(moved_G)) for moved_G in at]
            worths = [sum(self.worth[g][level] for g, level in zip(groups, own, strict=True)) for own in levels]
            choices.append((levels, np.array(prices), np.array(worths)))
        least = sum(float(prices.min()) for _, prices, _ in choices)
        room = budget - self.priced.cost(counts_G) - least
        if room < 0:
            return place_G
        chosen = knapsack([(prices - prices.min(), worths) for _, prices, worths in choices], room)
        moved_G = place_G.copy()
        for groups, (levels, _, _), index in zip(self.items, choices, chosen, strict=True):
            moved_G = self._put(moved_G, groups, levels[index])
        return moved_G

    def _together(self, groups: Sequence[int], levels: Sequence[int]) -> bool:
        """Whether all of the groups of a block keep units at these levels, or none does."""
        keeps = {self.priced.levels[group][level] > 0 for group, level in zip(groups, levels, strict=True)}
        return len(keeps) == 1

    def exchanged(self, place_G: np.ndarray, budget: float) -> np.ndarray:
        """The place after one group wider, and one wider for another narrower, while any of that gains."""
        pairs = list(itertools.permutations(self.free, 2)) if len(self.free) <= EXCHANGES else []
        moves: list[tuple[tuple[int, int], ...]] = []
        moves += [((group, by),) for group in self.free for by in range(1, self.last_G[group] + 1)]
        moves += [((up, a), (down, -b)) for up, down in pairs for a in STEPS for b in STEPS]
        while True:
            gains, counts_G, cost, value = [], self.counts(place_G), self.cost(place_G), self.value(place_G)
            for move in moves:
                if all(0 <= place_G[group] + by <= self.last_G[group] for group, by in move):
                    moved_G = self._moved(place_G, move)
                    gain = self.value(moved_G) - value
                    gains += [(gain, moved_G)] if gain > TINY else []
            for _, moved_G in sorted(gains, key=lambda found: -found[0]):
                moved_counts_G = self.counts(moved_G)
                within = cost + self.priced.change(counts_G, moved_counts_G) <= budget
                if within and self.better(moved_G, place_G, budget):
                    place_G = moved_G
                    break
            else:
                return place_G


def knapsack(choices: Sequence[tuple[np.ndarray, np.ndarray]], room: float) -> list[int]:
    """Which one of each group's choices, that all are worth most together and cost at most `room`.

    A multiple-choice knapsack (Sinha and Zoltners, 1979) by dynamic programming over groups, costs rounded up to a
    part of the room. Args: of each group what its choices cost, the least of which is 0, and what they are worth.
    """
    unit = max(room / BINS, TINY)
    best_B, taken = np.zeros(BINS + 1), []
    for costs, worths in choices:
        shifts = np.ceil(costs / unit - TINY).astype(int)
        found_KB = np.full((len(costs), BINS + 1), -np.inf)
        for index, (shift, worth) in enumerate(zip(shifts, worths, strict=True)):
            if shift <= BINS:
                found_KB[index, shift:] = best_B[: BINS + 1 - shift] + worth
        taken.append((found_KB.argmax(0), shifts))
        best_B = found_KB.max(0)
    left, chosen = BINS, []
    for picks, shifts in reversed(taken):
        chosen.append(int(picks[left]))
        left -= shifts[chosen[-1]]
    return chosen[::-1]
