"""A caller's module as wmlc takes it: in float32, without masks and wrappers of torch.compile and several devices."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import nn
from torch.nn.utils import prune

from wmlc.console import note
from wmlc.errors import some_of

MOST_NAMED = 3  # tensors that a note lists
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def inside(module: nn.Module) -> nn.Module:
    """The module that torch.compile, DataParallel or DistributedDataParallel has wrapped; any other as it is."""
    while (within := _wrapped(module)) is not None:
        module = within
    return module


def unwrapped(network: nn.Module) -> nn.Module:
    """`network` without such wrappers, wherever in it they are; in place but for the outermost."""
    network = inside(network)
    while (name := _first_wrapper(network)) is not None:
        network.set_submodule(name, inside(network.get_submodule(name)))
    for module in network.modules():
        if module._compiled_call_impl is not None:  # module.compile()
            module._compiled_call_impl = None
    return network


def is_wrapped(network: nn.Module) -> bool:
    """Whether a module within `network` is such a wrapper, or compiled in place."""
    return _first_wrapper(network) is not None or any(each._compiled_call_impl for each in network.modules())


def without_masks(network: nn.Module, arch: str) -> nn.Module:
    """`network` with what torch.nn.utils.prune has masked as plain parameters with zeros, in place; a note, once."""
    masked = [
        (name, module, hook._tensor_name)
        for name, module in network.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    for _, module, tensor in masked:
        prune.remove(module, tensor)
    if masked and torch.get_default_device().type != "meta":
        names = some_of([f"{name}.{tensor}".lstrip(".") for name, _, tensor in masked], MOST_NAMED)
        _tell(f"{arch} made masks of torch.nn.utils.prune; they are off, and {names} have their zeros until trained")
    return network


def in_float32(network: nn.Module, arch: str) -> nn.Module:
    """`network` with all its floats in float32, in place; a note, once, where they were others.

    None on the meta device, where a network is built to be filled from a file.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    kinds = {each.dtype for each in tensors if each.is_floating_point()} - {torch.float32}
    if not kinds:
        return network
    if torch.get_default_device().type != "meta":
        shown = " and ".join(sorted(str(each).removeprefix("torch.") for each in kinds))
        _tell(f"{arch} made {shown} weights; they are float32 from here on")
    return network.float()


_tell = functools.cache(note)


def _wrapped(module: nn.Module) -> nn.Module | None:
    within = getattr(module, "module" if isinstance(module, WRAPPERS) else "_orig_mod", None)
    return within if isinstance(within, nn.Module) else None


def _first_wrapper(network: nn.Module) -> str | None:
    return next((name for name, each in network.named_modules() if name and _wrapped(each) is not None), None)
