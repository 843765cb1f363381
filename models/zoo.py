"""A network's name → the full, unpruned network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from wmlc.arch import is_foreign
from wmlc.errors import InputError
from wmlc.models.exits import MARK, end_at_exit
from wmlc.models.foreign import build_whole
from wmlc.models.mobilenet import build_mobilenet_v2
from wmlc.models.resnet import RESNETS, build_resnet
from wmlc.models.weights_file import hub_file

ARCHITECTURES = (*RESNETS, "mobilenet_v2")


def build_network(
    arch: str, classes: int, input_shape: tuple[int, int, int], arch_args: str = "",
    factory: Callable[..., Any] | None = None,
) -> nn.Module:  # fmt: skip
    """The unpruned network `arch`; a built-in one with the stages stem, stage1 … stageS, head as its children.

    Args: `classes` ≥ 1; `input_shape` (channels, height, width); for others' networks the arguments of the constructor,
    and for the caller's own the `factory` itself. Up to 64 pixels the stem of a built-in one keeps the resolution,
    above it is the ImageNet stem. A name like `resnet20-exit1` is the network that ends after stage1. Raises
    `InputError` for a name that is not there.
    """
    if is_foreign(arch):
        return build_whole(arch, classes, input_shape, arch_args, factory)
    name, _, number = arch.partition(MARK)
    if arch.endswith(".py"):
        raise InputError(f"{arch} is a file; name the function or class in it that makes the network: {arch}:FACTORY")
    if hub_file(Path(arch)) is not None:
        raise InputError(
            f"{arch} is what save_pretrained writes; name a factory of yours that builds the network from it "
            "(from_pretrained): --arch FILE.py:FACTORY --start pretrained (docs/networks.md has one)"
        )
    if name not in ARCHITECTURES or (MARK in arch and not number.isdecimal()):
        raise InputError(
            f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}, or torchvision:NAME, timm:NAME, "
            f"FILE.py:FACTORY ('wmlc list --networks TEXT' finds some)"
        )
    full = build_resnet(name, classes, input_shape) if name in RESNETS else build_mobilenet_v2(classes, input_shape)
    return end_at_exit(full, int(number), input_shape) if number else full
