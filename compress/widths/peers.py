"""Smaller dense copies of a network, for a training loop of somebody's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from wmlc.compress.widths.choose import Asked, Scored, choose_widths, ranked_by
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude, random_scores
from wmlc.errors import InputError


def dense_peers(
    network: nn.Module, example: Tensor, ratios: Sequence[float], ratio_of: str = "macs", divisor: int = 8,
    rank: str = "magnitude",
) -> list[nn.Module]:  # fmt: skip
    """See `wmlc.family`, which this is."""
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        raise InputError(f"network must be a torch.nn.Module with parameters, got {type(network).__name__}")
    if example.ndim not in (3, 4):
        raise InputError(f"example must be images [N, C, H, W] or one [C, H, W], got {list(example.shape)}")
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        raise InputError(f"ratios must be numbers from 0 up to, not including, 1, got {list(ratios)}")
    if ratio_of not in ("params", "macs"):
        raise InputError(f"ratio_of must be params or macs, got {ratio_of!r}")
    if divisor < 1:
        raise InputError(f"divisor must be at least 1, got {divisor}")
    if rank not in ("magnitude", "random"):
        raise InputError(f"rank must be magnitude or random, got {rank!r}")
    channels, height, width = example.shape[-3:]
    graph = read_channels(network, (channels, height, width))
    if not graph.groups:
        why = f": {graph.left_whole[0].why}" if graph.left_whole else ""
        raise InputError(f"no channel of the network can be cut{why}")
    scores = group_magnitude(network, graph) if rank == "magnitude" else random_scores(graph)
    scored = ranked_by(Scored(graph, np.ones(len(graph.layers)), [], []), scores)
    widths = choose_widths(scored, Asked(tuple(ratios), "none", ratio_of, divisor, uniform=True))
    return [cut_channels(network, graph.groups, own.kept) for own in widths]
