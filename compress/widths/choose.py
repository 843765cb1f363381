"""One full network → the widths and the dense networks of all peers (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmlc.compress.widths.budget import P_UP, choose_counts
from wmlc.compress.widths.graph import ChannelGraph, Counts, channel_importance, left_whole, nothing_to_cut
from wmlc.compress.widths.knapsack import choose_within
from wmlc.compress.widths.prices import Priced
from wmlc.compress.widths.resizable import levels_of
from wmlc.compress.widths.saliency import importance
from wmlc.compress.widths.tree import share_choices, sharing_tree
from wmlc.errors import InputError
from wmlc.records import Sensitivity
from wmlc.settings import LATENCY

Node = tuple[int, tuple[int, ...]]  # a stage's depth and the peers that share this copy of it

EVENNESS = 4  # the power of full / kept that a layer loses: at 1 some layers give nearly all, at 8 all give alike
TIE = 1e-5  # of evenness beside sensitivity: enough to choose between groups that lose nothing
TOLERANCE = 0.01  # how far a reachable ratio may stay from the one that was asked for
FAR = 0.02  # of the full network, that a peer may lose more than it was asked to without a second look


@dataclass(frozen=True)
class PeerWidths:
    """What one peer keeps: the channels of each group, and what that leaves."""

    kept: dict[str, Tensor]  # a group's name → sorted units
    params: int
    macs: int
    ratio: float  # as asked
    achieved_ratio: float  # the share of params or macs (whichever the ratio is of) that went
    left_out: tuple[str, ...] = ()  # residual blocks


@dataclass(frozen=True)
class Scored:
    """A channel graph with what its layers and channels are worth: all that the choice of widths needs."""

    graph: ChannelGraph
    layer_importance: np.ndarray  # [L], positive, relative; what budgets fall with, unless they are uniform
    channel_rank: list[Tensor]  # per group, units from most to least important
    stages: list[str]
    priced: Priced | None = None  # what widths cost, where they are chosen by a knapsack
    planned: Planned | None = None  # widths that were chosen before
    sensitivity: list[np.ndarray] | None = None  # per group, what answers lose at each of the levels of `priced` [K]

    @property
    def sensitivities(self) -> list[Sensitivity]:
        """`sensitivity` as it is recorded; of nothing that was measured nothing."""
        if self.sensitivity is None or self.priced is None:
            return []
        return [
            Sensitivity(group=group.root, block=group.block, units=list(units), nats=lost_K.tolist())
            for group, units, lost_K in zip(self.graph.groups, self.priced.levels, self.sensitivity, strict=True)
        ]

    def size(self, counts_G: np.ndarray, unit: str) -> float:
        """Parameters, MACs or, by a table, milliseconds of the network when the groups keep these counts."""
        if unit != LATENCY:
            return round(float(self.graph.size(counts_G, unit)))
        assert self.priced is not None
        return self.priced.cost(counts_G)

    def fitting(self, asked: Asked) -> Planned | None:
        """What is planned of the peers asked for, where that is for the same sharing; not of peers that are not cut."""
        if self.planned is None or self.planned.share != asked.share or not any(asked.ratios):
            return None
        count = len(asked.ratios)
        return replace(self.planned, counts=self.planned.counts[:count], achieved=self.planned.achieved[:count])


@dataclass(frozen=True)
class Planned:
    """Widths of all peers, and under which `--share` they go together."""

    share: str
    counts: list[np.ndarray]  # [G] of each peer, the smallest first
    achieved: list[float]  # the share of what ratios are of that went


@dataclass(frozen=True)
class Asked:
    """What the peers of a family shall be."""

    ratios: tuple[float, ...]  # falling, the smallest peer's first
    share: str  # which stages they share (`tree.sharing_tree`)
    ratio_of: str  # "params", "macs" or "latency"
    divisor: int = 1  # of the channels that a cut layer keeps
    trunk_ratio: float = 0.0  # cut off every stage that more than one peer uses, before anything else
    uniform: bool = False  # every group loses the same share, whatever its layers are worth
    near: bool = False  # whole channels nearest to the budgets, where several come about as near to the ratio
    least_macs: tuple[float, ...] = ()  # of the whole network's, that each peer keeps within a latency, if it can


class OutOfReachError(InputError):
    """A ratio that the cap and the sharing tree do not allow to a `peer`, and the one that it can `reach`."""

    def __init__(self, words: str, peer: int, reach: float) -> None:
        super().__init__(words)
        self.peer, self.reach = peer, reach


def score_channels(graph: ChannelGraph, scores: dict[str, Tensor], kind: str, stages: list[str]) -> Scored:
    """Layers and channels by the saliency `scores` of their parameters, of that `kind`."""
    sums = [float(scores[layer.tensor].double().sum().abs()) for layer in graph.layers]
    channels = channel_importance(graph, importance(scores, kind))
    return Scored(graph, _relative(sums), _best_first(channels), stages)


def ranked_by(scored: Scored, scores: Sequence[Tensor]) -> Scored:
    """`scored`, the channels of each group in the order of their `scores` [units]."""
    return replace(scored, channel_rank=_best_first(scores))


def budgeted_by(scored: Scored, scores: Sequence[Tensor]) -> Scored:
    """`scored`, a layer being worth what the units are that make its rows, by their `scores` [units], per group.

    A unit goes from all layers that make it at once, so that its whole score counts for each of them. A layer whose
    rows stay, as the one that makes the logits, is worth the units that it reads.
    """
    graph = scored.graph
    total_G = np.array([float(own.double().sum()) for own in scores])
    made_L, read_L = (graph.rows > 0) @ total_G, (graph.columns > 0) @ total_G
    return replace(scored, layer_importance=_relative(np.where((graph.rows > 0).any(1), made_L, read_L)))


def _relative(sums: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adding up to 1; a layer worth nothing would take the whole budget, so that none is."""
    sums = np.asarray(sums, dtype=float)
    return np.maximum(sums / sums.sum() if sums.sum() > 0 else np.ones_like(sums), 1e-6)


