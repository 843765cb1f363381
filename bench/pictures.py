"""How test pictures come to a file of others: brought to its size, and their classes to its classes.

N images, B batch, C channels, H height, W width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from wmlc.data import DataConfig, DataRecord, open_data
from wmlc.data.parts import Parts
from wmlc.data.sources import PACKED
from wmlc.errors import InputError
from wmlc.records import Framing

if TYPE_CHECKING:
    from torch import Tensor

FOLDERS = ("imagefolder", "imagenet", *PACKED)  # sets whose pictures can be read at another size
NAMED = 3  # classes that a message shows

Shape = tuple[int, int, int]  # C, H, W


class TestImages(Protocol):
    """What a bench asks of a data set; see `wmlc.data.Data`."""

    @property
    def config(self) -> DataConfig: ...

    @property
    def record(self) -> DataRecord: ...

    def test_count(self) -> int: ...

    def test_digest(self) -> str: ...

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Resized:
    """The test images of another set, brought to [C, H, W]."""

    images: TestImages
    shape: Shape

    @property
    def config(self) -> DataConfig:
        return self.images.config

    @property
    def record(self) -> DataRecord:
        """That of the set, with a grey channel's mean and deviation as often as the channel is shown."""
        own, channels = self.images.record, self.shape[0]
        times = channels // len(own.mean)
        return replace(own, input_shape=self.shape, mean=list(own.mean) * times, std=list(own.std) * times)

    def test_count(self) -> int:
        return self.images.test_count()

    def test_digest(self) -> str:
        return self.images.test_digest()

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        from torchvision.transforms.v2.functional import resize

        channels, height, width = self.shape
        for pixels_BHWC, labels_B in self.images.test_pixels(batch_size):
            pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
            if pixels_BCHW.shape[2:] != (height, width):
                pixels_BCHW = resize(pixels_BCHW, [height, width], antialias=True)
            yield pixels_BCHW.expand(-1, channels, -1, -1).permute(0, 2, 3, 1).contiguous(), labels_B


class Fitted(NamedTuple):
    """Test images of the shape that a file takes, in words how they came to it, and their classes.

    The classes are those of the test folders, so that a set which has no training images will do.
    """

    images: TestImages
    words: str
    class_names: list[str]


def shape_of(images: TestImages) -> Shape:
    """C, H, W of the test images."""
    height, width, channels = next(iter(images.test_pixels(1)))[0].shape[1:]
    return channels, height, width


def fit(images: TestImages, shape: Shape, framing: Framing | None = None) -> Fitted:
    """The test images as a file takes them; `InputError` where they have colour and it takes grey ones.

    Folders are read at the file's size, where that is square, by the `framing` that it states, else as for training;
    other sets, and sizes that are not square, are resized as they are, whatever that does to proportions.
    """
    channels, height, width = shape
    own, names = shape_of(images), Parts(images.config).test.class_names
    if own[0] not in (1, channels):
        raise InputError(
            f"the test images have {own[0]} channels, the file takes {channels}; name grey images, or convert"
        )
    words = "as the data set has them"
    cut = framing is not None and framing.shorter_side is not None
    if (own[1:] != (height, width) or cut) and images.config.name in FOLDERS and height == width:
        images = open_data(_read_as(images.config, height, framing))
        own, words = shape_of(images), f"read at {height} x {width}, as for training at that size"
        if framing is not None:
            words = f"{framing.words}, as the first file says"
    if own[1:] != (height, width):
        words = f"of {own[1]} x {own[2]}, resized to {height} x {width}"
    if own[0] != channels:
        words += f", their grey channel {channels} times"
    return Fitted(images if own == shape else Resized(images, shape), words, names)


def _read_as(config: DataConfig, side: int, framing: Framing | None) -> DataConfig:
    """The data set with pictures of `side` x `side`, by the `framing` of a network if it states one."""
    if framing is None:
        return replace(config, image_size=side)
    crop = None if framing.shorter_side is None else side / framing.shorter_side
    return replace(config, image_size=side, interpolation=framing.interpolation, crop=crop)


class Matched(NamedTuple):
    """How a file's classes are the data set's: for each of the file's its number there (None: the same), in words,
    and why they are not."""

    order: tuple[int, ...] | None
    words: str
    fault: str | None = None


def match_classes(theirs: Sequence[str] | None, ours: Sequence[str]) -> Matched:
    """Args: the names that the file gives, None where it gives none, and those of the data set."""
    if theirs is None:
        return Matched(None, "by order, as the file names none")
    if list(theirs) == list(ours):
        return Matched(None, "by name")
    if sorted(theirs) == sorted(ours):
        return Matched(tuple(list(ours).index(name) for name in theirs), "by name, as their order differs")
    fault = (
        f"the file's {len(theirs)} classes are {_some(theirs)}, the data set's {len(ours)} are {_some(ours)}; "
        "call the folders what the file calls its classes"
    )
    return Matched(None, "not matched, as their names differ", fault)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def made_up_pixels(input_shape: tuple[int, int, int], count: int) -> np.ndarray:
    """uint8 [N, H, W, C] noise for networks that take images [C, H, W], the same always: no time hangs on it."""
    channels, height, width = input_shape
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
