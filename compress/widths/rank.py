"""What channels are worth: by torch-pruning's measures over our groups, or nothing, as a control."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup, Place


@functools.cache
def _torch_pruning() -> Any:
    """torch-pruning; it would import timm for a counter of its own, which takes a second and swallows a Ctrl-C."""
    hidden = "timm" not in sys.modules
    if hidden:
        sys.modules["timm"] = None  # type: ignore[assignment]  # which counts as not installed
    try:
        import torch_pruning
    finally:
        if hidden:
            del sys.modules["timm"]
    return torch_pruning


def group_magnitude(network: nn.Module, graph: ChannelGraph) -> list[Tensor]:
    """Group magnitude of each unit (Fang et al., CVPR 2023, with p = 2), per group of `graph`.

    The mean, over the layers that make or read a unit, of the sum of the squares of its weights there.
    """
    measure = _torch_pruning().importance.GroupMagnitudeImportance(normalizer=None)
    return _measured(measure, network, graph, torch.square)


def group_taylor(
    network: nn.Module, graph: ChannelGraph, batches: Iterable[tuple[Tensor, Tensor]], trained: bool
) -> list[Tensor]:
    """What the loss would change by without each unit, to first order (Molchanov et al., CVPR 2019), per group.

        T_u = Σ_{θ in u} |∂L/∂θ ⊙ θ|, the mean over `batches`

    θ are the weights of the layers that make or read the unit, and the weights and biases of its norms; L is the
    cross-entropy of a batch of images float32 [B, C, H, W] (normalised) against labels int64 [B], under batch norm's
    running statistics where the network is `trained`, else under the batch's. `network` is left untouched.
    """
    measure = _torch_pruning().importance.GroupTaylorImportance(group_reduction="sum", normalizer=None, bias=True)
    network = copy.deepcopy(network).requires_grad_(True).train(not trained)  # what its owner froze counts too
    totals, count = [torch.zeros(group.units) for group in graph.groups], 0
    for images, labels in batches:
        network.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        for parameter in network.parameters():
            if parameter.grad is None:  # such as a head that nothing reads
                parameter.grad = torch.zeros_like(parameter)
        scores = _measured(measure, network, graph, _first_order)
        totals, count = [total + own for total, own in zip(totals, scores, strict=True)], count + 1
    return [total / count for total in totals]


def _first_order(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return (weight * weight.grad).abs()


def random_scores(graph: ChannelGraph, generator: torch.Generator | None = None) -> list[Tensor]:
    """A number from 0 to 1 for each unit, per group: channels in an order that tells nothing."""
    return [torch.rand(group.units, generator=generator) for group in graph.groups]


def _measured(
    measure: Any, network: nn.Module, graph: ChannelGraph, worth: Callable[[Tensor], Tensor]
) -> list[Tensor]:  # fmt: skip
    """Each unit's score by one of torch-pruning's measures, per group, on the CPU.

    Args: what the measure sums, of each number of a parameter. It is summed over all of a group's parameters where the
    measure knows none of its layers, as it goes by their classes, and somebody's own have others.
    """
    scores = []
    for group in graph.groups:
        scored = measure(_as_torch_prunings(network, group))
        known = scored is not None and scored.any()
        scores.append(scored[: group.units].cpu() if known else _summed(network, group, worth))
    return scores


def _summed(network: nn.Module, group: ChannelGroup, worth: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of what each unit's numbers are worth, over a group's parameters."""
    parameters, total = dict(network.named_parameters()), torch.zeros(group.units)
    for place in group.places:
        if (parameter := parameters.get(place.tensor)) is not None:
            own = worth(parameter).detach().cpu().movedim(place.dim, 0)
            total += own.flatten(1).sum(1)[place.positions].sum(1) if own.ndim > 1 else own[place.positions].sum(1)
    return total


class _Member(tuple[object, list[int]]):
    """A layer of a group as torch-pruning's measures take it: (the layer and the cut, positions)."""

    root_idxs: list[int]  # the unit of each position


def _as_torch_prunings(network: nn.Module, group: ChannelGroup) -> list[_Member]:
    """The same group in torch-pruning's form: a member for each layer that makes or reads the channels."""
    members = []
    for place, how in _members(network, group):
        layer = network.get_submodule(place.module)
        # its measure of first-order Taylor goes by names of its own, and knows batch norm under group norm's alone
        its = _torch_pruning().prune_groupnorm_out_channels if isinstance(layer, nn.BatchNorm2d) else how
        cut = SimpleNamespace(layer=layer, pruning_fn=how, target=SimpleNamespace(module=layer), handler=its)
        positions = place.positions.flatten()
        order = positions.argsort(stable=True)  # it sorts positions, and leaves their units where they were
        member = _Member((cut, positions[order].tolist()))
        member.root_idxs = torch.arange(group.units).repeat_interleave(place.positions.shape[1])[order].tolist()
        members.append(member)
    return members


def _members(network: nn.Module, group: ChannelGroup) -> Iterator[tuple[Place, object]]:
    pruning = _torch_pruning()
    for place in group.places:
        module = network.get_submodule(place.module)
        if not place.tensor.endswith("weight"):
            continue
        if isinstance(module, nn.Conv2d) and (
            place.dim == 1 or module.groups < module.in_channels or module.groups == 1
        ):
            yield place, pruning.prune_conv_in_channels if place.dim else pruning.prune_conv_out_channels
        elif isinstance(module, nn.Linear):
            yield place, pruning.prune_linear_in_channels if place.dim else pruning.prune_linear_out_channels
        elif isinstance(module, nn.BatchNorm2d):
            yield place, pruning.prune_batchnorm_out_channels
        elif isinstance(module, nn.LayerNorm):
            yield place, pruning.prune_layernorm_out_channels
