"""A network that can be had at any widths: what its latency is measured and chosen over.

G channel groups, L layers, N networks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from wmlc.models.widths import Difference
from wmlc.records import Framing, NetworkSpec

LEVELS = 8  # widths that a group may have, at most: eighths, as kernels work in steps of 4 or 8 blocks


@dataclass(frozen=True)
class Resizable:
    """A full network, its channel groups and what they size.

    The channels that layer l gives are `rows` [L, G] @ counts [G] + `fixed_rows` [L], those that it takes likewise from
    `columns`; of a grouped layer they are those of one group.
    """

    arch: str
    arch_args: str
    classes: int
    input_shape: tuple[int, int, int]  # C, H, W
    divisor: int
    groups: tuple[str, ...]  # named after the layer that makes the channels
    levels: tuple[tuple[int, ...], ...]  # the units that each group may keep, ascending; the last is all of them
    layers: tuple[str, ...]
    rows: np.ndarray
    fixed_rows: np.ndarray
    columns: np.ndarray
    fixed_columns: np.ndarray
    build: Callable[[np.ndarray], nn.Module]  # counts [G] → the dense network, in eval mode, on the CPU
    save: Callable[[np.ndarray, Path], None]  # the same, into an existing directory, as `models.checkpoint` reads it

    @property
    def full(self) -> np.ndarray:
        """The units of all groups, int [G]."""
        return np.array([own[-1] for own in self.levels], dtype=int)

    def channels(self, counts_G: np.ndarray) -> np.ndarray:
        """Of each layer the channels that it takes and gives at these counts, int [L, 2]."""
        taken_L = self.columns @ counts_G + self.fixed_columns
        return np.stack([taken_L, self.rows @ counts_G + self.fixed_rows], axis=1).round().astype(int)

    def linked(self) -> np.ndarray:
        """Which groups size a layer together, bool [G, G]."""
        return linked_groups(self.rows, self.columns)


def linked_groups(rows_LG: np.ndarray, columns_LG: np.ndarray) -> np.ndarray:
    """Which groups size a layer together, bool [G, G], by what each gives to a layer's rows and columns."""
    sizes_LG = ((rows_LG != 0) | (columns_LG != 0)).astype(int)
    linked_GG = sizes_LG.T @ sizes_LG > 0
    np.fill_diagonal(linked_GG, False)
    return linked_GG


def untrained_spec(
    arch: str, arch_args: str, classes: int, input_shape: tuple[int, int, int], widths: Difference | None = None
) -> NetworkSpec:
    """The record of a network that has not seen any data yet."""
    channels, height, width = input_shape
    return NetworkSpec(
        arch=arch, arch_args=arch_args, class_names=[str(index) for index in range(classes)], input_shape=input_shape,
        mean=[0.5] * channels, std=[0.25] * channels, widths=widths or {},
        framing=Framing(shorter_side=None, size=(height, width), interpolation="bilinear"),
    )  # fmt: skip
