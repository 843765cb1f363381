"""One full network → the widths and the dense networks of all peers (paper, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from wmlc.compress.widths.budget import P_UP, choose_counts, uniform_counts
from wmlc.compress.widths.graph import ChannelGraph, channel_importance, group_magnitude
from wmlc.compress.widths.saliency import importance
from wmlc.compress.widths.tree import share_choices, sharing_tree
from wmlc.errors import InputError

Node = tuple[int, tuple[int, ...]]  # a stage's depth and the peers that share this copy of it

TOLERANCE = 0.01  # how far a reachable ratio may stay from the one that was asked for


@dataclass(frozen=True)
class PeerWidths:
    """What one peer keeps: the channels of each group, and what that leaves."""

    kept: dict[str, Tensor]  # a group's root layer → sorted channel indices
    params: int
    macs: int
    ratio: float  # as asked
    achieved_ratio: float  # the share of params or macs (whichever the ratio is of) that went


@dataclass(frozen=True)
class Scored:
    """A channel graph with its saliency: all that the choice of widths needs, computed once."""

    graph: ChannelGraph
    layer_importance: np.ndarray  # [L], positive, relative
    channel_rank: list[Tensor]  # per group, channels from most to least important
    stages: list[str]


class OutOfReachError(InputError):
    """A ratio that the cap and the sharing tree do not allow."""


def score_channels(graph: ChannelGraph, scores: dict[str, Tensor], kind: str, stages: list[str]) -> Scored:
    """Layer importances (the sum of a layer's scores, relative) and the order of channels in each group."""
    sums = np.array([float(scores[f"{layer.name}.weight"].double().sum().abs()) for layer in graph.layers])
    relative = sums / sums.sum() if sums.sum() > 0 else np.ones_like(sums)
    relative = np.maximum(relative, 1e-6)  # a layer without any score would take the whole budget
    channels = channel_importance(graph, importance(scores, kind))
    return Scored(graph, relative, [torch.argsort(c, descending=True, stable=True) for c in channels], stages)


def choose_widths(
    scored: Scored,
    ratios: list[float],
    share: str,
    ratio_of: str,
    divisor: int,
    trunk_ratio: float = 0.0,
    advise: bool = True,
) -> list[PeerWidths]:
    """The widths of every peer, smallest first; `ratios` fall from the smallest peer's to the largest's.

    A peer of ratio P keeps (1 − P) of the full network's parameters (`ratio_of="params"`) or MACs
    (`"macs"`). Chosen from the least pruned peer down: a shared stage is cut for that one, and what is
    left to remove for the others comes from the stages that are still theirs to cut. `trunk_ratio` first
    takes that share off every stage that more than one peer uses. Raises `OutOfReachError`, saying how far
    the ratio reaches and which options would do.
    """
    counts, reaches = _counts_of_all(scored, ratios, share, ratio_of, divisor, trunk_ratio)
    for peer in range(len(ratios), 0, -1):
        ratio, reach = ratios[peer - 1], reaches[peer - 1]
        if reach < ratio - TOLERANCE:
            trunk = f" --trunk-ratio {trunk_ratio:g}" if trunk_ratio else ""
            raise OutOfReachError(
                f"peer {peer} cannot lose {ratio:.0%} of its {ratio_of} under --share {share}{trunk}: it reaches "
                f"{max(reach, 0.0):.1%} (no layer may lose more than {P_UP:.0%}); "
                + (_advice(scored, ratios, share, ratio_of, divisor, trunk_ratio) if advise else "ask for less")
            )
    return [_widths(scored, c, ratio, ratio_of) for c, ratio in zip(counts, ratios, strict=True)]


def choose_by_magnitude(
    network: nn.Sequential,
    input_shape: tuple[int, int, int],
    scored: Scored,
    ratios: list[float],
    unit: str,
    divisor: int,
) -> list[PeerWidths]:
    """One-shot pruning of the trained `network`, as torch-pruning's users do it.

    Every group loses the same share of its channels, those of least group magnitude, until the peer has lost its ratio
    of params or macs (`unit`).

    The widths do not depend on the weights, so an untrained network gives the widths to come. Raises
    `OutOfReachError` where the cap on a layer allows less.
    """
    graph = scored.graph
    magnitudes = group_magnitude(network, input_shape, graph)
    ranked = replace(scored, channel_rank=[torch.argsort(m, descending=True, stable=True) for m in magnitudes])
    widths = []
    for ratio in ratios:
        full = getattr(graph, unit)
        counts_G, least = uniform_counts(graph, (1 - ratio) * full, unit, divisor) if ratio else (graph.full, 0.0)
        if 1 - least / full < ratio - TOLERANCE:
            raise OutOfReachError(
                f"a uniform cut reaches {1 - least / full:.1%} of the {unit}, and {ratio:.0%} was asked for "
                f"(no layer may lose more than {P_UP:.0%}); ask for less"
            )
        widths.append(_widths(ranked, counts_G, ratio, unit))
    return widths


def _counts_of_all(
    scored: Scored, ratios: list[float], share: str, ratio_of: str, divisor: int, trunk_ratio: float
) -> tuple[list[np.ndarray], list[float]]:
    """Each peer's channel counts [G] and the largest ratio that it could have had, smallest peer first."""
    tree = sharing_tree(len(ratios), scored.stages, share)
    chosen: dict[Node, np.ndarray] = {}
    counts, reaches = [], []
    for peer in range(len(ratios), 0, -1):
        nodes = [(depth, next(group for group in level if peer in group)) for depth, level in enumerate(tree)]
        counts_G, reach = _counts_of_one(scored, nodes, chosen, ratios[peer - 1], ratio_of, divisor, trunk_ratio)
        for node in nodes:
            chosen.setdefault(node, counts_G)
        counts.append(counts_G)
        reaches.append(reach)
    return counts[::-1], reaches[::-1]


def _counts_of_one(
    scored: Scored,
    nodes: list[Node],
    chosen: dict[Node, np.ndarray],
    ratio: float,
    ratio_of: str,
    divisor: int,
    trunk_ratio: float,
) -> tuple[np.ndarray, float]:
    """The channel counts [G] of one peer, and the largest ratio that it could have had."""
    graph = scored.graph
    counts_G = graph.full
    free_G = np.ones(len(graph.groups), dtype=bool)
    trunk_G = np.zeros(len(graph.groups), dtype=bool)
    shared = {scored.stages[depth] for depth, peers in nodes if len(peers) > 1}
    fixed = {scored.stages[depth]: chosen[depth, peers] for depth, peers in nodes if (depth, peers) in chosen}
    for g, group in enumerate(graph.groups):
        trunk_G[g] = bool(group.stages & shared)
        for stage in group.stages & fixed.keys():
            counts_G[g], free_G[g] = fixed[stage][g], False
    if trunk_ratio and (trunk_G & free_G).any():
        measured_L = np.array([layer.stage in shared - fixed.keys() for layer in graph.layers])
        target = (1 - trunk_ratio) * graph.layer_sizes(graph.full, ratio_of)[measured_L].sum()
        counts_G, _ = choose_counts(
            graph, scored.layer_importance, counts_G, trunk_G & free_G, target, ratio_of, divisor, measured_L
        )
    full = getattr(graph, ratio_of)
    target = (1 - ratio) * full
    if graph.size(counts_G, ratio_of) <= target:  # a ratio of 0, or the trunk has given enough
        return counts_G, ratio
    counts_G, least = choose_counts(graph, scored.layer_importance, counts_G, free_G, target, ratio_of, divisor)
    return counts_G, 1 - least / full


def _widths(scored: Scored, counts_G: np.ndarray, ratio: float, ratio_of: str) -> PeerWidths:
    graph = scored.graph
    kept = {
        group.root: rank[: int(count)].sort().values
        for group, rank, count in zip(graph.groups, scored.channel_rank, counts_G, strict=True)
    }
    params, macs = (round(graph.size(counts_G, unit)) for unit in ("params", "macs"))
    left = {"params": params, "macs": macs}[ratio_of]
    return PeerWidths(kept, params, macs, ratio, 1 - left / getattr(graph, ratio_of))


def _advice(scored: Scored, ratios: list[float], share: str, ratio_of: str, divisor: int, trunk_ratio: float) -> str:
    """Which options would let every peer have its ratio."""

    def works(share: str, trunk_ratio: float) -> bool:
        _, reaches = _counts_of_all(scored, ratios, share, ratio_of, divisor, trunk_ratio)
        return all(reach >= ratio - TOLERANCE for reach, ratio in zip(reaches, ratios, strict=True))

    ways = []
    if share != "none":
        trunk = next((x / 20 for x in range(1, 19) if x / 20 > trunk_ratio and works(share, x / 20)), None)
        ways += [f"--trunk-ratio {trunk:g}"] if trunk else []
        ways += [f"--share {s}" for s in share_choices(scored.stages) if s != share and works(s, trunk_ratio)]
    return f"ask for less, or pass {' or '.join(ways)}" if ways else "ask for less"
