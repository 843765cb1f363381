"""Less work for torch's exporter, whose time goes with the operations that it is shown.

The answer stays what it was: what a change to a network would do to it is tried first, and where that is more than
rounding, the network is exported as it stands.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

ROUNDING = 1e-4  # of the largest logit: how far a folded batch norm may move one

_OPERATORS: dict[str, Any] = {}  # the exporter's tables of ONNX operators, by what they were asked with


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """The exporter gets the table of operators that it made before, where it would make it anew for each network.

    That reads the source of 500 functions: 0.7 s, a fifth of a ResNet-18's export. Its maker is private to torch; where
    a release has none of that name, nothing changes.
    """
    try:
        owner = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        made = vars(owner)["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def kept(*asked: Any, **named: Any) -> Any:
        key = repr((asked, named))
        if key not in _OPERATORS:
            _OPERATORS[key] = made.__get__(None, owner)(*asked, **named)
        return _OPERATORS[key]

    owner.from_torchlib = staticmethod(kept)
    try:
        yield
    finally:
        owner.from_torchlib = made


@contextlib.contextmanager
def operators_listed_once() -> Iterator[None]:
    """The exporter looks up all of torch's operators once meanwhile, and not twice for each of their 30 namespaces.

    A tenth of a small network's export; private to torch too, and left alone where a release has none of that name.
    """
    try:
        utils: Any = importlib.import_module("torch._export.utils")
        listed = utils._materialize_cpp_cia_ops
    except (ImportError, AttributeError):
        yield
        return
    utils._materialize_cpp_cia_ops = functools.cache(listed)
    try:
        yield
    finally:
        utils._materialize_cpp_cia_ops = listed


@contextlib.contextmanager
def attention_as_captured() -> Iterator[None]:
    """Within, torch's attention gives tensors that lie in memory as they do when the exporter captures it.

    It replaces the operation by steps whose result lies otherwise, so that a view that was captured is none any more.
    """
    own = F.scaled_dot_product_attention

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        heads_BHND = own(*args, **kwargs)
        return heads_BHND.transpose(-3, -2).clone(memory_format=torch.contiguous_format).transpose(-3, -2)

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


@contextlib.contextmanager
def folded(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Batch norms in eval mode go into the weights of the convolutions before them meanwhile, as in the file anyway.

    Which those are, a run on `images` (what the network takes) tells. A convolution so gets a bias of its own.
    """
    with contextlib.ExitStack() as undo:
        with torch.no_grad():
            pairs, before = _norms_after_convolutions(network, images)
            try:
                for convolution, norm in pairs:
                    _fold(network, convolution, norm, undo)
                after = network(images.clone()) if pairs else before
            except (AttributeError, TypeError):  # its forward looks into a batch norm, which is gone
                after = torch.full_like(before, torch.nan)
            if not (after - before).abs().max() <= ROUNDING * before.abs().max():
                undo.close()
        yield


@contextlib.contextmanager
def out_of_place(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Activations give new tensors meanwhile, which the exporter takes apart in up to a third less time.

    But not where the network's answer hangs on what they leave in the tensor that they got.
    """
    own = [module for module in network.modules() if getattr(module, "inplace", None) is True]

    def put(inplace: bool) -> None:
        for module in own:
            module.inplace = inplace  # type: ignore[assignment]

    try:
        if own:
            with torch.no_grad():
                put(False)  # first, as one in place may write into the images
                apart = network(images)
                put(True)
                put(not torch.equal(apart, network(images.clone())))
        yield
    finally:
        put(True)


def _norms_after_convolutions(
    network: nn.Module, images: Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Each batch norm that takes, once, just what one convolution gave, once; and the network's answer."""
    # What convolutions gave, by the tensor's identity, which it has as long as it is kept here, and its version, which
    # goes up where something is written into it.
    given: dict[tuple[int, int], tuple[nn.Conv2d, Tensor]] = {}
    pairs, calls = list[tuple[nn.Conv2d, nn.BatchNorm2d]](), dict[nn.Module, int]()

    def look(module: nn.Module, taken: tuple[Tensor, ...], out: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            given[id(out), out._version] = (module, out)
            return
        assert isinstance(module, nn.BatchNorm2d)
        if taken and _is_fixed(module) and (came := given.get((id(taken[0]), taken[0]._version))):
            pairs.append((came[0], module))

    hooks = [
        module.register_forward_hook(look)
        for module in network.modules()
        if type(module) is nn.BatchNorm2d or (isinstance(module, nn.Conv2d) and "weight" in module._parameters)
    ]
    try:
        answer = network(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls[module] == 1 for module in pair)], answer


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _fold(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d, undo: contextlib.ExitStack) -> None:
    """Put `norm` into `convolution`'s weights and an identity into its places; `undo` takes all of it back."""
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    for name, value in (("weight", weight), ("bias", bias)):
        undo.callback(setattr, convolution, name, getattr(convolution, name))
        setattr(convolution, name, nn.Parameter(value, requires_grad=False))
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is norm:
                undo.callback(setattr, parent, name, norm)
                setattr(parent, name, nn.Identity())
