"""What a network costs: parameters and multiply-accumulates (MACs)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from wmlc.models.head import run_once
from wmlc.records import Cost

Watch = TypeVar("Watch", bound=TorchDispatchMode)


class MacCounter(TorchDispatchMode):
    """Counts the MACs of all that runs within it, as `torch.utils.flop_counter` counts floating-point operations.

    A convolution takes out × in/groups × kernel × output pixels MACs, a linear layer out × in, attention those of its
    two products; norms, activations, pooling and additions count as none (the convention behind the published
    4.09 GMACs of ResNet-50).
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.macs += macs_of(func, args, kwargs or {}, out)
        return out


def macs_of(operation: Any, args: Any, kwargs: Any, out: Any) -> int:
    """The MACs of one operation that gave `out`: half the floating-point operations that torch's own counter counts."""
    count = flop_registry.get(operation.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out)) // 2


def total_cost(network: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Parameters and MACs of the whole network for one image [C, H, W]."""
    with without_fast_attention(), NormsAsTheyCome():
        counter = run_within(MacCounter, network, input_shape)
    return Cost(params=sum(parameter.numel() for parameter in network.parameters()), macs=counter.macs)


def run_within(watch: type[Watch], network: nn.Module, input_shape: tuple[int, int, int]) -> Watch:
    """What a new `watch` saw while `network` ran on one image [C, H, W] in evaluation mode.

    On the meta device, where nothing is computed; as it stands where it cannot run there, as its code asks for a
    tensor's value.
    """
    with torch.no_grad():
        try:
            with watch() as watching:
                on_meta(network)(torch.empty(1, *input_shape, device="meta"))
        except Exception:  # whatever its code raises there, as where it leaves torch for numpy
            with watch() as watching:
                run_once(network, input_shape, 1)
    return watching


def on_meta(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the meta device; no weight is copied for it."""
    memo: dict[int, Any] = {id(own): nn.Parameter(own.to("meta"), False) for own in network.parameters()}
    memo |= {id(own): own.to("meta") for own in network.buffers()}
    return copy.deepcopy(network, memo).eval()


class NormsAsTheyCome(TorchFunctionMode):
    """Batch norm gives what it takes: it changes no shape, costs no MACs, and is a dozen steps on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.batch_norm and args:
            channels = args[0].shape[1]
            for own in (*args[1:5], *((kwargs or {}).get(name) for name in ("weight", "bias"))):
                if isinstance(own, torch.Tensor) and len(own) != channels:
                    raise RuntimeError(f"a batch norm of {len(own)} channels is given {channels}")
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_fast_attention() -> Iterator[None]:
    """Let torch's own layers of attention run step by step; the one operation that stands for all tells nothing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
