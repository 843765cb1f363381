"""Networks run in float64, whatever tensors their own code makes on the way."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

SMALLER = (torch.float32, torch.float16, torch.bfloat16)
SMALLER_NAMED = ("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor")


@contextlib.contextmanager
def in_float64(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Tensors that code makes without naming a type (`torch.zeros(n)`) are of float64, as the weights around them.

    Args: a network that may name one, so that it does not run on the `images` in float64: its casts (`x.float()`) then
    give float64 as well.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.nullcontext() if _runs(network, images) else _NoCasts():
            yield
    finally:
        torch.set_default_dtype(usual)


class _NoCasts(TorchFunctionMode):
    """Smaller floats that code asks for are float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        if func in (Tensor.to, Tensor.type_as) and isinstance(args[1], Tensor) and args[1].dtype in SMALLER:
            return args[0].to(args[1].device, torch.float64)
        args, kwargs = tree_map(_wider, (args, kwargs or {}))
        return func(*args, **kwargs)


def _wider(own: Any) -> Any:
    """Of a type of numbers, as it may be named, float64 where it is a smaller float."""
    if isinstance(own, torch.dtype):
        return torch.float64 if own in SMALLER else own
    named = own if isinstance(own, str) else f"{own.__module__}.{own.__name__}" if isinstance(own, type) else ""
    return "torch.DoubleTensor" if named in SMALLER_NAMED else own


def _runs(network: nn.Module, images: Tensor) -> bool:
    """Whether a copy of it runs in float64."""
    quiet = contextlib.redirect_stderr(io.StringIO())  # where fx prints what fails
    with quiet, contextlib.suppress(Exception), torch.no_grad():  # whatever its code raises
        copy.deepcopy(network).double().eval()(images.double())
        return True
    return False
