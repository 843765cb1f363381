"""A set of large images: files, decoded and augmented by worker processes as they are needed.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from wmlc.console import progress
from wmlc.data.batches import Batches
from wmlc.data.decode import Decoder, ImageFiles, large_transform, spread, stack_images
from wmlc.data.listing import found_of_files
from wmlc.data.normalisation import Normalisation
from wmlc.data.parts import EPOCH, generator
from wmlc.data.sources import Part
from wmlc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


_MANY = 1000  # test images whose check is kept
_STATISTICS_IMAGES = 1024  # that tell the set's mean and deviation


class FileData(Batches):
    """`wmlc.data.Data` of large images."""

    @cached_property
    def statistics(self) -> Normalisation:
        return self._parts.statistics(self._sample(_STATISTICS_IMAGES))

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        _ = self.record  # which walks through some images itself
        places = self._ranks.own(self._parts.split[1]).tolist()
        for pixels_BHWC, labels_B in self._train_decoder.batches(places, batch_size):
            yield self._finish(pixels_BHWC, labels_B)

    def sample_batches(self, batch_size: int, count: int) -> Iterator[Tensor]:
        for places in self._parts.spread(batch_size, count):
            for pixels_BHWC, labels_B in self._train_decoder.batches(places.tolist(), len(places)):
                yield self._finish(pixels_BHWC, labels_B)[0]

    def held_out_batch(self, batch_size: int, index: int) -> tuple[Tensor, Tensor]:
        chosen = self._parts.split[1][self._ranks.own_of_batch(self._parts.held_out_order(batch_size, index))]
        # Threads, as large images decode outside Python's lock, and workers would be started for one batch.
        images = self._files(self._parts.train)
        with ThreadPoolExecutor(max(1, self.config.workers)) as pool:
            batch = stack_images(list(pool.map(images.__getitem__, chosen.tolist())))
        if isinstance(batch, InputError):
            raise batch
        return self._finish(*batch)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        own = self._ranks.own(range(self.test_count()))
        for pixels_BHWC, labels_B in self._decoder(self._parts.test).batches(own, batch_size):
            yield self._finish(pixels_BHWC, labels_B)

    def check_test(self) -> None:
        part, count = self._parts.test, self.test_count()

        def look() -> bool:
            with progress("looking at the test images", count) as advance:
                for _, labels_B in self.test_pixels(batch_size=32):
                    advance(len(labels_B))
            return True

        if count >= _MANY:
            found_of_files("checked", part.paths, repr(self._parts.layout), look, part.hold)
        else:
            look()

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._decoder(self._parts.test).batches(range(self.test_count()), batch_size)

    def train_pixels(self, count: int) -> Tensor:
        self._parts.check_train_count(count)
        return torch.cat(list(self._sample(count)))

    def _sample(self, most: int) -> Iterator[Tensor]:
        """uint8 [B, H, W, C] of up to `most` images trained on, evenly spread."""
        train = self._parts.split[0]
        places = train[spread(len(train), most)].tolist()
        for pixels_BHWC, _ in self._train_decoder.batches(places, batch_size=32):
            yield pixels_BHWC

    def _epoch(self, batch_size: int, steps: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        _ = self.record
        train, draw = self._parts.split[0], generator(self.config.seed, EPOCH, epoch)
        order = train[torch.randperm(len(train), generator=draw)][: steps * batch_size]
        # A seed an image, so that an epoch does not depend on the number of workers.
        seeds = torch.randint(2**62, (len(self._parts.train.paths),), generator=draw)[order]
        own, own_seeds = (self._ranks.own(each).tolist() for each in (order, seeds))  # of every batch as many
        for pixels_BHWC, labels_B in self._train_decoder.batches(own, batch_size // self._ranks.count, own_seeds):
            yield self._finish(pixels_BHWC, labels_B)

    def _files(self, part: Part) -> ImageFiles:
        plain, augmented = (large_transform(self.config, self._parts.layout, augment=own) for own in (False, True))
        return ImageFiles(part=part, layout=self._parts.layout, transform=plain, augmented=augmented)

    @cached_property
    def _train_decoder(self) -> Decoder:
        """Of the images that are not for testing; its workers are kept from epoch to epoch."""
        return self._decoder(self._parts.train)

    def _decoder(self, part: Part) -> Decoder:
        return Decoder(self._files(part), self.config.workers, pinned=self._device.type == "cuda")
