"""A data set's name → batches: read, split, augmented and normalised.

Small images are held as one uint8 tensor on the device and augmented there; workers decode large ones.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlc.errors import InputError

if TYPE_CHECKING:  # `wmlc --help` needs no torch
    import torch
    from PIL import Image
    from torch import Tensor

DATA_SETS = ("digits", "cifar10", "cifar100", "imagefolder", "imagenet")

# Where the test images are, best first: ImageNet's own test/ has no labels, so its val/ comes first.
_TEST_FOLDERS = {"imagefolder": ("test", "val"), "imagenet": ("val", "test")}
_SMALL_SIDE = 64  # images up to this side are held in memory
_LARGE_SIZE = 224
_HEADERS = 256  # files whose headers tell a folder's image size and channels
_STATISTICS_IMAGES = 1024  # images that tell a large set's mean and deviation
_GREY_MODES = ("1", "L")
_SPLIT, _EPOCH, _HELD_OUT_PASS = range(3)  # what a random stream is for


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """All that a run's data depends on."""

    name: str = "digits"
    root: Path | None = None  # image folders: required; CIFAR: data/
    download: bool = False  # CIFAR only
    image_size: int | None = None  # pixels a side; None: the files' own where small, else 224
    train_images: int | None = None  # a fixed random subset of train, taken before the hold-out
    held_out: float = 0.1  # share of train kept for choosing checkpoints and the outer problem
    seed: int = 0
    workers: int = 2  # processes that decode image files; 0: this one does

    def __post_init__(self) -> None:
        if self.name not in DATA_SETS:
            raise InputError(f"there is no data set {self.name!r}; choose one of {', '.join(DATA_SETS)}")
        if self.name in _TEST_FOLDERS and self.root is None:
            raise InputError(f"{self.name} needs --data-root DIR, a folder with train/ and val/ or test/")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.train_images is not None and self.train_images < 2:
            raise InputError(f"train_images must be at least 2, got {self.train_images}")
        if not 0 < self.held_out <= 0.5:
            raise InputError(f"held_out must be above 0 and at most 0.5, got {self.held_out}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")
        if self.workers < 0:
            raise InputError(f"workers must be at least 0, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What was read from the data, for a run to keep beside its weights."""

    name: str
    class_names: list[str]
    input_shape: tuple[int, int, int]  # C, H, W
    mean: list[float]  # per channel, of pixels in 0..1, over the images trained on
    std: list[float]
    train: int  # images trained on, the held-out ones excluded
    held_out: int
    small: bool


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The train or the test images of a set: pixels, or the files that hold them."""

    class_names: list[str]
    labels_N: Tensor
    pixels_NHWC: Tensor | None = None
    paths: Sequence[str] = ()
    where: str = ""  # the folder, for messages


@dataclass(frozen=True, kw_only=True)
class _Layout:
    small: bool
    height: int
    width: int
    channels: int


def open_data(config: DataConfig, device: torch.device | str = "cpu") -> Data:
    """The data set, checked as far as folders tell; images are decoded when first asked for.

    Raises: `InputError` for a missing, empty or inconsistent data folder, or a missing scikit-learn.
    """
    check, _ = _SETS[config.name]
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
            sample = train[_spread(len(train), _STATISTICS_IMAGES)]
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
            batch = _stack(list(pool.map(images.__getitem__, held_out[order].tolist())))
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
        spread = _spread(len(train), count)
        if self._layout.small:
            return self._small_train[0][torch.tensor(spread, device=self.device)].cpu()
        return torch.cat([pixels for pixels, _ in self._decode(self._train, train[spread], batch_size=32)])

    # What is read, each when first asked for.

    @cached_property
    def _train(self) -> _Part:
        return _SETS[self.config.name][1](self.config, True)

    @cached_property
    def _test(self) -> _Part:
        part = _SETS[self.config.name][1](self.config, False)
        _refuse_empty_classes(part)
        return part

    @cached_property
    def _layout(self) -> _Layout:
        if self._train.pixels_NHWC is not None:
            _, height, width, channels = self._train.pixels_NHWC.shape
            return _Layout(small=True, height=height, width=width, channels=channels)
        # A machine that only tests may have train/'s class folders without their images.
        return _read_layout(self._train.paths or self._test.paths, self.config)

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        """Places in train of the images trained on and of those held out, ascending."""
        import torch

        _refuse_empty_classes(self._train)
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

    def _small_pixels(self, part: _Part, chosen: Tensor) -> Tensor:
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

    def _files(self, part: _Part, augment: bool, seeds_N: Tensor | None = None) -> _Files:
        transform = _transform(self.config, self._layout, augment)
        return _Files(part=part, layout=self._layout, transform=transform, seeds_N=seeds_N)

    def _decode(
        self, part: _Part, chosen: Tensor, batch_size: int, seeds_N: Tensor | None = None
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
            collate_fn=_stack,
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


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` places out of `count`, evenly spread."""
    return [i * count // most for i in range(most)] if most < count else list(range(count))


def _all(part: _Part) -> Tensor:
    import torch

    return torch.arange(len(part.labels_N))


# Sets that come as arrays.


def _check_digits(config: DataConfig) -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("digits needs scikit-learn, which is not installed; pip install 'wmlc[demo]'")


def _read_digits(config: DataConfig, train: bool) -> _Part:
    """scikit-learn's 1,797 grey images of 8 x 8; every 5th is a test image."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 != 4) == train
    pixels_NHWC = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]  # 0..16 -> 0..255
    return _array_part(config, pixels_NHWC, digits.target[chosen], [str(n) for n in digits.target_names])


def _cifar(config: DataConfig) -> tuple[Any, Path, Path]:
    """torchvision's class, the folder to look in, and the folder that must be there."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    root = _root(config)
    return kind, root, root / kind.base_folder


def _check_cifar(config: DataConfig) -> None:
    _, root, folder = _cifar(config)
    if not config.download and not folder.is_dir():
        raise InputError(
            f"{config.name} is not in {root} (there is no {folder}); pass --download to fetch it, "
            f"or --data-root DIR for where it is"
        )


def _read_cifar(config: DataConfig, train: bool) -> _Part:
    """torchvision's set; it unpickles nothing before the checksums match."""
    kind, root, folder = _cifar(config)
    try:
        part = kind(root, train=train, download=config.download)
    except RuntimeError:
        raise InputError(
            f"{folder} is incomplete or damaged: its checksums do not match; delete it and pass --download, "
            f"or pass --data-root DIR for a whole copy"
        ) from None
    except (OSError, HTTPException) as error:
        raise InputError(
            f"cannot fetch {config.name} into {root} ({_one_line(error)}); "
            f"check the network, or pass --data-root DIR for a copy"
        ) from None
    return _array_part(config, part.data, part.targets, list(part.classes))


def _array_part(config: DataConfig, pixels_NHWC: Any, labels_N: Any, class_names: list[str]) -> _Part:
    import numpy as np
    import torch

    height, width = pixels_NHWC.shape[1:3]
    if config.image_size not in (None, height):
        raise InputError(
            f"image_size is {config.image_size}, but {config.name} has images of {height} x {width}; "
            f"leave --image-size out"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(pixels_NHWC))  # torchvision's CIFAR is a transposed view
    labels = torch.from_numpy(np.asarray(labels_N, dtype=np.int64))
    return _Part(class_names=class_names, labels_N=labels, pixels_NHWC=pixels)


# Sets that come as folders of image files.


def _root(config: DataConfig) -> Path:
    return Path(config.root or "data").expanduser()


def _check_folder(config: DataConfig) -> None:
    root = _root(config)
    wanted = "--data-root must be a folder with train/ and val/ or test/, and in each a folder a class"
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; {wanted}")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; {wanted}")
    if not (root / "train").is_dir():
        raise InputError(f"{root} has no train/; {wanted}")
    test = _test_folder(config)
    names, test_names = _class_names(root / "train"), _class_names(test)
    if len(names) < 2:
        found = f"one class only, {names[0]}" if names else "no class folders"
        raise InputError(f"{root / 'train'} has {found}; give each of at least 2 classes a folder of images")
    if names != test_names:
        lone = [f"train/{name}" for name in names if name not in test_names]
        lone += [f"{test.name}/{name}" for name in test_names if name not in names]
        raise InputError(f"only one part of {root} has {_some(lone)}; give both the same class folders")


def _test_folder(config: DataConfig) -> Path:
    """The first of the folders there may be for test images."""
    root, allowed = _root(config), _TEST_FOLDERS[config.name]
    for folder in allowed:
        if (root / folder).is_dir():
            return root / folder
    raise InputError(f"{root} has no val/ or test/; put test images into one, in the class folders of train/")


def _class_names(folder: Path) -> list[str]:
    """The folders in `folder`, sorted, but for hidden ones, which notebooks leave behind."""
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _read_folder(config: DataConfig, train: bool) -> _Part:
    """The paths of the image files and their classes; opens none."""
    import torch
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    folder = _root(config) / "train" if train else _test_folder(config)
    names = _class_names(folder)
    number = {name: i for i, name in enumerate(names)}
    found = make_dataset(str(folder), number, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    return _Part(class_names=names, labels_N=labels, paths=[path for path, _ in found], where=str(folder))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse_empty_classes(part: _Part) -> None:
    counts = part.labels_N.bincount(minlength=len(part.class_names)).tolist()
    empty = [name for name, count in zip(part.class_names, counts, strict=True) if count == 0]
    if empty:
        raise InputError(f"{part.where} has no images in {_some(empty)}; add some, or remove the class")


def _read_layout(paths: Sequence[str], config: DataConfig) -> _Layout:
    """Size and channels by the headers of some files: small if they are all of one size up to 64 x 64."""
    from PIL import Image

    sizes, modes = set(), set()
    for i in _spread(len(paths), _HEADERS):
        try:
            with Image.open(paths[i]) as image:
                sizes.add(image.size)
                modes.add(image.mode)
        except Exception as error:
            raise _unreadable(paths[i], error) from None
    channels = 1 if modes <= set(_GREY_MODES) else 3
    common = sizes.pop() if len(sizes) == 1 else (_LARGE_SIZE, _LARGE_SIZE)
    if config.name != "imagenet" and config.image_size is None and max(common) <= _SMALL_SIDE:
        return _Layout(small=True, height=common[1], width=common[0], channels=channels)
    side = config.image_size or _LARGE_SIZE
    small = config.name != "imagenet" and side <= _SMALL_SIDE
    return _Layout(small=small, height=side, width=side, channels=channels)


def _transform(config: DataConfig, layout: _Layout, augment: bool) -> Callable[[Any], Any] | None:
    """What happens to a decoded image; None: it must have the set's size. Small ones are augmented later."""
    from torchvision.transforms import v2

    size = layout.height
    if layout.small:
        return None if config.image_size is None else v2.Resize([size, size])
    if not augment:
        return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    if config.name == "imagenet":  # the paper names the jitter but not its strength; 0.4 is the usual one
        steps.append(v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4))
    return v2.Compose(steps)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Image files as a map from place to (uint8 [H, W, C], class id), for torch's DataLoader.

    An unreadable file's item is the `InputError`: raised in a worker it would come wrapped in a traceback.
    """

    part: _Part
    layout: _Layout
    transform: Callable[[Any], Any] | None
    seeds_N: Tensor | None

    def __len__(self) -> int:
        return len(self.part.paths)

    def __getitem__(self, place: int) -> tuple[Tensor, int] | InputError:
        import numpy as np
        import torch

        try:
            image = _open_image(self.part.paths[place], self.layout, any_size=self.transform is not None)
        except InputError as error:
            return error
        if self.transform is not None and self.seeds_N is None:
            image = self.transform(image)
        elif self.transform is not None and self.seeds_N is not None:
            with torch.random.fork_rng(devices=[]):  # transforms know only the global generator
                torch.default_generator.manual_seed(int(self.seeds_N[place]))
                image = self.transform(image)
        pixels_HWC = np.array(image).reshape(self.layout.height, self.layout.width, self.layout.channels)
        return torch.from_numpy(pixels_HWC), int(self.part.labels_N[place])


def _open_image(path: str, layout: _Layout, any_size: bool) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("L" if layout.channels == 1 else "RGB")
            mode = file.mode
    except Exception as error:
        raise _unreadable(path, error) from None
    if layout.channels == 1 and mode not in _GREY_MODES:
        raise InputError(f"{path} has colour (mode {mode}), other files are grey; convert one or the other")
    if not any_size and image.size != (layout.width, layout.height):
        raise InputError(
            f"{path} is {image.width} x {image.height}, other files {layout.width} x {layout.height}; "
            f"pass --image-size to resize them all"
        )
    return image


def _unreadable(path: str, error: Exception) -> InputError:
    """Decoders raise what they like: OSError, SyntaxError, struct.error. Callers hence catch Exception."""
    return InputError(f"{path} is not a readable image ({_one_line(error)}); repair or remove it")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _stack(items: list[tuple[Tensor, int] | InputError]) -> tuple[Tensor, Tensor] | InputError:
    """(uint8 [B, H, W, C], int64 [B]), or the first of the items that is an error."""
    import torch

    images, labels = [], []
    for item in items:
        if isinstance(item, InputError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


# For each set: a check of what folders tell, and the reader of its train or test part.
_SETS: dict[str, tuple[Callable[[DataConfig], None], Callable[[DataConfig, bool], _Part]]] = {
    "digits": (_check_digits, _read_digits),
    "cifar10": (_check_cifar, _read_cifar),
    "cifar100": (_check_cifar, _read_cifar),
    "imagefolder": (_check_folder, _read_folder),
    "imagenet": (_check_folder, _read_folder),
}
