"""The train and test images of a set, which of them are held out, and what the set says of itself.

This is what a set held in memory and one read from files have in common.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from wmlc.console import note
from wmlc.data.broken import without_broken
from wmlc.data.decode import Layout, own_layout, read_layout, spread
from wmlc.data.normalisation import Normalisation, for_channels
from wmlc.data.sources import SETS, DataConfig, Part, refuse_empty_classes
from wmlc.errors import InputError
from wmlc.records import DataRecord

if TYPE_CHECKING:
    from torch import Tensor

SPLIT, EPOCH, HELD_OUT_PASS = range(3)  # what a stream of random numbers is for


class Parts:
    """The parts of the set `config.name`, each read when first asked for."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def under(self, config: DataConfig) -> Parts:
        """The same images under another configuration of their pixels; what was read is not read again."""
        other = Parts(config)
        other.__dict__ |= {name: part for name, part in vars(self).items() if name in ("train", "test")}
        return other

    @cached_property
    def train(self) -> Part:
        """All images but the test images."""
        return self._read(train=True)

    @cached_property
    def test(self) -> Part:
        """The test images, at least one a class."""
        part = self._read(train=False)
        refuse_empty_classes(part)
        return part

    @cached_property
    def layout(self) -> Layout:
        """The shape of the images; where they are files, by their headers."""
        if self.train.pixels_NHWC is not None:
            _, height, width, channels = self.train.pixels_NHWC.shape
            return own_layout(height, width, channels, self.config)
        # A machine that only tests may have train/'s class folders without their images.
        return read_layout(self.train.paths or self._read(train=False).paths, self.config)

    def _read(self, train: bool) -> Part:
        _, read = SETS[self.config.name]
        part = read(self.config, train)
        return without_broken(part, self.config.workers) if self.config.skip_broken else part

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """Places in train of the images trained on and of those held out, ascending."""
        refuse_empty_classes(self.train)
        count, config = len(self.train.labels_N), self.config
        if config.train_images is not None and config.train_images > count:
            raise InputError(f"train_images must be at most {count} (all), got {config.train_images}; null is all")
        order = torch.randperm(count, generator=generator(config.seed, SPLIT))[: config.train_images]
        held_out = round(len(order) * config.held_out)
        if not 0 < held_out < len(order):
            raise InputError(
                f"{len(order)} training images are too few to hold out a share of {config.held_out}: "
                f"that is {held_out} of them; use more images or another held_out"
            )
        return order[held_out:].sort().values, order[:held_out].sort().values

    def train_steps(self, batch_size: int) -> int:
        """Batches an epoch; the last, partial one is dropped."""
        count = len(self.split[0])
        if batch_size > count:
            raise InputError(
                f"a batch of {batch_size} is more than the {count} images trained on; pass --batch-size {count} or less"
            )
        return count // batch_size

    def check_train_count(self, count: int) -> None:
        """Raise `InputError` where there are fewer than `count` images to train on."""
        if count > len(self.split[0]):
            have = len(self.split[0])
            raise InputError(f"{count} training images were asked for, there are {have}; ask for fewer")

    def spread(self, batch_size: int, count: int) -> list[Tensor]:
        """Places in train of up to `count` batches, each evenly spread over the images trained on and held out.

        Of fewer images than a batch has, all are one.
        """
        either = torch.cat(self.split).sort().values
        places = either[spread(len(either), batch_size * count)]
        batches = max(1, len(places) // batch_size)
        return [places[place::batches] for place in range(batches)]

    def held_out_order(self, batch_size: int, index: int) -> Tensor:
        """Which of the held-out images make the `index`-th batch of an endless walk, reshuffled at each pass."""
        count = len(self.split[1])
        batch_size = min(batch_size, count)
        nth_pass, step = divmod(index, count // batch_size)
        shuffle = generator(self.config.seed, HELD_OUT_PASS, nth_pass)
        return torch.randperm(count, generator=shuffle)[step * batch_size :][:batch_size]

    def statistics(self, batches: Iterable[Tensor]) -> Normalisation:
        """Mean and deviation of these uint8 [B, H, W, C], with a note of those that have one colour.

        Raises: `InputError` where all of them are the same colour.
        """
        mean, std, plain, flat = _mean_and_std(batches)
        if flat and not plain:
            note(f"{flat:,} training images are of one colour each; 'wmlc data' names them")
        if plain:
            colour = ", ".join(f"{255 * value:.0f}" for value in mean)
            raise InputError(
                f"the training images are all one colour ({colour} of 255), so there is nothing to learn; "
                f"look at what {self.train.where or self.config.name} holds"
            )
        return Normalisation(tuple(mean), tuple(std))

    def record(self, own: Normalisation) -> DataRecord:
        """What the set says of itself; its `own` statistics are what images are normalised with, unless others are
        asked for."""
        layout, (train, held_out) = self.layout, self.split
        asked = self.config.normalise
        mean, std = (asked and for_channels(asked, layout.channels)) or own
        return DataRecord(
            name=self.config.name,
            class_names=self.train.class_names,
            input_shape=(layout.channels, layout.height, layout.width),
            mean=list(mean),
            std=list(std),
            framing=layout.framing,
            train=len(train),
            held_out=len(held_out),
            small=layout.small,
        )


def generator(seed: int, *stream: int) -> torch.Generator:
    """Random numbers that depend on the seed and on what they are for."""
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _mean_and_std(batches: Iterable[Tensor]) -> tuple[list[float], list[float], bool, int]:
    """Per channel, of pixels scaled to 0..1, over uint8 batches [B, H, W, C].

    Returns also whether all pixels are the same, and how many images have one colour.
    """
    first_C, plain, flat = None, True, 0
    count, total_C, squares_C = 0, torch.zeros(()), torch.zeros(())
    for pixels_BHWC in batches:
        flat_PC = pixels_BHWC.cpu().flatten(0, 2).double()  # whole numbers, which doubles sum exactly
        first_C = flat_PC[0] if first_C is None else first_C
        flat += int((pixels_BHWC == pixels_BHWC[:, :1, :1]).flatten(1).all(1).sum())
        plain = plain and bool((flat_PC == first_C).all())
        count += len(flat_PC)
        total_C = total_C + flat_PC.sum(0)
        squares_C = squares_C + flat_PC.square().sum(0)
    mean_C = total_C / count
    std_C = (squares_C / count - mean_C**2).clamp(min=0).sqrt()
    # A channel of one value has no deviation; 1 of 255 keeps its normalised pixels finite.
    return (mean_C / 255).tolist(), (std_C.clamp(min=1) / 255).tolist(), plain, flat
