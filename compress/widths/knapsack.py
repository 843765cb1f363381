"""Widths of all groups that keep the most within a budget: a knapsack over groups, by dynamic programming.

What a layer costs hangs on the widths of two groups or more, so that no group has a price of its own. The knapsack is
solved at the prices that hold where it stands, no group going far, and again from there, until nothing is gained; then
exact exchanges of single steps. With prices that do not hang on each other the first pass is the optimum.

Shape legend: G channel groups, K levels of a group, N places. A place [G] says at which of its levels each group is.
An item is what is chosen for together: the groups of a block, which keep units all or not at all, or one group.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np

from wmlc.compress.widths.prices import TINY, Priced
from wmlc.models.resizable import linked_groups

BINS = 2000  # that a budget is divided into
PASSES = 30
REACHES = (8, 3, 2, 1)  # levels that a group may go in a pass: all, then the fewer, the better its prices hold
EXCHANGES = 40  # groups, above which exchanges of two are not tried
STEPS = (1, 2, 3)  # levels that either goes in an exchange
TRIES = 9  # of what MACs shall be worth


def choose_within(
    priced: Priced, worth: Sequence[np.ndarray], start_G: np.ndarray, free_G: np.ndarray, budget: float,
    least_macs: float = 0.0,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The units [G] that are worth most within `budget`, and the least cost that was found.

    If even the narrowest widths exceed the budget, the cheapest are searched for, and returned if they exceed it too.
    If no widths keep `least_macs`, a share of the whole network's, those with the most MACs are returned. Args: what
    each group is `worth` at each of its levels [K], rising, but for the step from none to the fewest; the units of the
    groups that are not free to be chosen, or of all if that is within the budget.
    """
    key = (budget, least_macs, *(own.tobytes() for own in (start_G, free_G, *worth)))
    if key not in priced.chosen:
        priced.chosen[key] = _searched(_Search(priced, worth, start_G, free_G), budget, least_macs)
    counts_G, least = priced.chosen[key]
    return counts_G.copy(), least


def _searched(search: _Search, budget: float, least_macs: float) -> tuple[np.ndarray, float]:
    lowest_G = search.narrowest()
    if search.cost(lowest_G) > budget:
        lowest_G = search.fastest(lowest_G)
    least = search.cost(lowest_G)
    if least > budget:
        return search.counts(lowest_G), least
    starts = search.starts(budget, lowest_G)
    chosen_G = search.best_from(starts, budget)
    if search.macs(chosen_G)[0] < least_macs:
        chosen_G = search.with_macs(chosen_G, starts, budget, least_macs)
    return search.counts(chosen_G), least


class _Search:
    """Places of the free groups; the others stay as they are."""

    def __init__(self, priced: Priced, worth: Sequence[np.ndarray], start_G: np.ndarray, free_G: np.ndarray) -> None:
        self.priced, self.worth, self.start_G = priced, worth, start_G
        self.free = [int(group) for group in np.flatnonzero(free_G)]
        self.last_G = np.array([len(own) - 1 for own in priced.levels])
        self.linked_GG = linked_groups(priced.graph.rows, priced.graph.columns)
        together = {group: block.groups for block in priced.graph.blocks for group in block.groups}
        self.items = list(dict.fromkeys(together.get(group, (group,)) for group in self.free))
        self.least_macs = 0.0  # of the whole network's, that are kept
        self.macs_worth = 0.0  # of all of them

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

    def macs(self, *places_G: np.ndarray) -> np.ndarray:
        """Of the whole network's, [N]."""
        return self.priced.graph.macs_left(np.array([self.counts(place_G) for place_G in places_G]))

    def value(self, place_G: np.ndarray) -> float:
        return self._values([place_G])[0]

    def _values(self, places_G: Sequence[np.ndarray]) -> list[float]:
        worths = [sum(float(self.worth[group][place_G[group]]) for group in self.free) for place_G in places_G]
        return list(np.array(worths) + self._worth_of_macs(places_G))

    def _worth_of_macs(self, places_G: Sequence[np.ndarray]) -> np.ndarray | float:
        return self.macs_worth * self.macs(*places_G) if self.macs_worth and len(places_G) else 0.0

    def better(self, place_G: np.ndarray, than_G: np.ndarray, budget: float) -> bool:
        """Worth more, within the budget and the cap, and of enough MACs."""
        if self.value(place_G) <= self.value(than_G) + TINY or self.cost(place_G) > budget:
            return False
        if self.least_macs and self.macs(place_G)[0] < self.least_macs:
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

    def best_from(self, starts: Sequence[np.ndarray], budget: float) -> np.ndarray:
        """Of the places that are reached from several the one worth most."""
        return max((self.from_here(place_G, budget) for place_G in starts), key=self.value)

    def with_macs(self, place_G: np.ndarray, starts: Sequence[np.ndarray], budget: float, least: float) -> np.ndarray:
        """The place worth most, of those found that keep the `least` MACs; the one of most MACs where none does.

        MACs get a worth of their own for that, the smallest that will do (Everett, 1963), and then exchanges hold them.
        Args: the place worth most that does not, and others within the budget.
        """
        lost = sum(float(self.worth[group][-1]) for group in self.free) - self.value(place_G)
        if (gone := 1 - self.macs(place_G)[0]) <= 0:
            return place_G
        first = lost / gone or 1.0  # of widths that are all worth the same any will do
        for beside in ([], starts):
            low, high, worth, found = 0.0, math.inf, first, [place_G]
            for _ in range(TRIES):
                found.append(self._asking(0.0, worth).best_from([found[-1], *beside], budget))
                if self.macs(found[-1])[0] < least:
                    low = worth
                else:
                    high = worth
                worth = 4 * low if math.isinf(high) else (low + high) / 2
            macs = self.macs(*found)
            if macs.max() >= least:
                enough = [found[n] for n in np.flatnonzero(macs >= least)]
                holding = self._asking(least, 0.0)
                return max((holding.exchanged(own_G, budget) for own_G in enough), key=self.value)
        return found[int(macs.argmax())]

    def _asking(self, least_macs: float, macs_worth: float) -> _Search:
        """The same search, where MACs have a least or a worth."""
        own = copy.copy(self)
        own.least_macs, own.macs_worth = least_macs, macs_worth
        return own

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
            choices.append((levels, np.array(prices), np.array(worths) + self._worth_of_macs(at)))
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
            counts_G, cost, value = self.counts(place_G), self.cost(place_G), self.value(place_G)
            within = [m for m in moves if all(0 <= place_G[group] + by <= self.last_G[group] for group, by in m)]
            tried = [self._moved(place_G, move) for move in within]
            gains = [(own - value, moved_G) for own, moved_G in zip(self._values(tried), tried, strict=True)]
            for gain, moved_G in sorted(gains, key=lambda found: -found[0]):
                if gain <= TINY:
                    return place_G
                moved_counts_G = self.counts(moved_G)
                affordable = cost + self.priced.change(counts_G, moved_counts_G) <= budget
                if affordable and self.better(moved_G, place_G, budget):
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