def _best_first(scores: Sequence[Tensor]) -> list[Tensor]:
    return [torch.argsort(own.cpu(), descending=True, stable=True) for own in scores]


def choose_widths(scored: Scored, asked: Asked, advise: bool = True) -> list[PeerWidths]:
    """The widths of every peer, smallest first.

    A peer of ratio P keeps (1 − P) of the full network's parameters or MACs. Chosen from the least pruned peer down: a
    shared stage is cut for that one, and what is left to remove for the others comes from the stages that are still
    theirs to cut. Raises `OutOfReachError`: how far the ratio reaches and, with `advise`, which options would do.
    """
    counts = counts_of_peers(scored, asked, advise)
    if (planned := scored.fitting(asked)) is not None:
        achieved = planned.achieved
    else:
        achieved = [_lost(scored, own, asked.ratio_of) for own in counts]
    return [_widths(scored, *own) for own in zip(counts, asked.ratios, achieved, strict=True)]


def _lost(scored: Scored, counts_G: np.ndarray, unit: str) -> float:
    """The share of the `unit` that is gone at these counts."""
    whole = bool((counts_G == scored.graph.full).all())
    return 0.0 if whole else 1 - scored.size(counts_G, unit) / scored.size(scored.graph.full, unit)


def counts_of_peers(scored: Scored, asked: Asked, advise: bool = True) -> list[np.ndarray]:
    """The units [G] that each peer keeps of all groups; see `choose_widths`."""
    if (planned := scored.fitting(asked)) is not None:
        return planned.counts
    if not scored.graph.groups and any(asked.ratios):
        raise InputError(f"{nothing_to_cut(scored.graph)}; pass --ratios 0, or another network")
    counts, reaches = _counts_of_all(scored, asked)
    for peer in range(len(asked.ratios), 0, -1):
        ratio, reach = asked.ratios[peer - 1], reaches[peer - 1]
        if asked.ratio_of == LATENCY and reach < ratio:
            full_ms = scored.size(scored.graph.full, LATENCY)
            words = too_slow(scored, asked, peer, (1 - ratio) * full_ms, (1 - reach) * full_ms, advise)
            raise OutOfReachError(words, peer, reach)
        if reach < ratio - TOLERANCE:
            trunk = f" --trunk-ratio {asked.trunk_ratio:g}" if asked.trunk_ratio else ""
            under = f" under --share {asked.share}{trunk}" if scored.stages else ""
            raise OutOfReachError(
                f"peer {peer} cannot lose {ratio:.0%} of its {asked.ratio_of}{under}: it "
                f"reaches {max(reach, 0.0):.1%} (no layer may lose more than {P_UP:.0%}{left_whole(scored.graph)}); "
                + (_advice(scored, asked) if advise else "ask for less"),
                peer,
                reach,
            )
    return counts


