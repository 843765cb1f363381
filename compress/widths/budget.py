"""How much each layer loses, and how many channels that leaves (paper, section 3.1; PAPER 2).

Shape legend: G channel groups, L layers. A width is followed as its log-keep, x = −ln(channels / full), so
a layer's keep is exp(−(x_out + x_in)) and the cap on a layer is a bound on a sum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wmlc.compress.widths.graph import ChannelGraph

Size = Callable[[np.ndarray], float]  # of a network whose groups have counts [G]

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
    importance_L: np.ndarray,
    start_G: np.ndarray,
    free_G: np.ndarray,
    target: float,
    unit: str,
    divisor: int,
    measured_L: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Channels of each group so that the network's `unit` ("params" or "macs") comes to `target`.

    Starts at `start_G` channels and cuts only the groups marked in `free_G`, to multiples of `divisor`
    (or leaves them as they are). With `measured_L` the target is about those layers alone. Returns
    the counts, int [G], and the least `unit` that the cap P_UP lets the network come to, before rounding.
    """
    where_L = np.ones(len(graph.layers), dtype=bool) if measured_L is None else measured_L

    def size(counts_G: np.ndarray) -> float:
        if measured_L is None:
            return graph.size(counts_G, unit)
        return float(graph.layer_sizes(counts_G, unit)[where_L].sum())

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


def uniform_counts(graph: ChannelGraph, target: float, unit: str, divisor: int) -> tuple[np.ndarray, float]:
    """Channels of each group when all lose the same share, so that the network's `unit` comes to `target`.

    Returns the counts, int [G], multiples of `divisor` or untouched, and the least `unit` that the cap P_UP allows.
    """
    full_G, free_G = graph.full, np.ones(len(graph.groups), dtype=bool)
    path = _fill(graph, full_G, np.ones(len(graph.groups)))[:2]  # until the first layer is at its cap

    def size(counts_G: np.ndarray) -> float:
        return graph.size(counts_G, unit)

    return _round(graph, _bisect(path, size, target), full_G, free_G, size, target, divisor), size(path[-1])


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
    can_shrink_L = where_L & np.array(
        [any(g is not None and free_G[g] for g in (layer.out_group, layer.in_group)) for layer in graph.layers]
    )
    budget_L = np.zeros(len(size_L))
    if can_shrink_L.any() and amount > 0:
        budget_L[can_shrink_L] = layer_budgets(importance_L[can_shrink_L], size_L[can_shrink_L], amount)
    rate_G = np.zeros(len(graph.groups))
    for index in np.flatnonzero(free_G):
        produced = [k for k, layer in enumerate(graph.layers) if layer.out_group == index and can_shrink_L[k]]
        if produced:
            removed = budget_L[produced].sum() / size_L[produced].sum()
            rate_G[index] = -np.log1p(-min(removed, P_UP))
    return rate_G


def _fill(graph: ChannelGraph, start_G: np.ndarray, rate_G: np.ndarray) -> list[np.ndarray]:
    """Widths as all log-keeps grow at their rates, each until a layer it sizes is at its cap; breakpoints [G]."""
    full_G, rate_G = graph.full.astype(float), rate_G.copy()
    x_G = np.log(full_G / start_G)
    cap = -np.log(1 - P_UP)
    pairs = [[g for g in (layer.out_group, layer.in_group) if g is not None] for layer in graph.layers]
    path = [start_G.astype(float)]
    while rate_G.any():
        steps = [(cap - x_G[pair].sum()) / speed if (speed := rate_G[pair].sum()) > 0 else np.inf for pair in pairs]
        step = max(0.0, min(steps))
        x_G = x_G + step * rate_G
        for pair, needed in zip(pairs, steps, strict=True):
            if needed <= step + 1e-12:
                rate_G[pair] = 0.0
        path.append(full_G * np.exp(-x_G))
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
    steps = [_allowed(int(full), int(start), divisor) for full, start in zip(graph.full, start_G, strict=True)]
    place_G = np.array([int(np.abs(np.array(s) - c).argmin()) for s, c in zip(steps, counts_G, strict=True)])
    free = [int(g) for g in np.flatnonzero(free_G)]
    least_L = (1 - P_UP) * graph.layer_sizes(graph.full, "params") - 1e-9

    def counts(place: np.ndarray) -> np.ndarray:
        chosen = start_G.astype(int).copy()
        for g in free:
            chosen[g] = steps[g][place[g]]
        return chosen

    while (short := np.flatnonzero(graph.layer_sizes(counts(place_G), "params") < least_L)).size:
        layer = graph.layers[short[0]]
        growable = [g for g in (layer.out_group, layer.in_group) if g in free and place_G[g] < len(steps[g]) - 1]
        place_G[min(growable, key=lambda g: counts(place_G)[g] / graph.full[g])] += 1
    while True:
        moves = []
        for g in free:
            for step in (-1, 1):
                moved_G = place_G.copy()
                moved_G[g] += step
                if 0 <= moved_G[g] < len(steps[g]):
                    candidate = counts(moved_G)
                    if np.all(graph.layer_sizes(candidate, "params") >= least_L):
                        moves.append((abs(size(candidate) - target), g, step))
        if not moves or (best := min(moves))[0] >= abs(size(counts(place_G)) - target):
            return counts(place_G)
        place_G[best[1]] += best[2]


def _allowed(full: int, start: int, divisor: int) -> list[int]:
    """The widths that a group of `full` channels may have: multiples of `divisor`, or untouched."""
    least = max(1, int(np.ceil((1 - P_UP) * full - 1e-9)))
    return [n for n in range(divisor, start, divisor) if n >= least] + [start]
