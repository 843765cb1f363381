"""What the peers of a network that others wrote cost, counted: its code may multiply what no layer's widths tell."""

from __future__ import annotations

from dataclasses import replace

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.widths.choose import PeerWidths
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.console import note
from wmlc.models.cost import total_cost

TOLD = 0.01  # relative: how far a peer's MACs are from what its widths were chosen for, where that is told


def counted(
    widths: list[PeerWidths], family: PeerFamily, graph: ChannelGraph, ratio_of: str, input_shape: tuple[int, int, int]
) -> list[PeerWidths]:
    """`widths` with the parameters and MACs of the peers of `family` as they are, and the ratio that these achieve.

    A layer that works along places, as a mixer's, costs as much again for each channel that it works for.
    """
    found = []
    for number, own in enumerate(widths, 1):
        cost = total_cost(family.peer(number), input_shape)
        if abs(cost.macs / own.macs - 1) > TOLD:
            note(f"peer {number} takes {cost.macs:,} MACs, and its widths were chosen for {own.macs:,}")
        if (cost.params, cost.macs) != (own.params, own.macs):
            whole = {"params": graph.params, "macs": graph.macs}.get(ratio_of)
            achieved = own.achieved_ratio if whole is None else 1 - getattr(cost, ratio_of) / whole
            own = replace(own, params=cost.params, macs=cost.macs, achieved_ratio=achieved)
        found.append(own)
    return found
