"""What channels of a trained network are worth, by torch-pruning's measures over our groups."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch_pruning
from torch import Tensor, nn

from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup, Place


def group_magnitude(network: nn.Module, graph: ChannelGraph) -> list[Tensor]:
    """Group magnitude of each unit (Fang et al., CVPR 2023, with p = 2), per group of `graph`.

    The mean, over the layers that make or read a unit, of the sum of the squares of its weights there.
    """
    measure = torch_pruning.importance.GroupMagnitudeImportance(normalizer=None)
    scores = []
    for group in graph.groups:
        scored = measure(_as_torch_prunings(network, group))
        scores.append(torch.zeros(group.units) if scored is None else scored[: group.units])
    return scores


class _Member(tuple[object, list[int]]):
    """A layer of a group as torch-pruning's measures take it: (the layer and the cut, positions)."""

    root_idxs: list[int]  # the unit of each position


def _as_torch_prunings(network: nn.Module, group: ChannelGroup) -> list[_Member]:
    """The same group in torch-pruning's form: a member for each layer that makes or reads the channels."""
    members = []
    for place, how in _members(network, group):
        cut = SimpleNamespace(layer=network.get_submodule(place.module), pruning_fn=how)
        member = _Member((cut, place.positions.flatten().tolist()))
        member.root_idxs = torch.arange(group.units).repeat_interleave(place.positions.shape[1]).tolist()
        members.append(member)
    return members


def _members(network: nn.Module, group: ChannelGroup) -> Iterator[tuple[Place, object]]:
    for place in group.places:
        module = network.get_submodule(place.module)
        if not place.tensor.endswith("weight"):
            continue
        if isinstance(module, nn.Conv2d) and (
            place.dim == 1 or module.groups < module.in_channels or module.groups == 1
        ):
            yield place, torch_pruning.prune_conv_in_channels if place.dim else torch_pruning.prune_conv_out_channels
        elif isinstance(module, nn.Linear):
            yield (
                place,
                torch_pruning.prune_linear_in_channels if place.dim else torch_pruning.prune_linear_out_channels,
            )
        elif isinstance(module, nn.BatchNorm2d):
            yield place, torch_pruning.prune_batchnorm_out_channels
        elif isinstance(module, nn.LayerNorm):
            yield place, torch_pruning.prune_layernorm_out_channels
