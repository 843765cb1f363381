"""How much each layer loses, and how many channels that leaves (paper, section 3.1; PAPER 2).

Shape legend: G channel groups, L layers. A width is followed as its log-keep, x = −ln(channels / full), so
a layer's keep is exp(−(x_out + x_in)) and the cap on a layer is a bound on a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup

Size = Callable[[np.ndarray], Any]  # of networks whose groups have counts [G] or [N, G]: a number, or [N]

P_UP = 0.9  # at most this share of any layer's parameters goes, or the layer collapses


def layer_budgets(importance_L: np.ndarray, size_L: np.ndarray, amount: float, cap: float = P_UP) -> np.ndarray:
    """Parameters (or MACs) to remove from each layer, adding up to `amount`.

        p_l = min(cap · n_l, λ / I_l),  λ such that Σ p_l = amount

    which is the paper's p_l = P · N · Ĩ_l, Ĩ_l the normalised 1 / I_l, with what the cap refuses spread
    over the other layers by the same rule (water-filling). Args: importance I_l > 0 and size n_l > 0,
    float [L]; amount ≥ 0. Where even cap · Σ n_l is less than `amount`, every layer is at its cap.
    """
    limit_L = cap * size_L
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
) -> tuple[np.ndarray, float]:
    """Channels of each group so that the network's `unit` ("params" or "macs") comes to `target`.

    What a layer loses falls with its importance; without any given, all groups lose the same share. Starts at
    `start_G` channels and cuts only the groups marked in `free_G`, to multiples of `divisor` (or leaves them as they
    are). With `measured_L` the target is about those layers alone. Returns the counts, int [G], and the least `unit`
    that the cap P_UP lets the network come to, before rounding.
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
    return _round(graph, counts_G, start_G, free_G, size, target, divisor), reach


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


def _round(
    graph: ChannelGraph,
    counts_G: np.ndarray,
    start_G: np.ndarray,
    free_G: np.ndarray,
    size: Size,
    target: float,
    divisor: int,
) -> np.ndarray:
    """Whole channels at allowed widths near `counts_G`, moved one step at a time as near `target` as it gets."""
    steps = [
        _allowed(group, int(start), divisor) for group, start in zip(graph.groups, start_G, strict=True)
    ]  # fmt: skip
    place_G = np.array([int(np.abs(np.array(s) - c).argmin()) for s, c in zip(steps, counts_G, strict=True)], dtype=int)
    free = [int(g) for g in np.flatnonzero(free_G)]
    widest = max(map(len, steps), default=1)
    table = np.array([s + [s[-1]] * (widest - len(s)) for s in steps]).reshape(len(steps), widest)
    last_G = np.array([len(s) - 1 for s in steps], dtype=int)
    least_L = (1 - P_UP) * graph.layer_sizes(graph.full, "params") - 1e-9
    start = start_G.astype(int)

    def counts(place: np.ndarray) -> np.ndarray:
        """Of places [G] or [N, G] in the table."""
        return np.where(free_G, table[np.arange(len(steps)), place], start)

    while (short := np.flatnonzero(graph.layer_sizes(counts(place_G), "params") < least_L)).size:
        sized = (graph.rows + graph.columns)[short[0]] > 0
        growable = [g for g in free if sized[g] and place_G[g] < last_G[g]]
        place_G[min(growable, key=lambda g: counts(place_G)[g] / graph.full[g])] += 1
    moves = [(g, step) for g in free for step in (-1, 1)]
    while moves:
        moved_NG = np.repeat(place_G[None], len(moves), axis=0)
        for n, (g, step) in enumerate(moves):
            moved_NG[n, g] += step
        within_N = ((moved_NG >= 0) & (moved_NG <= last_G)).all(1)
        candidates_NG = counts(moved_NG.clip(0, last_G))
        fits_N = within_N & (graph.layer_sizes(candidates_NG, "params") >= least_L).all(1)
        away_N = np.where(fits_N, np.abs(size(candidates_NG) - target), np.inf)
        best = int(away_N.argmin())  # the first of equals: the earliest group, narrower before wider
        if away_N[best] >= abs(size(counts(place_G)) - target):
            break
        place_G = moved_NG[best]
    return counts(place_G)


def _allowed(group: ChannelGroup, start: int, divisor: int) -> list[int]:
    """The units that a group may keep: such that its layer has a multiple of `divisor` channels, or untouched."""
    step = divisor // math.gcd(divisor, group.channels)
    least = max(1, math.ceil((1 - P_UP) * group.units - 1e-9))
    return [n for n in range(step, start, step) if n >= least] + [start]
