"""How much each layer loses, and how many channels that leaves (paper, section 3.1; PAPER 2).

Shape legend: G channel groups, L layers. A width is followed as its log-keep, x = −ln(channels / full), so
a layer's keep is exp(−(x_out + x_in)) and the cap on a layer is a bound on a sum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup

Size = Callable[[np.ndarray], Any]  # of networks whose groups have counts [G] or [N, G]: a number, or [N]

P_UP = 0.9  # at most this share of any layer's parameters goes, or the layer collapses
NEAR = 0.005  # of the full network's size: widths that are no farther from a target are as good as any


def layer_budgets(importance_L: np.ndarray, size_L: np.ndarray, amount: float) -> np.ndarray:
    """Parameters (or MACs) to remove from each layer, adding up to `amount`.

        p_l = min(P_UP · n_l, λ / I_l),  λ such that Σ p_l = amount

    which is the paper's p_l = P · N · Ĩ_l, Ĩ_l the normalised 1 / I_l, with what that cap refuses spread
    over the other layers by the same rule (water-filling). Args: importance I_l > 0 and size n_l > 0,
    float [L]; amount ≥ 0. Where even P_UP · Σ n_l is less than `amount`, every layer is at its cap.
    """
    limit_L = P_UP * size_L
    if amount >= limit_L.sum():
        return limit_L
    share_L = (1 / importance_L) / (1 / importance_L).sum()
    removed_L = np.zeros_like(limit_L)
    open_L = np.ones(len(size_L), dtype=bool)
    while open_L.any():
        left = amount - removed_L[~open_L].sum()
        removed_L[open_L] = left * share_L[open_L] / share_L[open_L].sum()
        over_L = open_L & (removed_L > limit_L)
        if not over_L.any():
            break
        removed_L[over_L] = limit_L[over_L]
        open_L &= ~over_L
    return removed_L


def choose_counts(
    graph: ChannelGraph,
    importance_L: np.ndarray | None,
    start_G: np.ndarray,
    free_G: np.ndarray,
    target: float,
    unit: str,
    divisor: int,
    measured_L: np.ndarray | None = None,
    near: bool = False,
) -> tuple[np.ndarray, float]:
    """Channels of each group so that the network's `unit` ("params" or "macs") comes to `target`.

    What a layer loses falls with its importance; without any given, all groups lose the same share. Starts at
    `start_G` channels and cuts only the groups marked in `free_G`, to multiples of `divisor` (or leaves them as they
    are). With `measured_L` the target is about those layers alone. Of the roundings that come about as near to the
    target, `near` takes the one nearest to the budgets. Returns the counts, int [G], and the least `unit` that the cap
    P_UP lets the network come to, before rounding.
    """
    where_L = np.ones(len(graph.layers), dtype=bool) if measured_L is None else measured_L

    def size(counts_G: np.ndarray) -> Any:
        if measured_L is None:
            return graph.size(counts_G, unit)
        return graph.layer_sizes(counts_G, unit)[..., where_L].sum(-1)

    if importance_L is None:
        rate_G = free_G.astype(float)
    else:
        rate_G = _rates(graph, importance_L, start_G, free_G, size(start_G) - target, unit, where_L)
    # Where the layers that the budgets press hardest reach their cap too early for the others to make
    # up for it, lean towards one common rate, under which every layer can reach its cap.
    for lean in (0.0, 0.25, 0.5, 0.75, 1.0):
        uniform = rate_G[free_G].mean() if free_G.any() else 0.0
        path = _fill(graph, start_G, np.where(free_G, (1 - lean) * rate_G + lean * uniform, 0.0))
        reach = size(path[-1])
        if reach <= target:
            break
    counts_G = _bisect(path, size, target)
    return _round(graph, counts_G, start_G, free_G, size, target, divisor, near), reach


def _rates(
    graph: ChannelGraph,
    importance_L: np.ndarray,
    start_G: np.ndarray,
    free_G: np.ndarray,
    amount: float,
    unit: str,
    where_L: np.ndarray,
) -> np.ndarray:
    """How fast each free group's log-keep grows: from the budgets of the layers that produce its channels."""
    size_L = graph.layer_sizes(start_G, unit)
    can_shrink_L = where_L & ((graph.rows + graph.columns)[:, free_G] > 0).any(1)
    budget_L = np.zeros(len(size_L))
    if can_shrink_L.any() and amount > 0:
        budget_L[can_shrink_L] = layer_budgets(importance_L[can_shrink_L], size_L[can_shrink_L], amount)
    rate_G = np.zeros(len(graph.groups))
    for index in np.flatnonzero(free_G):
        produced = np.flatnonzero((graph.rows[:, index] > 0) & can_shrink_L)
        if len(produced):
            removed = budget_L[produced].sum() / size_L[produced].sum()
            rate_G[index] = -np.log1p(-min(removed, P_UP))
    return rate_G


