"""Cutting channels out of a network: every tensor that a unit has a part in loses that part, all groups at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmlc.compress.widths.graph import ChannelGroup, Number
from wmlc.models.residual import leave_out, within
from wmlc.models.shared import holders

# Layers whose numbers follow their tensors, in `_set_widths`.
KNOWN = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU,
    nn.MultiheadAttention,
)  # fmt: skip


def cut_channels(network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """A dense copy of `network` that keeps, of each group (named by its root layer), the units `kept` [K], sorted.

    Positions are those of the full network, so that nothing depends on an order. Where groups keep no unit, their block
    is left out.
    """
    return cut_in_place(copy.deepcopy(network), groups, kept)


def cut_in_place(network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """`network` itself, with no more than the units `kept` of each group."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    rescaled: dict[tuple[str, int], list[tuple[Tensor, float]]] = {}
    blocks = {group.block for group in groups if not len(kept[group.root])}
    leave_out(network, sorted(blocks))

    def is_left(name: str) -> bool:
        return not any(name == block or within(name, block) for block in blocks)

    for group in groups:
        if len(kept[group.root]) == group.units:
            continue
        lost = group.lost(kept[group.root])
        for place in group.places:
            if is_left(place.tensor):
                gone.setdefault((place.tensor, place.dim), []).append(place.positions[lost].flatten())
        for place in group.queries if group.rooted else ():  # their products are divided by a smaller root now
            root = math.sqrt(len(kept[group.root]) / group.units)
            rescaled.setdefault((place.tensor, place.dim), []).append((place.positions.flatten(), root))
        for number in group.attributes:
            if is_left(number.module):
                _shrink(network.get_submodule(number.module), number, int(lost.sum()))
    owners, changed = _owners(network, {name for name, _ in gone}), dict[nn.Module, None]()
    for (name, dim), positions in gone.items():
        own, key = owners[name][0]
        former = getattr(own, key)
        stays = torch.ones(former.shape[dim], dtype=torch.bool, device=former.device)
        stays[torch.cat(positions).to(former.device)] = False
        left = former.detach().index_select(dim, stays.nonzero().flatten())
        for rows, factor in rescaled.get((name, dim), []):
            scale_R = torch.ones(former.shape[dim], dtype=former.dtype, device=former.device)
            scale_R[rows.to(former.device)] = factor
            left = left * scale_R[stays].view([-1 if d == dim else 1 for d in range(left.ndim)])
        left = left.contiguous(memory_format=_memory_format(former))
        if isinstance(former, nn.Parameter):
            left = nn.Parameter(left, requires_grad=former.requires_grad)
        for owner, key in owners[name]:
            setattr(owner, key, left)
            changed[owner] = None
    for owner in changed:
        _set_widths(owner)
    return network


def _owners(network: nn.Module, names: Collection[str]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Of each tensor the modules that hold it, and under which key."""
    held, found = holders(network), {}
    for name in names:
        owner, _, key = name.rpartition(".")
        found[name] = held[id(getattr(network.get_submodule(owner), key))]
    return found


def _memory_format(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and not tensor.is_contiguous()
    last = last and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _shrink(module: nn.Module, number: Number, lost: int) -> None:
    """Take what the `lost` units are of a number from it."""
    former = getattr(module, number.name)
    if number.index is None:
        setattr(module, number.name, former - number.each * lost)
    else:
        now = [each - number.each * lost * (k == number.index) for k, each in enumerate(former)]
        setattr(module, number.name, tuple(now))


def _set_widths(module: Any) -> None:
    """Bring the numbers by which a layer says its widths in line with its tensors."""
    if isinstance(module, nn.modules.conv._ConvNd):
        out, each = module.weight.shape[:2]
        if module.groups > 1 and module.in_channels == module.groups:  # depthwise: a filter goes with its channel
            module.groups = out * module.groups // module.out_channels
        module.out_channels, module.in_channels = out, each * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        running, weight = module.running_mean, module.weight
        module.num_features = len(running if running is not None else weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:  # every channel by itself
            module.num_groups = len(module.weight)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.MultiheadAttention):
        module.embed_dim = module.kdim = module.vdim = len(module.out_proj.weight)
        module.head_dim = module.embed_dim // module.num_heads
        if module.in_proj_weight is None:
            module.kdim, module.vdim = (own.shape[1] for own in (module.k_proj_weight, module.v_proj_weight))
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(getattr(module, "normalized_shape", None), tuple):  # an RMS norm of anybody's
        vars(module)["normalized_shape"] = tuple(module.get_parameter("weight").shape)
