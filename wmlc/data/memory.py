"""A set of small images: all of them as uint8 tensors, on the device while they fit there, and augmented there.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from wmlc.data.batches import Batches
from wmlc.data.decode import Decoder, ImageFiles, small_transform, spread
from wmlc.data.normalisation import Normalisation
from wmlc.data.parts import EPOCH, generator
from wmlc.data.room import home_of, room
from wmlc.data.sources import Part

if TYPE_CHECKING:
    from torch import Tensor


_FEW = 2000  # small files that are read sooner than workers are started


class MemoryData(Batches):
    """`wmlc.data.Data` of small images."""

    @cached_property
    def statistics(self) -> Normalisation:
        return self._parts.statistics(self._train[0].split(1024))

    def sample_batches(self, batch_size: int, count: int) -> Iterator[Tensor]:
        train = self._parts.train
        for places in self._parts.spread(batch_size, count):
            yield self._finish(self._pixels(train, places, self._home), train.labels_N[places])[0]

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._in_order(*self._held_out, batch_size)

    def held_out_batch(self, batch_size: int, index: int) -> tuple[Tensor, Tensor]:
        order = self._ranks.own_of_batch(self._parts.held_out_order(batch_size, index)).to(self._home)
        pixels_NHWC, labels_N = self._held_out
        return self._finish(pixels_NHWC[order], labels_N[order])

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._in_order(self._test, self._parts.test.labels_N, batch_size)

    def check_test(self) -> None:
        _ = self._test

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        labels_N = self._parts.test.labels_N
        yield from zip(self._test.split(batch_size), labels_N.split(batch_size), strict=True)

    def train_pixels(self, count: int) -> Tensor:
        self._parts.check_train_count(count)
        pixels_NHWC, labels_N = self._train
        return pixels_NHWC[torch.tensor(spread(len(labels_N), count), device=self._home)].cpu()

    # What is read, each when first asked for.

    @cached_property
    def _home(self) -> torch.device:
        """Where the images are."""
        layout, side = self._parts.layout, 2 * self._pad
        count = len(self._parts.train.labels_N)
        return home_of(count * (layout.height + side) * (layout.width + side) * layout.channels, self._device)

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        """The images trained on: uint8 [N, H + 2 pad, W + 2 pad, C], class ids [N]."""
        train, layout, side = self._parts.split[0], self._parts.layout, self._pad
        # Black, as torchvision's RandomCrop pads, and as the digits' background is.
        shape = (len(train), layout.height + 2 * side, layout.width + 2 * side, layout.channels)
        padded_NHWC = room(shape, self._home)
        self._fill(self._inner(padded_NHWC), self._parts.train, train)
        return padded_NHWC, self._parts.train.labels_N[train].to(self._home)

    @property
    def _train(self) -> tuple[Tensor, Tensor]:
        """A view of the images trained on, without their padding: uint8 [N, H, W, C], class ids [N]."""
        padded_NHWC, labels_N = self._padded
        return self._inner(padded_NHWC), labels_N

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        train, held_out = self._parts.train, self._parts.split[1]
        return self._pixels(train, held_out, self._home), train.labels_N[held_out].to(self._home)

    @cached_property
    def _test(self) -> Tensor:
        return self._pixels(self._parts.test, torch.arange(self.test_count()), torch.device("cpu"))

    @property
    def _pad(self) -> int:
        """4 pixels around images of 32 and more, proportionally less around smaller ones."""
        return min(4, min(self._parts.layout.height, self._parts.layout.width) // 8)

    def _inner(self, padded_NHWC: Tensor) -> Tensor:
        """A view of images without their padding."""
        layout, side = self._parts.layout, self._pad
        return padded_NHWC[:, side : side + layout.height, side : side + layout.width]

    def _pixels(self, part: Part, chosen: Tensor, home: torch.device) -> Tensor:
        """uint8 [N, H, W, C] of the images at the places `chosen`."""
        layout = self._parts.layout
        pixels_NHWC = room((len(chosen), layout.height, layout.width, layout.channels), home)
        self._fill(pixels_NHWC, part, chosen)
        return pixels_NHWC

    def _fill(self, pixels_NHWC: Tensor, part: Part, chosen: Tensor) -> None:
        """Write the images at the places `chosen`."""
        if part.pixels_NHWC is not None:
            pixels_NHWC.copy_(part.pixels_NHWC[chosen])
            return
        layout, config = self._parts.layout, self.config
        images = ImageFiles(part=part, layout=layout, transform=small_transform(config, layout))
        workers, done = config.workers if len(chosen) >= _FEW else 0, 0
        decoder = Decoder(images, workers, pinned=self._device.type == "cuda")
        for pixels_BHWC, _ in decoder.batches(chosen.tolist(), batch_size=256):
            pixels_NHWC[done : done + len(pixels_BHWC)] = pixels_BHWC
            done += len(pixels_BHWC)

    # How batches come about.

    def _epoch(self, batch_size: int, steps: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        padded_NHWC, labels_N = self._padded
        # Drawn on the CPU, so that an epoch is the same on every device.
        draw, count, shifts = generator(self.config.seed, EPOCH, epoch), len(labels_N), 2 * self._pad + 1
        order = torch.randperm(count, generator=draw).to(self._home)
        top_N = torch.randint(shifts, (count,), generator=draw).to(self._home)
        left_N = torch.randint(shifts, (count,), generator=draw).to(self._home)
        flip_N = (torch.rand(count, generator=draw) < 0.5).to(self._home)
        for step in range(steps):
            now = slice(step * batch_size + self._ranks.rank, (step + 1) * batch_size, self._ranks.count)
            pixels_BHWC = _crop(padded_NHWC, order[now], top_N[now], left_N[now], shifts)
            if self.config.name != "digits":  # a mirrored digit is no digit
                pixels_BHWC = torch.where(flip_N[now, None, None, None], pixels_BHWC.flip(2), pixels_BHWC)
            yield self._finish(pixels_BHWC, labels_N[order[now]])

    def _in_order(self, pixels_NHWC: Tensor, labels_N: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of these images, not augmented."""
        parts = (self._ranks.own(own).split(batch_size) for own in (pixels_NHWC, labels_N))
        for pixels_BHWC, labels_B in zip(*parts, strict=True):
            yield self._finish(pixels_BHWC, labels_B)


def _crop(padded_NHWC: Tensor, index_B: Tensor, top_B: Tensor, left_B: Tensor, shifts: int) -> Tensor:
    """Cut a window out of each chosen image: uint8 [B, H, W, C]; it fits in `shifts` places each way."""
    count, padded_height, padded_width, channels = padded_NHWC.shape
    height, width = padded_height - shifts + 1, padded_width - shifts + 1
    row = padded_width * channels
    # All windows as one view, so that a batch's are one gather of whole rows (4 x as fast as one of pixels).
    windows = padded_NHWC.as_strided(
        (count, shifts, shifts, height, width * channels), (padded_height * row, row, channels, row, 1)
    )
    return windows[index_B, top_B, left_B].view(-1, height, width, channels)
