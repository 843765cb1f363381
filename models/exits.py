"""Early exits: a network that stops after a stage and classifies there (Zhang et al., ICCV 2019)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from wmlc.errors import InputError
from wmlc.models.cost import on_meta
from wmlc.models.flow import CLASSIFIER, FEATURES

MARK = "-exit"  # resnet20-exit1 is a resnet20 that ends after its stage1


def exit_name(arch: str, number: int) -> str:
    """The zoo's name of the network `arch` that ends after its stage `number` (from 1)."""
    return f"{arch}{MARK}{number}"


def exit_stages(network: nn.Sequential) -> list[str]:
    """The stages after which a network can end: all but the stem and the head, whose own end is the last stage's."""
    return [name for name, _ in network.named_children()][1:-1]


def end_at_exit(full: nn.Sequential, number: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """`full` up to its stage `number` (from 1), with a head of its own: stem, stage1 … stageK, head.

    The head is the paper's bottleneck (1 × 1 convolution to a quarter of the channels, k × k with stride k to the last
    stage's resolution, 1 × 1 to the width of the full network's features), pooling and a linear layer. In a network of
    depthwise convolutions the k × k is one too: dense, it would be larger than the network. The last stage's exit is
    `full` itself. Raises `InputError` for a number that names no stage.
    """
    stages = exit_stages(full)
    if not 1 <= number <= len(stages):
        raise InputError(f"an exit must be from 1 to {len(stages)} for this network, got {number}")
    if number == len(stages):
        return full
    sizes = _output_sizes(full, input_shape)
    shape, last = sizes[stages[number - 1]], sizes[stages[-1]]
    if len(shape) != 4 or len(last) != 4:
        raise InputError("an exit looks at feature maps [N, C, H, W], and a stage of this network gives none")
    kept = OrderedDict([*full.named_children()][: number + 1])
    features, classes = sizes[FEATURES][1], sizes[CLASSIFIER][1]
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in full.modules())
    factor = max(1, min(shape[2:]) // min(last[2:]))
    kept["head"] = _exit_head(shape[1], features, classes, factor, depthwise)
    return nn.Sequential(kept)


def _exit_head(into: int, features: int, classes: int, factor: int, depthwise: bool) -> nn.Sequential:
    middle = features // 4
    groups = middle if depthwise else 1
    head = nn.Sequential(
        OrderedDict(
            reduce=Conv2dNormActivation(into, middle, 1),
            shrink=Conv2dNormActivation(middle, middle, factor, stride=factor, padding=0, groups=groups),
            widen=Conv2dNormActivation(middle, features, 1),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
            fc=nn.Linear(features, classes),
        )
    )
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return head


def _output_sizes(network: nn.Sequential, input_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The shapes [1, …] that each stage but the head puts out, and the head's features and classifier."""
    now, sizes = torch.empty(1, *input_shape, device="meta"), {}
    with torch.no_grad():
        for name, stage in network.named_children():
            parts = on_meta(stage)
            *layers, last = parts.children() if name == "head" else [parts]
            for layer in layers:
                now = layer(now)
                sizes[FEATURES] = tuple(now.shape)
            now = last(now)
            sizes[CLASSIFIER if name == "head" else name] = tuple(now.shape)
    return sizes
