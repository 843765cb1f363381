"""A network that can be had at any widths: what its latency is measured and chosen over.

G channel groups, L layers, N networks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn


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
        sizes_LG = ((self.rows != 0) | (self.columns != 0)).astype(int)
        linked_GG = sizes_LG.T @ sizes_LG > 0
        np.fill_diagonal(linked_GG, False)
        return linked_GG
