"""Which modules hold which tensor: layers may share their weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import nn


def holders(network: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Of each parameter and buffer, by its `id`, the modules that hold it and under which keys."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((module, key))
    return found


def other_names(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of names of one tensor, in either order: modules may share it, or be in the network twice."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), []).append(name)
    for alike in names.values():
        yield from itertools.permutations(alike, 2)
