"""torch-pruning's own graph as an oracle: the trace finds its groups, and scores them as it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn
from torch_pruning.pruner.importance import GroupMagnitudeImportance

from wmlc.compress.widths.rank import group_magnitude

Members = frozenset[tuple[str, bool, int]]  # (module, whether it reads the channels, how many there are)

ARCHES = ["resnet20", "resnet18", "resnet50", "mobilenet_v2"]


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def groups_of_torch_pruning(network: nn.Module, images: torch.Tensor) -> dict[Members, Any]:
    """Its groups by their members; a norm and a depthwise convolution stand with what makes the channels."""
    graph = torch_pruning.DependencyGraph().build_dependency(network, images)
    names = {module: name for name, module in network.named_modules()}
    found = {}
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        members = set()
        for dependency, positions in group:
            module = dependency.target.module
            reads = graph.is_in_channel_pruning_fn(dependency.handler) and isinstance(module, nn.Conv2d | nn.Linear)
            if module in names:  # not its own steps for additions, pooling and the like
                members.add((names[module], reads and not is_depthwise(module), len(positions)))
        found[frozenset(members)] = group
    return found


@pytest.mark.parametrize("arch", ARCHES)
def test_the_trace_finds_torch_prunings_groups(arch: str, scored_network: Callable[..., Any]) -> None:
    net = scored_network(arch)
    theirs = groups_of_torch_pruning(net.full, net.images(1))
    graph = net.scored.graph
    ours = [
        frozenset((place.module, place.reads, place.positions.numel()) for place in group.places)
        for group in graph.groups
    ]
    assert not graph.left_whole and len(set(ours)) == len(ours)
    assert set(ours) == set(theirs) - {frozenset({("head.fc", False, 10)})}  # the classes, which nobody may cut


@pytest.mark.parametrize("arch", ARCHES)
def test_group_magnitude_is_torch_prunings_over_its_own_groups(arch: str, scored_network: Callable[..., Any]) -> None:
    net = scored_network(arch)
    theirs = groups_of_torch_pruning(net.full, net.images(1))
    measure = GroupMagnitudeImportance(normalizer=None)
    graph = net.scored.graph
    for group, score in zip(graph.groups, group_magnitude(net.full, graph), strict=True):
        key = frozenset((place.module, place.reads, place.positions.numel()) for place in group.places)
        assert score.shape == (group.units,) and score.std() > 0
        torch.testing.assert_close(score, measure(theirs[key]))
