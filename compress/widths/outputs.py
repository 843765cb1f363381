"""Which channels of a stage's output a peer keeps: those are the full network's own, and can be held against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmlc.compress.widths.graph import ChannelGroup
from wmlc.compress.widths.labels import FIXED, along
from wmlc.compress.widths.trace import labels_of_outputs, on_cpu


@dataclass(frozen=True)
class OutputChannels:
    """The channels of a stage's output: along which dimension they run, and the group and unit that each is of."""

    dim: int
    units: tuple[tuple[str, int] | None, ...]  # (a group's name, its unit); None: of no group, so it always stays

    def kept(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Positions that stay where of each group the units `kept` [K] do; int64, sorted."""
        staying = {root: set(units.tolist()) for root, units in kept.items()}
        stays = [own is None or own[0] not in staying or own[1] in staying[own[0]] for own in self.units]
        return torch.tensor(stays).nonzero().flatten()


def output_channels(
    network: nn.Sequential, input_shape: tuple[int, int, int], groups: Sequence[ChannelGroup]
) -> dict[str, OutputChannels]:
    """By name of each stage whose output runs along one dimension in channels, which ones they are.

    Stages whose channels cannot be told are left out.
    """
    network = on_cpu(network)
    example = torch.zeros(1, *input_shape, device=next(network.parameters()).device)
    where = {
        (place.tensor, place.dim, position): (group.root, unit)
        for group in groups
        for place in group.places
        for unit, positions in enumerate(place.positions.tolist())
        for position in positions
    }
    labels, outputs = labels_of_outputs(network, example)
    found = {}
    for stage, output in outputs.items():
        planes = labels.planes(output)
        ways = {frozenset(along(plane)) for plane in planes}
        if len(ways) == 1 and len(dims := tuple(*ways)) == 1:  # what is added up is tied, so that one plane tells all
            places = [None if label == FIXED else labels.place_of(label) for label in planes[0].flatten().tolist()]
            found[stage] = OutputChannels(dims[0], tuple(place and where.get(place) for place in places))
    return found