def _fill(graph: ChannelGraph, start_G: np.ndarray, rate_G: np.ndarray) -> list[np.ndarray]:
    """Widths as all log-keeps grow at their rates, each until a layer it sizes is at its cap; breakpoints [G].

    Of a layer whose rows or columns are of several groups, each pair of them is held to the cap.
    """
    full_G, count = graph.full.astype(float), len(graph.groups)
    x_G = np.append(np.log(full_G / start_G), 0.0)  # the last stands for a width that nothing sizes
    speed_G = np.append(rate_G, 0.0)
    cap = -np.log(1 - P_UP)
    sides = [[np.flatnonzero(row) for row in side] for side in (graph.rows, graph.columns)]
    pairs = {
        (int(one), int(other))
        for outs, ins in zip(*sides, strict=True)
        for one in (outs if len(outs) else [count])
        for other in (ins if len(ins) else [count])
    }
    one, other = np.array(sorted(pairs - {(count, count)})).reshape(-1, 2).T
    path = [start_G.astype(float)]
    while speed_G.any():
        speed = speed_G[one] + speed_G[other]
        room = cap - x_G[one] - x_G[other]
        needed = np.full(len(one), np.inf)
        np.divide(room, speed, out=needed, where=speed > 0)
        step = max(0.0, float(needed.min(initial=np.inf)))
        if not np.isfinite(step):
            break
        x_G = x_G + step * speed_G
        ends = needed <= step + 1e-12
        speed_G[one[ends]] = speed_G[other[ends]] = 0.0
        path.append(full_G * np.exp(-x_G[:-1]))
    return path


