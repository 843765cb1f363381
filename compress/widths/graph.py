"""Which channels hang together, which layers they size, and how to cut them: torch-pruning's graph, read once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from wmlc.models.cost import layer_costs
from wmlc.records import Cost


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, its cost as a product of its two widths.

    params = unit_params · out · in + per_out · out and macs = unit_macs · out · in; a depthwise
    convolution has no `in` of its own. A width that no group sizes (pixels in, classes out) is fixed.
    """

    name: str
    stage: str
    out_group: int | None
    in_group: int | None
    out: int
    into: int  # 1 for a depthwise convolution
    unit_params: int
    unit_macs: int
    per_out: int  # bias


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be cut together, named after the layer that a cut starts from."""

    root: str
    channels: int
    stages: frozenset[str]  # of the layers that produce the channels
    producers: tuple[str, ...]  # layers (convolution, linear, batch norm) with these outputs
    consumers: tuple[str, ...]  # layers with these inputs


@dataclass(frozen=True)
class ChannelGraph:
    """A full network's channel groups and the layers that they size."""

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    norm_params: tuple[int, ...]  # batch-norm parameters per channel of each group
    params: int
    macs: int

    @property
    def cost(self) -> Cost:
        """The whole network's, before any cut."""
        return Cost(params=self.params, macs=self.macs)

    @property
    def full(self) -> np.ndarray:
        """Channels of each group before any cut, int [G]."""
        return np.array([group.channels for group in self.groups])

    def layer_sizes(self, counts_G: np.ndarray, unit: str) -> np.ndarray:
        """Each layer's parameters or MACs (`unit`) when the groups have `counts_G` channels; float [L]."""
        outs = np.array([layer.out if layer.out_group is None else counts_G[layer.out_group] for layer in self.layers])
        ins = np.array([layer.into if layer.in_group is None else counts_G[layer.in_group] for layer in self.layers])
        if unit == "macs":
            return np.array([layer.unit_macs for layer in self.layers]) * outs * ins
        units = np.array([layer.unit_params for layer in self.layers])
        return units * outs * ins + np.array([layer.per_out for layer in self.layers]) * outs

    def size(self, counts_G: np.ndarray, unit: str) -> float:
        """The whole network's parameters or MACs when the groups have `counts_G` channels."""
        total = self.layer_sizes(counts_G, unit).sum()
        return float(total + (np.dot(self.norm_params, counts_G) if unit == "params" else 0))


def read_channels(network: nn.Sequential, input_shape: tuple[int, int, int]) -> ChannelGraph:
    """The channel groups of the full network `network` for images [C, H, W]."""
    graph = _dependency_graph(network, input_shape)
    names = {module: name for name, module in network.named_modules()}
    groups: list[ChannelGroup] = []
    sized: dict[str, dict[str, int]] = {"out": {}, "in": {}}
    roots = graph.get_all_groups(
        ignored_layers=[network.get_submodule("head.fc")], root_module_types=[nn.Conv2d, nn.Linear]
    )
    for index, members in enumerate(roots):
        producers: list[str] = []
        consumers: list[str] = []
        for dependency, channels in members:
            module = dependency.target.module
            if module not in names or not any(True for _ in module.parameters(recurse=False)):
                continue  # an addition, an activation, a pooling
            assert len(channels) == len(members[0][1]), "every layer here keeps channels one to one"
            produces = graph.is_out_channel_pruning_fn(dependency.handler)
            (producers if produces else consumers).append(names[module])
            sized["out" if produces else "in"][names[module]] = index
        groups.append(
            ChannelGroup(
                root=names[members[0][0].target.module],
                channels=len(members[0][1]),
                stages=frozenset(name.split(".")[0] for name in producers),
                producers=tuple(dict.fromkeys(producers)),
                consumers=tuple(dict.fromkeys(consumers)),
            )
        )
    layers = _layers(network, input_shape, sized["out"], sized["in"])
    norm_params = [0] * len(groups)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            norm_params[sized["out"][name]] += 2
    full = ChannelGraph(tuple(groups), layers, tuple(norm_params), 0, 0)
    params, macs = (round(full.size(full.full, unit)) for unit in ("params", "macs"))
    assert params == sum(p.numel() for p in network.parameters())
    return ChannelGraph(full.groups, full.layers, full.norm_params, params, macs)


def channel_importance(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> list[Tensor]:
    """A score for each channel of each group: the sum over every parameter that goes with it."""
    totals = []
    for group in graph.groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        for name in group.producers:
            for key in (f"{name}.weight", f"{name}.bias"):
                if key in scores:
                    total += scores[key].double().cpu().reshape(group.channels, -1).sum(1)
        for name in group.consumers:
            weight = scores[f"{name}.weight"]
            if weight.shape[1] == group.channels:  # a depthwise layer's input is its output
                total += weight.double().cpu().transpose(0, 1).flatten(1).sum(1)
        totals.append(total)
    return totals


def group_magnitude(network: nn.Sequential, input_shape: tuple[int, int, int], graph: ChannelGraph) -> list[Tensor]:
    """torch-pruning's group magnitude of each channel (Fang et al., CVPR 2023, with p = 2), per group of `graph`."""
    dependencies, measure = _dependency_graph(network, input_shape), torch_pruning.importance.GroupMagnitudeImportance()
    scores = []
    for group in graph.groups:
        module = network.get_submodule(group.root)
        pruner = dependencies.get_pruner_of_module(module)
        members = dependencies.get_pruning_group(module, pruner.prune_out_channels, list(range(group.channels)))
        scores.append(measure(members))
    return scores


def cut_channels(
    network: nn.Sequential, input_shape: tuple[int, int, int], kept: Mapping[str, Tensor]
) -> nn.Sequential:
    """A dense copy of `network` that keeps, of each group (named by its root layer), the channels `kept` [K]."""
    network = copy.deepcopy(network)
    graph = _dependency_graph(network, input_shape)
    for root, indices in kept.items():
        module = network.get_submodule(root)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        gone = sorted(set(range(len(module.weight))) - set(indices.tolist()))
        if gone:
            pruner = graph.get_pruner_of_module(module)
            graph.get_pruning_group(module, pruner.prune_out_channels, gone).prune()
    for parameter in network.parameters():
        parameter.grad = None
    return network


def _dependency_graph(network: nn.Sequential, input_shape: tuple[int, int, int]) -> torch_pruning.DependencyGraph:
    device = next(network.parameters()).device
    training = network.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning announces its own internals
        graph = torch_pruning.DependencyGraph().build_dependency(
            network.eval(), example_inputs=torch.zeros(1, *input_shape, device=device)
        )
    network.train(training)
    return graph


def _layers(
    network: nn.Sequential,
    input_shape: tuple[int, int, int],
    out_groups: Mapping[str, int],
    in_groups: Mapping[str, int],
) -> tuple[Layer, ...]:
    costs = layer_costs(network, input_shape)
    layers = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        out, into = module.weight.shape[:2]
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        layers.append(
            Layer(
                name=name,
                stage=name.split(".")[0],
                out_group=out_groups.get(name),
                in_group=None if depthwise else in_groups.get(name),
                out=out,
                into=into,
                unit_params=module.weight.numel() // (out * into),
                unit_macs=costs[name].macs // (out * into),
                per_out=0 if module.bias is None else 1,
            )
        )
    return tuple(layers)
