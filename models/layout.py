"""Networks whose code needs images in the plain memory layout, as `x.view(len(x), -1)` does of a map.

Images come in channels_last, in which convolutions are faster; what they give is then, too, and `view` cannot join its
dimensions.
"""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from torch import Tensor, fx, nn


def hold_plain(network: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Have `network` given contiguous images, if it can take those alone."""
    if not holds_plain(network) and not _takes_channels_last(network, input_shape):
        _hold(network)


def holds_plain(network: nn.Module) -> bool:
    """Whether any module of it is given contiguous images: then its weights stay in that layout as well."""
    return any(map(_is_held, network.modules()))


def pass_on(network: nn.Module, first: nn.Module) -> None:
    """Have the `first` stage of a network given what the network itself has to be."""
    if holds_plain(network) and not holds_plain(first):
        _hold(first)


def plain(images: Tensor) -> Tensor:
    """The same images with the strides of that layout, which `contiguous` does not give those of one channel."""
    return images.clone(memory_format=torch.contiguous_format)


def _hold(module: nn.Module) -> None:
    if not isinstance(module, fx.GraphModule):
        module.register_forward_pre_hook(_given_plain)
        return
    first = next(node for node in module.graph.nodes if node.op == "placeholder")  # a copy of it loses its hooks
    with module.graph.inserting_after(first):
        held = module.graph.call_function(plain, (first,))
    first.replace_all_uses_with(held, lambda user: user is not held)
    module.recompile()


def _is_held(module: nn.Module) -> bool:
    if isinstance(module, fx.GraphModule):
        return any(node.target is plain for node in module.graph.nodes)
    return _given_plain in module._forward_pre_hooks.values()


def _given_plain(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(plain(own) if isinstance(own, Tensor) else own for own in given)


def _takes_channels_last(network: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Whether it runs in that layout, or not in the plain one either."""
    channels, height, width = input_shape
    rows = torch.zeros(2, height, width, channels, device=next(network.parameters()).device)
    images = rows.permute(0, 3, 1, 2)  # as they come: `contiguous` leaves images of one channel as they are
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # where fx prints what fails
        with contextlib.suppress(Exception):  # whatever its code raises
            copied = copy.deepcopy(network).eval()
            for tensor in (*copied.parameters(), *copied.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
            copied(images)
            return True
        with contextlib.suppress(Exception):
            copy.deepcopy(network).eval()(plain(images))
            return False
    return True