def _counts_of_all(scored: Scored, asked: Asked) -> tuple[list[np.ndarray], list[float]]:
    """Each peer's channel counts [G] and the largest ratio that it could have had, smallest peer first."""
    tree = sharing_tree(len(asked.ratios), scored.stages, asked.share)
    chosen: dict[Node, np.ndarray] = {}
    counts, reaches = list[Counts](), list[float]()
    for peer in range(len(asked.ratios), 0, -1):
        nodes = [(depth, next(group for group in level if peer in group)) for depth, level in enumerate(tree)]
        counts_G, reach = _counts_of_one(scored, nodes, chosen, peer, asked, counts[-1] if counts else None)
        for node in nodes:
            chosen.setdefault(node, counts_G)
        counts.append(counts_G)
        reaches.append(reach)
    return counts[::-1], reaches[::-1]


def _counts_of_one(
    scored: Scored, nodes: list[Node], chosen: dict[Node, np.ndarray], peer: int, asked: Asked, larger: Counts | None
) -> tuple[np.ndarray, float]:
    """The channel counts [G] of one peer, and the largest ratio that it could have had.

    Args: the stage copies that the peer goes through, and the counts of those that a larger peer goes through too; the
    counts of the next larger peer.
    """
    graph, unit, ratio = scored.graph, asked.ratio_of, asked.ratios[peer - 1]
    importance_L = None if asked.uniform else scored.layer_importance
    counts_G = graph.full.copy()
    free_G = np.ones(len(graph.groups), dtype=bool)
    trunk_G = np.zeros(len(graph.groups), dtype=bool)
    shared = {scored.stages[depth] for depth, peers in nodes if len(peers) > 1}
    fixed = {scored.stages[depth]: chosen[depth, peers] for depth, peers in nodes if (depth, peers) in chosen}
    for g, group in enumerate(graph.groups):
        trunk_G[g] = bool(group.stages & shared)
        for stage in group.stages & fixed.keys():
            counts_G[g], free_G[g] = fixed[stage][g], False
    if unit == LATENCY or (scored.sensitivity is not None and not asked.uniform):
        least_macs = asked.least_macs[peer - 1] if unit == LATENCY and asked.least_macs else 0.0
        slack = 0.0 if unit == LATENCY else TOLERANCE
        return _counts_by_knapsack(scored, counts_G, free_G, ratio, asked.uniform, least_macs, slack, larger)
    if asked.trunk_ratio and (trunk_G & free_G).any():
        measured_L = np.array([layer.stage in shared - fixed.keys() for layer in graph.layers], dtype=bool)
        target = (1 - asked.trunk_ratio) * graph.layer_sizes(graph.full, unit)[measured_L].sum()
        counts_G, _ = choose_counts(
            graph,
            importance_L,
            counts_G,
            trunk_G & free_G,
            target,
            unit,
            asked.divisor,
            measured_L,
            near=asked.near,
        )
    full = getattr(graph, unit)
    target = (1 - ratio) * full
    if graph.size(counts_G, unit) <= target:  # a ratio of 0, or the trunk has given enough
        return counts_G, ratio
    counts_G, least = choose_counts(graph, importance_L, counts_G, free_G, target, unit, asked.divisor, near=asked.near)
    return counts_G, 1 - least / full