def _bisect(path: list[np.ndarray], size: Size, target: float) -> np.ndarray:
    """The point of a path of shrinking widths (log-linear between breakpoints) where `size` is `target`."""
    low, high = 0.0, float(len(path) - 1)

    def at(position: float) -> np.ndarray:
        index = min(int(position), len(path) - 2)
        share = position - index
        return path[index] ** (1 - share) * path[index + 1] ** share

    if len(path) == 1 or size(path[-1]) >= target:
        return path[-1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(at(middle)) > target else (low, middle)
    return at(high)


@dataclass(frozen=True)
class _Grid:
    """Widths that groups may have; a place [G] says which of them each group has, the narrowest being 0."""

    graph: ChannelGraph
    table: np.ndarray  # [G, widths], a group's last one repeated
    last_G: np.ndarray  # the place of the widest
    free_G: np.ndarray  # the others stay at their last

    def counts(self, place: np.ndarray) -> np.ndarray:
        """Channels of places [G] or [N, G]."""
        return self.table[np.arange(len(self.last_G)), place]

    def fits(self, place: np.ndarray) -> np.ndarray:
        """Whether a layer keeps what the cap leaves it, of places [G] or [N, G]; bool [L] or [N, L]."""
        return np.asarray(self.graph.layer_sizes(self.counts(place), "params") >= self._least_L)

    @functools.cached_property
    def _least_L(self) -> np.ndarray:
        """What the cap leaves each layer."""
        return (1 - P_UP) * self.graph.layer_sizes(self.graph.full, "params") - 1e-9

    def nearest(self, away: list[np.ndarray]) -> np.ndarray:
        """The place [G] where `away` [widths], a group's, is least, made wider until all layers fit."""
        place_G = np.where(self.free_G, [int(own.argmin()) for own in away], self.last_G)
        while (short := np.flatnonzero(~self.fits(place_G))).size:
            sized_G = (self.graph.rows + self.graph.columns)[short[0]] > 0
            growable = np.flatnonzero(self.free_G & sized_G & (place_G < self.last_G))
            place_G[min(growable, key=lambda g: self.counts(place_G)[g] / self.graph.full[g])] += 1
        return place_G

    def neighbours(self, place_G: np.ndarray) -> np.ndarray:
        """The places [N, G] of one group being narrower or wider by a step, the earliest group first."""
        moves = [(g, step) for g in np.flatnonzero(self.free_G) for step in (-1, 1)]
        moves = [(g, step) for g, step in moves if 0 <= place_G[g] + step <= self.last_G[g]]
        moved_NG = np.repeat(place_G[None], len(moves), axis=0)
        for n, (g, step) in enumerate(moves):
            moved_NG[n, g] += step
        return moved_NG[self.fits(moved_NG).all(1)]


def _round(
    graph: ChannelGraph,
    counts_G: np.ndarray,
    start_G: np.ndarray,
    free_G: np.ndarray,
    size: Size,
    target: float,
    divisor: int,
    near: bool,
) -> np.ndarray:
    """Whole channels at allowed widths near `counts_G`, moved one step at a time as near `target` as it gets.

    With `near` as near `counts_G` as it gets, in log-keep, within NEAR of the target or as near to it as without.
    """
    steps = [allowed_units(group, int(start), divisor) for group, start in zip(graph.groups, start_G, strict=True)]
    widest = max(map(len, steps), default=1)
    table = np.array([own + [own[-1]] * (widest - len(own)) for own in steps]).reshape(len(steps), widest)
    grid = _Grid(graph, table, np.array([len(own) - 1 for own in steps], dtype=int), free_G)

    def away(place: np.ndarray) -> Any:
        return np.abs(size(grid.counts(place)) - target)

    place_G = grid.nearest([np.abs(np.array(own) - count) for own, count in zip(steps, counts_G, strict=True)])
    while len(moved_NG := grid.neighbours(place_G)):
        best = int(away(moved_NG).argmin())  # the first of equals: the earliest group, narrower before wider
        if away(moved_NG[best]) >= away(place_G):
            break
        place_G = moved_NG[best]
    if near:
        slack = max(NEAR * float(size(graph.full)), float(away(place_G)))
        place_G = _round_near(grid, counts_G, place_G, away, slack)
    return grid.counts(place_G)


def _round_near(grid: _Grid, counts_G: np.ndarray, place_G: np.ndarray, away: Size, slack: float) -> np.ndarray:
    """The place [G] nearest to `counts_G`, in log-keep, of those found that are no more than `slack` `away`.

    Searched for from the nearest one of all, and from `place_G`, which is one of them, a step at a time: the one that
    gives up least nearness for what it brings closer to the target, and within `slack` the one that gains most.
    """
    far = np.log(grid.table / counts_G[:, None]) ** 2  # [G, widths]

    def distance(place: np.ndarray) -> Any:
        return np.where(grid.free_G, far[np.arange(len(far)), place], 0.0).sum(-1)

    found = []
    for at_G in (grid.nearest(list(far)), place_G):
        while len(moved_NG := grid.neighbours(at_G)):
            gain_N = max(away(at_G), slack) - np.maximum(away(moved_NG), slack)
            more_N = distance(moved_NG) - distance(at_G)
            if away(at_G) > slack:
                cost_N = np.divide(more_N, gain_N, out=np.full(len(gain_N), np.inf), where=gain_N > 1e-9 * slack)
            else:
                cost_N = np.where((gain_N >= 0) & (more_N < -1e-12), more_N, np.inf)
            if np.isinf(cost_N).all():
                break
            at_G = moved_NG[int(cost_N.argmin())]
        found += [at_G] * bool(away(at_G) <= slack)
    return min(found, key=distance)


def allowed_units(group: ChannelGroup, start: int, divisor: int) -> list[int]:
    """The units that a group may keep, ascending: for a multiple of `divisor` channels in its layer, or all of `start`.

    None is fewer than the cap leaves it.
    """
    step = divisor // math.gcd(divisor, group.channels)
    least = max(1, math.ceil((1 - P_UP) * group.units - 1e-9))
    return [n for n in range(step, start, step) if n >= least] + [start]
