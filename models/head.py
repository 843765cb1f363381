"""A network's classifier, the layer that makes its logits: found by running it, and replaced."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wmlc.errors import InputError


def classifier_of(network: nn.Module, input_shape: tuple[int, int, int]) -> str:
    """The name of the Linear or Conv2d that makes the logits.

    It is the last one to run that has as many outputs as the network. Raises `InputError` where there is none.
    """
    ran: list[str] = []

    def remember(name: str) -> Any:
        return lambda module, images, output: ran.append(name)

    layers = {name: each for name, each in network.named_modules() if isinstance(each, nn.Linear | nn.Conv2d) and name}
    hooks = [each.register_forward_hook(remember(name)) for name, each in layers.items()]
    try:
        outputs = run_once(network, input_shape).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    for name in reversed(ran):
        if outputs_of(layers[name]) == outputs:
            return name
    raise InputError(f"no Linear or Conv2d of the network makes its {outputs} outputs, so its head cannot be replaced")


def classifiers_of(network: nn.Module, input_shape: tuple[int, int, int]) -> set[str]:
    """The names of all layers that make logits: `classifier_of`, and those that timm averages with it."""
    found = {classifier_of(network, input_shape)}
    tell: Any = getattr(network, "get_classifier", tuple)  # timm's way
    heads = tell()
    within = {each for head in heads for each in head.modules()} if isinstance(heads, tuple) else set()
    layers = ((name, each) for name, each in network.named_modules() if isinstance(each, nn.Linear | nn.Conv2d))
    return found | {name for name, each in layers if each in within}


def new_head(network: nn.Module, name: str, classes: int) -> nn.Module:
    """Give `network` a classifier for `classes` classes in place of the layer `name`, initialised as torch does it."""
    old = _layer(network, name)
    fresh = copy.deepcopy(old)  # of its own class, whatever that adds
    setattr(fresh, "out_features" if isinstance(fresh, nn.Linear) else "out_channels", classes)
    fresh.weight = nn.Parameter(torch.empty(classes, *old.weight.shape[1:]).to(old.weight))
    fresh.bias = None if old.bias is None else nn.Parameter(torch.empty(classes).to(old.weight))
    fresh.reset_parameters()
    return _put(network, name, fresh)


def outputs_of(layer: nn.Linear | nn.Conv2d) -> int:
    """The features or channels that a layer puts out."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def run_once(network: nn.Module, input_shape: tuple[int, int, int], count: int = 2) -> Tensor:
    """What `network` gives in eval mode for so many black images, where its weights are."""
    weight = next(iter(network.parameters()), torch.empty(0))
    images = torch.zeros(count, *input_shape, device=weight.device)
    with own_modes(network), torch.no_grad():
        network.eval()
        return network(images)


@contextlib.contextmanager
def own_modes(network: nn.Module) -> Iterator[None]:
    """Each module's mode, train or eval, comes back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _layer(network: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def _put(network: nn.Module, name: str, layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """`network` with `layer` at `name`, and with its count of classes where it keeps one for itself."""
    former = outputs_of(_layer(network, name))
    network.set_submodule(name, layer)
    for module in network.modules():
        if getattr(module, "num_classes", None) == former:
            module.num_classes = outputs_of(layer)  # type: ignore[assignment]
    return network


def with_input_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """`conv` for images of so many channels, its weights fitted by `fit_channels`."""
    fitted = copy.deepcopy(conv)
    fitted.in_channels = channels
    fitted.weight = nn.Parameter(fit_channels(conv.weight.detach(), channels))
    return fitted


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weights [out, C, h, w] for so many channels instead of C.

    Summed for one; else repeated in turn and scaled, so that the same picture in every channel gives what it gave.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    former = weight.shape[1]
    return weight[:, [index % former for index in range(channels)]] * (former / channels)
