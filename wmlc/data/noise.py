"""Noise in place of a data set that is not at hand, so that a family can be planned without it.

B batch, C channels, H height, W width
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wmlc.data.decode import own_layout, square_layout
from wmlc.data.normalisation import NAMED, for_channels
from wmlc.data.sources import DataConfig
from wmlc.records import DataRecord

if TYPE_CHECKING:  # `wmlc --help` needs no torch
    import torch
    from torch import Tensor

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}  # the sets whose shape is known without their files
_MOST_IMAGES = 4  # a batch: noise says no more in a larger one


class NoiseData:
    """Pixels and classes drawn at random, in the shapes of a known data set: enough to plan a family, not to train."""

    def __init__(self, record: DataRecord, seed: int, device: torch.device | str) -> None:
        self.record = record
        self._seed = seed
        self._device = device

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end, (standard normal float32 [B, C, H, W] channels_last, class ids int64 [B]) on the device.

        A pure function of the seed, `batch_size` and `epoch`. B is `batch_size`, but at most 4 images.
        """
        import torch

        draw = torch.Generator().manual_seed(self._seed + epoch)
        count = min(batch_size, _MOST_IMAGES)
        while True:
            images_BCHW = torch.randn(count, *self.record.input_shape, generator=draw)
            labels_B = torch.randint(len(self.record.class_names), (count,), generator=draw)
            channels_last = images_BCHW.contiguous(memory_format=torch.channels_last)
            yield channels_last.to(self._device), labels_B.to(self._device)

    def sample_batches(self, batch_size: int, count: int) -> Iterator[Tensor]:
        """The first `count` of `train_batches`, without their classes."""
        for images_BCHW, _ in itertools.islice(self.train_batches(batch_size, epoch=0), count):
            yield images_BCHW


def stand_in(config: DataConfig, device: torch.device | str) -> NoiseData | None:
    """Noise in the shape of CIFAR or ImageNet; None for a set whose classes only its own files tell."""
    small = config.name != "imagenet"
    if config.name not in _CLASSES or (small and config.image_size not in (None, 32)):  # CIFAR is never resized
        return None
    side = 32 if small else config.image_size or 224
    layout = own_layout(side, side, 3, config) if small else square_layout(side, 3, config)
    mean, std = for_channels(config.normalise or "half", 3) or NAMED["half"].of(3)
    record = DataRecord(
        name=config.name,
        class_names=[str(number) for number in range(_CLASSES[config.name])],
        input_shape=layout.input_shape,
        mean=list(mean),
        std=list(std),
        framing=layout.framing,
        train=0,
        held_out=0,
        small=small,
    )
    return NoiseData(record, config.seed, device)
