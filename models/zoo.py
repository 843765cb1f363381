"""A network's name → the full, unpruned network as a sequence of stages."""

from __future__ import annotations

from torch import nn

from wmlc.errors import InputError
from wmlc.models.exits import MARK, end_at_exit
from wmlc.models.mobilenet import build_mobilenet_v2
from wmlc.models.resnet import RESNETS, build_resnet

ARCHITECTURES = (*RESNETS, "mobilenet_v2")


def build_network(arch: str, classes: int, input_shape: tuple[int, int, int]) -> nn.Sequential:
    """The unpruned network `arch`, its children named stem, stage1 … stageS, head.

    Args: `classes` ≥ 1; `input_shape` (channels, height, width). Up to 64 pixels the stem keeps the
    resolution, above it is the ImageNet stem. A name like `resnet20-exit1` is the network that ends after
    stage1. Raises `InputError` for a name that is not in the zoo.
    """
    name, _, number = arch.partition(MARK)
    if name not in ARCHITECTURES or (MARK in arch and not number.isdecimal()):
        raise InputError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    full = build_resnet(name, classes, input_shape) if name in RESNETS else build_mobilenet_v2(classes, input_shape)
    return end_at_exit(full, int(number), input_shape) if number else full
