"""A full network and its channel graph as something whose latency can be measured at any widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wmlc.compress.widths.budget import allowed_units
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGraph, ChannelGroup
from wmlc.models.checkpoint import save_stages, spec_of_cut
from wmlc.models.resizable import LEVELS, Resizable, untrained_spec
from wmlc.models.stages import Staged


def resizable(
    network: nn.Sequential, graph: ChannelGraph, input_shape: tuple[int, int, int], classes: int, divisor: int,
    arch: str, arch_args: str = "", staged: Staged | None = None,
) -> Resizable:  # fmt: skip
    """`network`, whose channels hang together as `graph` says, at widths of a few levels a group.

    Args: how it was `staged`, if it is not built of stages.
    """

    def build(counts_G: np.ndarray) -> nn.Module:
        kept = {group.root: torch.arange(int(count)) for group, count in zip(graph.groups, counts_G, strict=True)}
        return cut_channels(network, graph.groups, kept).cpu().eval()

    def save(counts_G: np.ndarray, directory: Path) -> None:
        cut, spec = build(counts_G), untrained_spec(arch, arch_args, classes, input_shape)
        assert isinstance(cut, nn.Sequential)
        save_stages(cut, spec_of_cut(spec, network, cut, staged), directory)

    return Resizable(
        arch=arch, arch_args=arch_args, classes=classes, input_shape=input_shape, divisor=divisor,
        groups=tuple(group.root for group in graph.groups),
        levels=tuple(tuple(levels_of(group, divisor)) for group in graph.groups),
        layers=tuple(layer.name for layer in graph.layers), rows=graph.rows, fixed_rows=graph.fixed_rows,
        columns=graph.columns, fixed_columns=graph.fixed_columns, build=build, save=save,
    )  # fmt: skip


def levels_of(group: ChannelGroup, divisor: int) -> list[int]:
    """The units that a group may keep, ascending: multiples of `divisor` channels near its eighths, and all of them."""
    allowed = allowed_units(group, group.units, divisor)
    if len(allowed) <= LEVELS:
        return allowed
    *narrower, full = allowed
    return sorted({_nearest(narrower, eighths * full / LEVELS) for eighths in range(1, LEVELS)} | {full})


def _nearest(allowed: Sequence[int], wanted: float) -> int:
    """The allowed width nearest to `wanted`; of two as near, the one that more powers of two divide."""
    return min(allowed, key=lambda units: (abs(units - wanted), -(units & -units)))
