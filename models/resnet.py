"""ResNets as a sequence of stages, from torchvision's blocks (He et al., 2016)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

SMALL_IMAGE_PIXELS = 64  # up to here the stem keeps the resolution (the CIFAR form)


@dataclass(frozen=True)
class ResNetShape:
    """What sets one ResNet apart: its block, blocks a stage and the first stage's filters."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, ...]
    filters: int


RESNETS = {
    "resnet20": ResNetShape(BasicBlock, (3, 3, 3), 16),
    "resnet32": ResNetShape(BasicBlock, (5, 5, 5), 16),
    "resnet56": ResNetShape(BasicBlock, (9, 9, 9), 16),
    "resnet18": ResNetShape(BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": ResNetShape(BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": ResNetShape(Bottleneck, (3, 4, 6, 3), 64),
    "resnet101": ResNetShape(Bottleneck, (3, 4, 23, 3), 64),
}


def build_resnet(arch: str, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """stem, stage1 … stageS, head; float32 [N, C, H, W] → logits [N, classes]."""
    shape = RESNETS[arch]
    stages: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(shape.filters, input_shape))
    width_in = shape.filters
    for index, depth in enumerate(shape.depths):
        planes = shape.filters * 2**index
        stages[f"stage{index + 1}"] = _stage(shape.block, width_in, planes, depth, stride=1 if index == 0 else 2)
        width_in = planes * shape.block.expansion
    stages["head"] = nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1), fc=nn.Linear(width_in, classes))
    )
    network = nn.Sequential(stages)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _stem(filters: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    channels, height, width = input_shape
    small = max(height, width) <= SMALL_IMAGE_PIXELS
    kernel, stride = (3, 1) if small else (7, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2, bias=False),
        bn=nn.BatchNorm2d(filters),
        relu=nn.ReLU(inplace=True),
    )
    if not small:
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], width_in: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    width_out = planes * block.expansion
    shortcut = None
    if stride != 1 or width_in != width_out:
        shortcut = nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out))
    first = block(width_in, planes, stride, shortcut)
    return nn.Sequential(first, *(block(width_out, planes) for _ in range(depth - 1)))
