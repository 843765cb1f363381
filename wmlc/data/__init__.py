"""A data set's name → batches: read, split, augmented and normalised.

Small images are held as one uint8 tensor on the device and augmented there; workers decode large ones.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wmlc.errors import InputError
from wmlc.records import DataRecord
from wmlc.data.sources import (
    DATA_SETS,
    SETS,
    DataConfig,
    ImageFiles,
    Layout,
    Part,
    image_transform,
    read_layout,
    refuse_empty_classes,
    spread,
    stack_images,
)

if TYPE_CHECKING:  # `wmlc --help` needs no torch
    import torch
    from torch import Tensor

__all__ = ["DATA_SETS", "Data", "DataConfig", "DataRecord", "normalise", "open_data"]

_STATISTICS_IMAGES = 1024  # images that tell a large set's mean and deviation
_SPLIT, _EPOCH, _HELD_OUT_PASS = range(3)  # what a random stream is for


def open_data(config: DataConfig, device: torch.device | str = "cpu") -> Data:
    """The data set, checked as far as folders tell; images are decoded when first asked for.

    Raises: `InputError` for a missing, empty or inconsistent data folder, or a missing scikit-learn.
    """
    check, _ = SETS[config.name]
    try:
        check(config)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; make it readable") from None
    return Data(config, device)


class Data:
    """One data set on one device.

    Batches are (float32 [B, C, H, W], normalised, channels_last; class ids int64 [B]), on the device. All
    methods are pure functions of the config and their arguments; torch's global random state stays as it is.
    """

    def __init__(self, config: DataConfig, device: torch.device | str) -> None:
        import torch

        self.config = config
        self.device = torch.device(device)

    @cached_property
    def record(self) -> DataRecord:
        """What the data say of themselves; decodes a small set's train images, a sample of a large set's."""
        layout, (train, held_out) = self._layout, self._split
        if layout.small:
            batches: Iterable[Tensor] = self._small_train[0].split(1024)
        else:
            sample = train[spread(len(train), _STATISTICS_IMAGES)]
            batches = (pixels for pixels, _ in self._decode(self._train, sample, batch_size=32))
        mean, std = _mean_and_std(batches)
        return DataRecord(
            name=self.config.name,
            class_names=self._train.class_names,
            input_shape=(layout.channels, layout.height, layout.width),
            mean=mean,
            std=std,
            train=len(train),
            held_out=len(held_out),
            small=layout.small,
        )

    def train_steps(self, batch_size: int) -> int:
        """Batches an epoch; the last, partial one is dropped."""
        count = len(self._split[0])
        if batch_size > count:
            raise InputError(
                f"a batch of {batch_size} is more than the {count} images trained on; pass --batch-size {count} or less"
            )
        return count // batch_size

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch, shuffled and augmented: a pure function of the config's seed and `epoch`."""
        steps = self.train_steps(batch_size)
        batches = self._small_epoch if self._layout.small else self._large_epoch
        return batches(batch_size, steps, epoch)

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The held-out images in order, not augmented, the last partial batch included."""
        if self._layout.small:
            pixels_NHWC, labels_N = self._small_held_out
            batches: Iterable[tuple[Tensor, Tensor]] = zip(
                pixels_NHWC.split(batch_size), labels_N.split(batch_size), strict=True
            )
        else:
            batches = self._decode(self._train, self._split[1], batch_size)
        for pixels_BHWC, labels_B in batches:
            yield self._finish(pixels_BHWC, labels_B)

    def held_out_batch(self, batch_size: int, index: int) -> tuple[Tensor, Tensor]:
        """The `index`-th batch of an endless walk over the held-out images, reshuffled at each pass.

        A pure function of (seed, batch_size, index). All batches are full: `batch_size` is capped at the
        number of held-out images, and a pass drops its partial last batch.
        """
        import torch

        held_out = self._split[1]
        batch_size = min(batch_size, len(held_out))
        nth_pass, step = divmod(index, len(held_out) // batch_size)
        shuffle = _generator(self.config.seed, _HELD_OUT_PASS, nth_pass)
        order = torch.randperm(len(held_out), generator=shuffle)[step * batch_size :][:batch_size]
        if self._layout.small:
            pixels_NHWC, labels_N = self._small_held_out
            order = order.to(self.device)
            return self._finish(pixels_NHWC[order], labels_N[order])
        # Threads, as large images decode outside Python's lock, and workers would be started for one batch.
        images = self._files(self._train, augment=False)
        with ThreadPoolExecutor(max(1, self.config.workers)) as pool:
            batch = stack_images(list(pool.map(images.__getitem__, held_out[order].tolist())))
        if isinstance(batch, InputError):
            raise batch
        return self._finish(*batch)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in order, the last partial batch included; to report, never to choose."""
        for pixels_BHWC, labels_B in self.test_pixels(batch_size):
            yield self._finish(pixels_BHWC, labels_B)

    def test_count(self) -> int:
        """Images in the test set; decodes none of a folder's."""
        return len(self._test.labels_N)

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 [B, H, W, C], class ids int64 [B]) on the CPU, in `test_batches`' order.

        Decodes no train image and needs none; where a folder has them, headers tell size and channels.
        """
        if self._test.pixels_NHWC is None and not self._layout.small:
            yield from self._decode(self._test, _all(self._test), batch_size)
        else:
            labels = self._test.labels_N.split(batch_size)
            yield from zip(self._small_test.split(batch_size), labels, strict=True)

    def train_pixels(self, count: int) -> Tensor:
        """uint8 [count, H, W, C] on the CPU: images trained on, evenly spread, not augmented."""
        import torch

        train = self._split[0]
        if count > len(train):
            raise InputError(f"{count} training images were asked for, there are {len(train)}; ask for fewer")
        chosen = spread(len(train), count)
        if self._layout.small:
            return self._small_train[0][torch.tensor(chosen, device=self.device)].cpu()
        return torch.cat([pixels for pixels, _ in self._decode(self._train, train[chosen], batch_size=32)])

    # What is read, each when first asked for.

    @cached_property
    def _train(self) -> Part:
        return SETS[self.config.name][1](self.config, True)

    @cached_property
    def _test(self) -> Part:
        part = SETS[self.config.name][1](self.config, False)
        refuse_empty_classes(part)
        return part

    @cached_property
    def _layout(self) -> Layout:
        if self._train.pixels_NHWC is not None:
            _, height, width, channels = self._train.pixels_NHWC.shape
            return Layout(small=True, height=height, width=width, channels=channels)
        # A machine that only tests may have train/'s class folders without their images.
        return read_layout(self._train.paths or self._test.paths, self.config)

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        """Places in train of the images trained on and of those held out, ascending."""
        import torch

        refuse_empty_classes(self._train)
        count, config = len(self._train.labels_N), self.config
        if config.train_images is not None and config.train_images > count:
            raise InputError(f"train_images must be at most {count} (all), got {config.train_images}")
        order = torch.randperm(count, generator=_generator(config.seed, _SPLIT))[: config.train_images]
        held_out = round(len(order) * config.held_out)
        if not 0 < held_out < len(order):
            raise InputError(
                f"{len(order)} training images are too few to hold out a share of {config.held_out}: "
                f"that is {held_out} of them; use more images or another held_out"
            )
        return order[held_out:].sort().values, order[:held_out].sort().values

    @cached_property
    def _small_padded(self) -> tuple[Tensor, Tensor]:
        """The images trained on, on the device: uint8 [N, H + 2 pad, W + 2 pad, C], class ids [N]."""
        from torch.nn.functional import pad

        train, side = self._split[0], self._pad
        # Black, as torchvision's RandomCrop pads, and as the digits' background is.
        pixels_NHWC = self._small_pixels(self._train, train).to(self.device)
        padded_NHWC = pad(pixels_NHWC, (0, 0, side, side, side, side)).contiguous()  # as `_crop` needs it
        return padded_NHWC, self._train.labels_N[train].to(self.device)

    @property
    def _small_train(self) -> tuple[Tensor, Tensor]:
        """A view of the images trained on, without their padding: uint8 [N, H, W, C], class ids [N]."""
        padded_NHWC, labels_N = self._small_padded
        layout, pad = self._layout, self._pad
        return padded_NHWC[:, pad : pad + layout.height, pad : pad + layout.width], labels_N

    @cached_property
    def _small_held_out(self) -> tuple[Tensor, Tensor]:
        held_out = self._split[1]
        pixels_NHWC = self._small_pixels(self._train, held_out)
        return pixels_NHWC.to(self.device), self._train.labels_N[held_out].to(self.device)

    @cached_property
    def _small_test(self) -> Tensor:
        return self._small_pixels(self._test, _all(self._test))

    @property
    def _pad(self) -> int:
        """4 pixels around images of 32 and more, proportionally less around smaller ones."""
        return min(4, min(self._layout.height, self._layout.width) // 8)

    # How batches come about.

    def _small_epoch(self, batch_size: int, steps: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        padded_NHWC, labels_N = self._small_padded
        # Drawn on the CPU, so that an epoch is the same on every device.
        draw, count, shifts = _generator(self.config.seed, _EPOCH, epoch), len(labels_N), 2 * self._pad + 1
        order = torch.randperm(count, generator=draw).to(self.device)
        top_N = torch.randint(shifts, (count,), generator=draw).to(self.device)
        left_N = torch.randint(shifts, (count,), generator=draw).to(self.device)
        flip_N = (torch.rand(count, generator=draw) < 0.5).to(self.device)
        for step in range(steps):
            now = slice(step * batch_size, (step + 1) * batch_size)
            pixels_BHWC = _crop(padded_NHWC, order[now], top_N[now], left_N[now], shifts)
            if self.config.name != "digits":  # a mirrored digit is no digit
                pixels_BHWC = torch.where(flip_N[now, None, None, None], pixels_BHWC.flip(2), pixels_BHWC)
            yield self._finish(pixels_BHWC, labels_N[order[now]])

    def _large_epoch(self, batch_size: int, steps: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        train, draw = self._split[0], _generator(self.config.seed, _EPOCH, epoch)
        order = train[torch.randperm(len(train), generator=draw)][: steps * batch_size]
        # A seed an image, so that an epoch does not depend on the number of workers.
        seeds_N = torch.randint(2**62, (len(self._train.paths),), generator=draw)
        for pixels_BHWC, labels_B in self._decode(self._train, order, batch_size, seeds_N):
            yield self._finish(pixels_BHWC, labels_B)

    def _finish(self, pixels_BHWC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the device and normalise it."""
        pixels_BHWC = pixels_BHWC.to(self.device, non_blocking=True)
        images_BCHW = normalise(pixels_BHWC, self.record.mean, self.record.std)
        return images_BCHW, labels_B.to(self.device, non_blocking=True)

    def _small_pixels(self, part: Part, chosen: Tensor) -> Tensor:
        """uint8 [N, H, W, C] on the CPU of the images at the places `chosen`."""
        import torch

        if part.pixels_NHWC is not None:
            return part.pixels_NHWC[chosen]
        shape = (len(chosen), self._layout.height, self._layout.width, self._layout.channels)
        pixels_NHWC, done = torch.empty(shape, dtype=torch.uint8), 0
        for pixels_BHWC, _ in self._decode(part, chosen, batch_size=256):
            pixels_NHWC[done : done + len(pixels_BHWC)] = pixels_BHWC
            done += len(pixels_BHWC)
        return pixels_NHWC

    def _files(self, part: Part, augment: bool, seeds_N: Tensor | None = None) -> ImageFiles:
        transform = image_transform(self.config, self._layout, augment)
        return ImageFiles(part=part, layout=self._layout, transform=transform, seeds_N=seeds_N)

    def _decode(
        self, part: Part, chosen: Tensor, batch_size: int, seeds_N: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 [B, H, W, C], class ids [B]) on the CPU, from files; augmented if seeds are given."""
        import torch
        from torch.utils.data import DataLoader

        # A few small files are read sooner than workers are started.
        workers = 0 if self._layout.small and len(chosen) < 2000 else self.config.workers
        loader: Iterable[Any] = DataLoader(
            self._files(part, seeds_N is not None, seeds_N),  # type: ignore[arg-type]  # it is a map all the same
            batch_size,
            sampler=chosen.tolist(),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=stack_images,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw the workers' seeds from the global one
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


def normalise(pixels_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in channels_last memory format: (x / 255 - mean) / std.

    Args: pixels 0..255; mean and deviation per channel, of pixels in 0..1.
    """
    import torch

    count, height, width, channels = pixels_NHWC.shape
    mean_C = torch.tensor(mean, dtype=torch.float32)
    std_C = torch.tensor(std, dtype=torch.float32)
    # Repeated to a whole row, as a loop over 3 channels is too short for vector instructions (3.5 x slower).
    scale_R = (1 / (255 * std_C)).repeat(width).to(pixels_NHWC.device)
    shift_R = (-mean_C / std_C).repeat(width).to(pixels_NHWC.device)
    rows_NHR = pixels_NHWC.reshape(count, height, width * channels)
    return torch.mul(rows_NHR, scale_R).add_(shift_R).view(pixels_NHWC.shape).permute(0, 3, 1, 2)


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


def _mean_and_std(batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Per channel, of pixels scaled to 0..1, over uint8 batches [B, H, W, C]."""
    import torch

    count, total_C, squares_C = 0, torch.zeros(()), torch.zeros(())
    for pixels_BHWC in batches:
        flat_PC = pixels_BHWC.cpu().flatten(0, 2).double()  # whole numbers, which doubles sum exactly
        count += len(flat_PC)
        total_C = total_C + flat_PC.sum(0)
        squares_C = squares_C + flat_PC.square().sum(0)
    mean_C = total_C / count
    std_C = (squares_C / count - mean_C**2).clamp(min=0).sqrt()
    # A channel of one value has no deviation; 1 of 255 keeps its normalised pixels finite.
    return (mean_C / 255).tolist(), (std_C.clamp(min=1) / 255).tolist()


def _generator(seed: int, *stream: int) -> torch.Generator:
    """Random numbers that depend on the seed and on what they are for."""
    import numpy as np
    import torch

    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _all(part: Part) -> Tensor:
    import torch

    return torch.arange(len(part.labels_N))
