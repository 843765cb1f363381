"""MobileNetV2 as a sequence of stages, from torchvision's blocks (Sandler et al., 2018)."""

from __future__ import annotations

from collections import OrderedDict

import torchvision
from torch import nn
from torchvision.ops import Conv2dNormActivation

from wmlc.models.resnet import SMALL_IMAGE_PIXELS

# torchvision's `features`, cut where the resolution drops: a stage is one resolution, as in a ResNet.
STAGES = {
    "stem": slice(0, 1),
    "stage1": slice(1, 2),
    "stage2": slice(2, 4),
    "stage3": slice(4, 7),
    "stage4": slice(7, 14),
    "stage5": slice(14, 18),
    "head": slice(18, 19),
}


def build_mobilenet_v2(classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """stem, stage1 … stage5, head; float32 [N, C, H, W] → logits [N, classes]."""
    channels, height, width = input_shape
    whole = torchvision.models.mobilenet_v2(num_classes=classes)
    small = max(height, width) <= SMALL_IMAGE_PIXELS
    if small or channels != 3:
        whole.features[0] = Conv2dNormActivation(
            channels, 32, stride=1 if small else 2, norm_layer=nn.BatchNorm2d, activation_layer=nn.ReLU6
        )
        nn.init.kaiming_normal_(whole.features[0][0].weight, mode="fan_out")
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        (name, nn.Sequential(*whole.features[blocks])) for name, blocks in STAGES.items()
    )
    last_conv = whole.features[18]
    dropout, fc = whole.classifier
    stages["head"] = nn.Sequential(
        OrderedDict(conv=last_conv, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1), dropout=dropout, fc=fc)
    )
    return nn.Sequential(stages)
