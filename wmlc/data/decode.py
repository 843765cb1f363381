"""Image files → pixels: their common size, what happens to each on the way, and the workers that decode them.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmlc.console import note
from wmlc.data.pictures import read_header, read_picture, shown
from wmlc.data.sources import DataConfig, Part
from wmlc.errors import InputError
from wmlc.records import Framing

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_SMALL_SIDE = 64  # images up to this side are held in memory
_LARGE_SIZE = 224
_CROP = 224 / 256  # of the shorter side of large pictures, as is usual
_HEADERS = 256  # files whose headers tell a folder's image size and channels


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape that all images of a set are brought to, and whether they are small enough to be held in memory."""

    small: bool
    height: int
    width: int
    channels: int
    framing: Framing

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width


def spread(count: int, most: int) -> list[int]:
    """Up to `most` places out of `count`, evenly spread."""
    return [i * count // most for i in range(most)] if most < count else list(range(count))


def read_layout(paths: Sequence[str], config: DataConfig) -> Layout:
    """Size and channels by the headers of some files: small if they are all of one size up to 64 x 64."""
    headers = [read_header(paths[i]) for i in spread(len(paths), _HEADERS)]
    sizes = {(header.width, header.height) for header in headers}
    channels = 1 if all(header.grey for header in headers) else 3
    common = sizes.pop() if len(sizes) == 1 else (_LARGE_SIZE, _LARGE_SIZE)
    if config.name != "imagenet" and config.image_size is None and max(common) <= _SMALL_SIDE:
        return own_layout(common[1], common[0], channels, config)
    return square_layout(config.image_size or _LARGE_SIZE, channels, config)


def square_layout(side: int, channels: int, config: DataConfig) -> Layout:
    """The shape of pictures that are resized to `side` x `side`."""
    small = config.name != "imagenet" and side <= _SMALL_SIDE
    crop = config.crop if small else config.crop or _CROP
    return Layout(small=small, height=side, width=side, channels=channels, framing=_framing(side, side, config, crop))


def own_layout(height: int, width: int, channels: int, config: DataConfig) -> Layout:
    """The shape of small images that are used as they are; says so where a crop was asked for."""
    if config.crop not in (1, None):
        note(f"images of {config.name} are used as they are, {height} x {width}; crop {config.crop:g} changes nothing")
    framing = _framing(height, width, config, crop=None)
    return Layout(small=True, height=height, width=width, channels=channels, framing=framing)


def _framing(height: int, width: int, config: DataConfig, crop: float | None) -> Framing:
    """Args: the share of the shorter side that makes `height`; None: nothing is cut off, whatever the proportions."""
    shorter_side = None if crop is None else round(height / crop)
    interpolation: Any = config.interpolation or "bilinear"
    return Framing(shorter_side=shorter_side, size=(height, width), interpolation=interpolation)


def framed(framing: Framing) -> Callable[[Any], Any]:
    """The transform of an opened picture that a framing stands for."""
    from torchvision.transforms import v2

    how = v2.InterpolationMode(framing.interpolation)
    if framing.shorter_side is None:
        return v2.Resize(list(framing.size), how)
    return v2.Compose([v2.Resize(framing.shorter_side, how), v2.CenterCrop(framing.size)])


def small_transform(config: DataConfig, layout: Layout) -> Callable[[Any], Any] | None:
    """What happens to a decoded small image, which is augmented later; None: nothing, it must have the set's size."""
    if config.image_size is None:
        return None
    return framed(layout.framing)


def large_transform(config: DataConfig, layout: Layout, augment: bool) -> Callable[[Any], Any]:
    """What happens to a decoded large image: cut out at random and mirrored to train, from the middle to test."""
    from torchvision.transforms import v2

    if not augment:
        return framed(layout.framing)
    how = v2.InterpolationMode(layout.framing.interpolation)
    steps = [v2.RandomResizedCrop(layout.height, interpolation=how), v2.RandomHorizontalFlip()]
    if config.name == "imagenet":  # the paper names the jitter but not its strength; 0.4 is the usual one
        steps.append(v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4))
    return v2.Compose(steps)


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files as a map from place to (uint8 [H, W, C], class id), for torch's DataLoader.

    A place with a seed is of an image to train on, whose random choices that seed makes. An unreadable file's item is
    the `InputError`: raised in a worker it would come wrapped in a traceback.
    """

    part: Part
    layout: Layout
    transform: Callable[[Any], Any] | None
    augmented: Callable[[Any], Any] | None = None  # of a place with a seed

    def __len__(self) -> int:
        return len(self.part.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int] | InputError:
        import numpy as np
        import torch

        place, seed = key if isinstance(key, tuple) else (key, None)
        transform = self.transform if seed is None else self.augmented
        try:
            image = _open_image(self.part.paths[place], self.layout, any_size=transform is not None)
        except InputError as error:
            return error
        with torch.random.fork_rng(devices=[], enabled=seed is not None):  # transforms know only the global generator
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            image = image if transform is None else transform(image)
        pixels_HWC = np.array(image).reshape(self.layout.height, self.layout.width, self.layout.channels)
        return torch.from_numpy(pixels_HWC), int(self.part.labels_N[place])


def _open_image(path: str, layout: Layout, any_size: bool) -> Image.Image:
    image = read_picture(path)
    if layout.channels == 1 and image.mode != "L":
        raise InputError(
            f"{shown(path)} has colour (mode {image.mode}), other files are grey; convert one or the other"
        )
    if not any_size and image.size != (layout.width, layout.height):
        raise InputError(
            f"{shown(path)} is {image.width} x {image.height}, other files {layout.width} x {layout.height}; "
            f"pass --image-size to resize them all"
        )
    return image.convert("L" if layout.channels == 1 else "RGB")


def stack_images(items: list[tuple[Tensor, int] | InputError]) -> tuple[Tensor, Tensor] | InputError:
    """(uint8 [B, H, W, C], int64 [B]), or the first of the items that is an error."""
    import torch

    images, labels = [], []
    for item in items:
        if isinstance(item, InputError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


class _Keys:
    """The images of each batch of the walk that begins next."""

    batches: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Decoder:
    """Processes that decode image files, started with the first batch and kept until the decoder is dropped.

    Args: how many `workers`, 0 for this process; whether the memory shall be `pinned`, for copies to a GPU.
    """

    def __init__(self, images: ImageFiles, workers: int, pinned: bool) -> None:
        import torch
        from torch.utils.data import DataLoader

        self._keys, self._workers, self._turn = _Keys(), workers, 0
        self._loader: Iterable[Any] = DataLoader(
            images,  # type: ignore[arg-type]  # it is a map all the same
            batch_sampler=self._keys,  # asked whenever a walk begins
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            collate_fn=stack_images,
            pin_memory=pinned,
            generator=torch.Generator(),  # else it would draw the workers' seeds from the global one
        )

    def batches(
        self, places: Sequence[int], batch_size: int, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 [B, H, W, C], class ids [B]) on the CPU, of the images at these places; the last batch may be partial.

        With workers a walk that begins ends the one before. Args: a seed a place, of images that are augmented.
        """
        keys: Sequence[Any] = places if seeds is None else list(zip(places, seeds, strict=True))
        self._keys.batches = [list(keys[at : at + batch_size]) for at in range(0, len(keys), batch_size)]
        self._turn = turn = self._turn + 1
        for batch in self._loader:
            if self._workers and turn != self._turn:
                raise RuntimeError("another walk has taken the workers of this one")
            if isinstance(batch, InputError):
                raise batch
            yield batch