def _counts_by_knapsack(
    scored: Scored, counts_G: np.ndarray, free_G: np.ndarray, ratio: float, uniform: bool, least_macs: float,
    slack: float, larger: Counts | None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """`_counts_of_one` where a ratio is of milliseconds or sensitivity was measured.

    Args: by how much less than the ratio may go, where widths that keep to it lose far more, though the peer stays
    smaller than the next `larger` one.
    """
    if ratio <= 0:  # of a run that goes on there are no prices any more, and none is needed
        return counts_G, ratio
    assert scored.priced is not None
    full = scored.priced.cost(scored.graph.full)
    worth, budget = _worth(scored, uniform), (1 - ratio) * full
    found_G, least = choose_within(scored.priced, worth, counts_G, free_G, budget, least_macs)
    over = 1 - scored.priced.cost(found_G) / full - ratio
    if slack and over > FAR:
        wider_G, _ = choose_within(scored.priced, worth, counts_G, free_G, budget + slack * full, least_macs)
        most = full if larger is None else scored.priced.cost(larger)
        if abs(1 - scored.priced.cost(wider_G) / full - ratio) < over and scored.priced.cost(wider_G) < most:
            found_G = wider_G
    return found_G, 1 - least / full


def _worth(scored: Scored, uniform: bool) -> list[np.ndarray]:
    """What each group is worth at each of its levels [K]: every layer that makes it loses (full / kept)^4 − 1.

    So what is left of a layer is worth the more the less that is, and no layer gives much more than the others for a
    little of the time. Layers count by their importance, or all alike where the budgets are `uniform`. Where it was
    measured what answers lose by narrower groups, that is what they are worth, and the above but breaks ties.
    """
    assert scored.priced is not None
    graph = scored.graph
    importance_L = np.ones(len(graph.layers)) if uniform else scored.layer_importance
    worth_G = importance_L @ (graph.rows > 0)
    narrowed = [  # where nothing is kept, as by half: what is gone is no narrow layer
        group.units / np.where(own_K, own_K, group.units / 2)
        for group, own_K in zip(graph.groups, map(np.array, scored.priced.levels), strict=True)
    ]
    even = [worth / worth_G.sum() * (1 - own_K**EVENNESS) for worth, own_K in zip(worth_G, narrowed, strict=True)]
    if scored.sensitivity is None or not (most := sum(float(lost_K.max()) for lost_K in scored.sensitivity)):
        return even
    return [TIE * own_K - lost_K / most for own_K, lost_K in zip(even, scored.sensitivity, strict=True)]


def _widths(scored: Scored, counts_G: np.ndarray, ratio: float, achieved: float) -> PeerWidths:
    graph = scored.graph
    kept = {
        group.root: rank[: int(count)].sort().values
        for group, rank, count in zip(graph.groups, scored.channel_rank, counts_G, strict=True)
    }
    params, macs = (round(float(graph.size(counts_G, unit))) for unit in ("params", "macs"))
    return PeerWidths(kept, params, macs, ratio, achieved, tuple(graph.left_out(counts_G)))


def too_slow(
    scored: Scored, asked: Asked, peer: int, wanted_ms: float, least_ms: float, advise: bool = True,
    precision: str = "fp32", by: str = "the table",
) -> str:  # fmt: skip
    """That a latency is out of reach, how low it goes, and what would do.

    Args: the `precision` of the files that are timed, "" where the engine runs no files; what the lowest is known `by`.
    """
    finer = max(1, asked.divisor // 2)
    narrower = any(levels_of(own, finer)[0] < levels_of(own, asked.divisor)[0] for own in scored.graph.groups)
    ways = [f"narrower widths (--divisor {finer})"] * narrower
    ways += ["other arithmetic (--latency-precision int8)"] * (precision not in ("int8", ""))
    return (
        f"peer {peer} cannot come down to {wanted_ms:.3g} ms under --share {asked.share}: it takes {least_ms:.3g} ms "
        f"at the least, by {by} (no layer may lose more than {P_UP:.0%}); "
        + (_advice(scored, asked) if advise else "allow more")
        + f"; {' or '.join(ways)} may do, measured apart" * (advise and bool(ways))
    )


def _advice(scored: Scored, asked: Asked) -> str:
    """Which options would let every peer have its ratio."""

    def works(**other: Any) -> bool:
        _, reaches = _counts_of_all(scored, replace(asked, **other))
        tolerance = 0.0 if asked.ratio_of == LATENCY else TOLERANCE
        return all(reach >= ratio - tolerance for reach, ratio in zip(reaches, asked.ratios, strict=True))

    ways = []
    if asked.share != "none" and asked.ratio_of != LATENCY:
        more = (x / 20 for x in range(1, 19) if x / 20 > asked.trunk_ratio)
        trunk = next((ratio for ratio in more if works(trunk_ratio=ratio)), None)
        ways += [f"--trunk-ratio {trunk:g}"] if trunk else []
    if asked.share != "none":
        ways += [f"--share {s}" for s in share_choices(scored.stages) if s != asked.share and works(share=s)]
    if asked.ratio_of != LATENCY:  # which is measured at the levels of one divisor
        finer = (asked.divisor >> halvings for halvings in range(1, asked.divisor.bit_length()))
        divisor = next((own for own in finer if works(divisor=own)), None)
        ways += [f"--divisor {divisor}"] if divisor else []
    less = "allow more" if asked.ratio_of == LATENCY else "ask for less"
    return f"{less}, or pass {' or '.join(ways)}" if ways else less
