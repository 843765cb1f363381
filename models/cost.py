"""What a network costs: parameters and multiply-accumulates (MACs), layer by layer."""

from __future__ import annotations

import copy

import torch
from torch import nn

from wmlc.records import Cost


def layer_costs(network: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Cost]:
    """Parameters and MACs of each layer that has parameters, for one image [C, H, W].

    A convolution takes out × in/groups × kernel × output pixels MACs, a linear layer out × in; batch
    norm, activations, pooling and additions count as none (the convention behind the published
    4.09 GMACs of ResNet-50). Nothing is computed: the network is walked on the meta device.
    """
    walked = copy.deepcopy(network).to("meta").eval()
    macs: dict[str, int] = {}

    def record(name: str, module: nn.Module, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert name not in macs, "a layer that runs twice would be counted once"
            macs[name] = module.weight.numel() * output[0].numel() // output.shape[1]

    for name, module in walked.named_modules():
        module.register_forward_hook(lambda module, _, output, name=name: record(name, module, output))
    with torch.no_grad():
        walked(torch.empty(1, *input_shape, device="meta"))
    return {
        name: Cost(params=params, macs=macs.get(name, 0))
        for name, module in walked.named_modules()
        if (params := sum(p.numel() for p in module.parameters(recurse=False)))
    }


def total_cost(network: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Parameters and MACs of the whole network for one image [C, H, W]."""
    costs = layer_costs(network, input_shape).values()
    return Cost(params=sum(cost.params for cost in costs), macs=sum(cost.macs for cost in costs))
