"""What sets of small and of large images have in common: whose part of which batches, on which device.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch

from wmlc.data import normalise
from wmlc.data.normalisation import Normalisation
from wmlc.data.parts import Parts
from wmlc.data.sources import DataConfig, part_digest
from wmlc.ranks import SOLO, Ranks
from wmlc.records import DataRecord

if TYPE_CHECKING:
    from torch import Tensor

Own = TypeVar("Own", bound="Batches")  # typing.Self, from Python 3.11 on


class Batches(ABC):
    """The part of `wmlc.data.Data` that does not ask how large images are."""

    def __init__(self, parts: Parts, device: torch.device | str) -> None:
        self._parts = parts
        self._device = torch.device(device)
        self._ranks = SOLO

    @property
    def config(self) -> DataConfig:
        return self._parts.config

    @property
    def input_shape(self) -> tuple[int, int, int]:
        layout = self._parts.layout
        return layout.channels, layout.height, layout.width

    @property
    @abstractmethod
    def statistics(self) -> Normalisation: ...

    def shared(self: Own, ranks: Ranks) -> Own:
        other = copy.copy(self)
        other._ranks = ranks
        return other

    @cached_property
    def record(self) -> DataRecord:
        return self._parts.record(self.statistics)

    def train_steps(self, batch_size: int) -> int:
        self._ranks.check_batch(batch_size)
        return self._parts.train_steps(batch_size)

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._epoch(batch_size, self.train_steps(batch_size), epoch)  # refused now, not at the first batch

    @abstractmethod
    def _epoch(self, batch_size: int, steps: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...

    def train_count(self) -> int:
        return len(self._parts.train.labels_N)

    def test_count(self) -> int:
        return len(self._parts.test.labels_N)

    def test_classes(self) -> list[str]:
        return self._parts.test.class_names

    def test_digest(self) -> str:
        return part_digest(self._parts.test)

    def train_digest(self) -> str:
        return part_digest(self._parts.train, sizes=False)

    def _finish(self, pixels_BHWC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, where it is not there yet, and normalise it."""
        pixels_BHWC = pixels_BHWC.to(self._device, non_blocking=True)
        images_BCHW = normalise(pixels_BHWC, self.record.mean, self.record.std)
        return images_BCHW, labels_B.to(self._device, non_blocking=True)
