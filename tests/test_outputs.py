"""Which channels of a stage's output a peer keeps: the cut network puts out those of the full one, the rest muted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hand_networks import SHAPE, hand_network
from networks import with_lived_in_statistics
from torch import Tensor, nn

from wmlc.compress.learn.family import family_of_one
from wmlc.compress.learn.losses import channel_distance
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGroup
from wmlc.compress.widths.outputs import output_channels
from wmlc.compress.widths.proof import read_channels
from wmlc.models.stages import split

PLAIN = [  # whose channels that are 0 say nothing to the others: no normalisation over channels
    "residual", "concat", "shuffle", "grouped", "depthwise", "squeeze", "padded", "twice", "stacked", "upwards", "sized",
]  # fmt: skip


def every_other(groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Units to keep, every second one, so that those of the first places would be others."""
    return {
        group.root: torch.arange(number % 2, group.units, 2) if group.units > 1 else torch.arange(group.units)
        for number, group in enumerate(groups)
    }


def muted(network: nn.Sequential, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor]) -> nn.Sequential:
    """A copy in which all that a cut would take away is 0."""
    network = copy.deepcopy(network)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        for group in groups:
            gone = [unit for unit in range(group.units) if unit not in kept[group.root].tolist()]
            for place in group.places:
                if not place.tensor.endswith(("running_mean", "running_var")):
                    tensors[place.tensor].index_fill_(place.dim, place.positions[gone].flatten(), 0.0)
    return network


def check(full: nn.Sequential, shape: tuple[int, int, int], groups: Sequence[ChannelGroup], known: set[str]) -> int:
    """Hold the outputs of the stages `known` against those of the muted network; how many of them were cut."""
    full = with_lived_in_statistics(full).eval()  # type: ignore[assignment]
    kept, channels = every_other(groups), output_channels(full, shape, groups)
    assert known <= channels.keys()
    cut = cut_channels(full, groups, kept)
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, of_cut = family_of_one(cut.eval()).walk(images)
        _, of_muted = family_of_one(muted(full, groups, kept).eval()).walk(images)
    smaller = 0
    for stage in known:
        own, whole = channels[stage], of_muted[stage]
        index_K = own.kept(kept)
        assert index_K.tolist() == sorted(set(index_K.tolist()))
        torch.testing.assert_close(of_cut[stage], whole.index_select(own.dim, index_K), rtol=1e-4, atol=1e-5)
        assert torch.equal(own.kept({}), torch.arange(whole.shape[own.dim]))  # nothing was cut
        smaller += len(index_K) < whole.shape[own.dim]
        assert channel_distance(of_cut[stage], whole.index_select(own.dim, index_K)) < 1e-6
    return smaller


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_stages_of_ours(arch: str, scored_network: Callable[..., Any]) -> None:
    net = scored_network(arch)
    full = copy.deepcopy(net.full)
    stages = [name for name, _ in full.named_children() if name != "head"]
    assert check(full, net.input_shape, net.scored.graph.groups, set(stages)) == len(stages)


@pytest.mark.parametrize("name", PLAIN)
def test_stages_of_networks_at_hand(name: str) -> None:
    full = split(hand_network(name), torch.zeros(1, *SHAPE)).network
    stages = {stage for stage, _ in full.named_children() if stage != "head"}
    assert check(full, SHAPE, read_channels(full, SHAPE).groups, stages) >= 1
