"""A network by its name alone, without data or settings of a run: what a latency table is measured of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wmlc.arch import is_foreign, needs_caller
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.resizable import resizable
from wmlc.models.factory import named_by_caller
from wmlc.models.resizable import Resizable
from wmlc.models.stages import split
from wmlc.models.zoo import build_network


@dataclass(frozen=True)
class Standalone:
    """A full network of random weights."""

    graph: ChannelGraph
    stages: list[str]
    sizes: Resizable  # the same at any widths


def resizable_named(arch: str, arch_args: str, image_size: int, classes: int, divisor: int) -> Resizable:
    """The network `arch` for RGB images of `image_size` pixels a side, of random weights, at any widths."""
    return network_named(arch, arch_args, image_size, classes, divisor).sizes


def network_named(arch: str, arch_args: str, image_size: int, classes: int, divisor: int) -> Standalone:
    """The network `arch` for RGB images of `image_size` pixels a side."""
    if needs_caller(arch):
        named_by_caller(arch)
    shape = (3, image_size, image_size)
    torch.manual_seed(0)
    network, staged = build_network(arch, classes, shape, arch_args).eval(), None
    if is_foreign(arch):
        staged = split(network, torch.zeros(1, *shape))
        network = staged.network
    assert isinstance(network, nn.Sequential)
    graph = read_channels(network, shape)
    sizes = resizable(network, graph, shape, classes, divisor, arch, arch_args, staged)
    return Standalone(graph, [name for name, _ in network.named_children()], sizes)
