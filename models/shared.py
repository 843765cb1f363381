"""Which modules hold which tensor: layers may share their weights."""

from __future__ import annotations

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
