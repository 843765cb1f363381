"""A network's name → the full, unpruned network as a sequence of stages."""

from __future__ import annotations

from torch import nn

from wmlc.errors import InputError
from wmlc.models.mobilenet import build_mobilenet_v2
from wmlc.models.resnet import RESNETS, build_resnet

ARCHITECTURES = (*RESNETS, "mobilenet_v2")


def build_network(arch: str, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """The unpruned network `arch`, its children named stem, stage1 … stageS, head.

    Args: `classes` ≥ 1; `input_shape` (channels, height, width). Up to 64 pixels the stem keeps the
    resolution, above it is the ImageNet stem. Raises `InputError` for a name that is not in the zoo.
    """
    if arch in RESNETS:
        return build_resnet(arch, classes, input_shape)
    if arch == "mobilenet_v2":
        return build_mobilenet_v2(classes, input_shape)
    raise InputError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
