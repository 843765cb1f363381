"""A data set's name → batches: read, split, augmented and normalised.

Small images are held as one uint8 tensor, on the device where they fit (`room.py`), and augmented there (`memory.py`);
worker processes decode large ones from their files (`files.py`).

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from wmlc.data.folders import check_root
from wmlc.data.sources import DATA_SETS, PACKED, SETS, DataConfig
from wmlc.errors import InputError
from wmlc.records import DataRecord

if TYPE_CHECKING:  # `wmlc --help` needs no torch
    import torch
    from torch import Tensor

    from wmlc.data.normalisation import Normalisation
    from wmlc.data.parts import Parts
    from wmlc.ranks import Ranks

__all__ = ["DATA_SETS", "Data", "DataConfig", "DataRecord", "normalise", "open_data"]


class Data(Protocol):
    """One data set on one device.

    Where several processes share it (`shared`), a batch is this process's part of one, sizes are still of the whole,
    and what is walked through in order is divided so that no image is seen twice. Batches are (float32 [B, C, H, W],
    normalised, channels_last; class ids int64 [B]), on the device. All methods are pure functions of the config and
    their arguments; torch's global random state stays as it is.
    """

    @property
    def config(self) -> DataConfig:
        """What the data depend on."""

    def shared(self, ranks: Ranks) -> Data:
        """The same data, whose batches are this process's part of all processes'; what was read is not read again."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images; decodes none of a folder's, whose headers tell."""

    @property
    def statistics(self) -> Normalisation:
        """The training images' own mean and deviation, also where others are in force; decodes what `record` does."""

    @property
    def record(self) -> DataRecord:
        """What the data say of themselves; decodes a small set's train images, a sample of a large set's."""

    def train_steps(self, batch_size: int) -> int:
        """Batches an epoch; the last, partial one is dropped."""

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch, shuffled and augmented: a pure function of the config's seed and `epoch`."""

    def sample_batches(self, batch_size: int, count: int) -> Iterator[Tensor]:
        """Up to `count` batches of images that are not for testing, each evenly spread over all of them, not augmented.

        The same for every seed, unless `train_images` draws some by it. Without labels; in each process all of them.
        """

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The held-out images in order, not augmented, the last partial batch included."""

    def held_out_batch(self, batch_size: int, index: int) -> tuple[Tensor, Tensor]:
        """The `index`-th batch of an endless walk over the held-out images, reshuffled at each pass.

        A pure function of (seed, batch_size, index). All batches are full: `batch_size` is capped at the
        number of held-out images, and a pass drops its partial last batch.
        """

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in order, the last partial batch included; to report, never to choose."""

    def train_count(self) -> int:
        """Images that are not for testing, which may be gone (`DataConfig.tested`); decodes none of a folder's."""

    def test_count(self) -> int:
        """Images in the test set; decodes none of a folder's."""

    def test_classes(self) -> list[str]:
        """The names of the classes as the test set has them, by their ids."""

    def test_digest(self) -> str:
        """What tells the test images from others: a hash of their labels, and of their files' names and sizes."""

    def train_digest(self) -> str:
        """The same of the images trained on and held out, without the files' sizes: of a million that takes seconds."""

    def check_test(self) -> None:
        """Decode every test image, so that a damaged one is found before a training and not after it.

        Raises: `InputError` that names the first that cannot be used.
        """

    def test_pixels(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 [B, H, W, C], class ids int64 [B]) on the CPU, in `test_batches`' order.

        Decodes no train image and needs none; where a folder has them, headers tell size and channels.
        """

    def train_pixels(self, count: int) -> Tensor:
        """uint8 [count, H, W, C] on the CPU: images trained on, evenly spread, not augmented."""


def open_data(config: DataConfig, device: torch.device | str = "cpu") -> Data:
    """The data set, checked as far as folders and the headers of some files tell; the rest is read when asked for.

    Raises: `InputError` for a missing, empty or inconsistent data folder, or a missing scikit-learn.
    """
    return data_of(open_parts(config), device)


def open_parts(config: DataConfig) -> Parts:
    """The parts of the data set, checked as far as folders tell; raises as `open_data` does."""
    from wmlc.data.parts import Parts

    check, _ = SETS[config.name]
    if config.root is not None:
        check_root(config.root)
    try:
        check(config)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; make it readable") from None
    return Parts(config)


def data_of(parts: Parts, device: torch.device | str = "cpu") -> Data:
    """The data set of these parts, held in memory or read from its files as it is needed."""
    from wmlc.data.files import FileData
    from wmlc.data.memory import MemoryData

    config = parts.config
    large = config.name == "imagenet" or (config.name in ("imagefolder", *PACKED) and not parts.layout.small)
    return FileData(parts, device) if large else MemoryData(parts, device)


def normalise(pixels_NHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in channels_last memory format: (x / 255 - mean) / std.

    Args: pixels 0..255; mean and deviation per channel, of pixels in 0..1.
    """
    import torch

    height, width, channels = pixels_NHWC.shape[1:]
    scale_R, shift_R = _rows(tuple(mean), tuple(std), width, pixels_NHWC.device)
    rows_NHR = pixels_NHWC.reshape(-1, height, width * channels)
    return torch.mul(rows_NHR, scale_R).add_(shift_R).view(pixels_NHWC.shape).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=32)
def _rows(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a row of pixels is multiplied by and what is added then, on the device; [width * channels] each.

    A whole row, as a loop over 3 channels is too short for vector instructions (3.5 x slower).
    """
    import torch

    mean_C = torch.tensor(mean, dtype=torch.float32)
    std_C = torch.tensor(std, dtype=torch.float32)
    return (1 / (255 * std_C)).repeat(width).to(device), (-mean_C / std_C).repeat(width).to(device)
