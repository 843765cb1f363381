"""A data set's name → its images and labels, as arrays or as files, checked as they are read.

N images, B batch, H height, W width, C channels
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from wmlc.console import note
from wmlc.data.folders import class_folders, in_words, refuse_same_folder, unlabelled
from wmlc.data.listing import listed
from wmlc.data.normalisation import parse_normalisation
from wmlc.data.packed import check_packed, read_shards, read_tables
from wmlc.data.pictures import ENDINGS, one_line_shown
from wmlc.errors import InputError, some_of
from wmlc.records.common import Interpolation

if TYPE_CHECKING:  # `wmlc --help` needs no torch
    from torch import Tensor

DATA_SETS = ("digits", "cifar10", "cifar100", "imagefolder", "imagenet", "hf", "wds")
PACKED = {"hf": "a folder of parquet files", "wds": "a folder of tar shards"}  # pictures inside of larger files
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
LEAST_CROP = 0.1  # less would enlarge a picture more than tenfold, of which next to nothing is kept
NAMED = 5  # classes or folders that a message names

# Where the test images are, best first: ImageNet's own test/ has no labels, so its val/ comes first.
_TEST_FOLDERS = {"imagefolder": ("test", "val"), "imagenet": ("val", "test")}


def kind_and_place(data: str, root: str | None = None) -> tuple[str, str | None]:
    """A set and where it lies, of hf:DIR and wds:DIR; of any other name that and its `root`, if there is one."""
    kind, _, place = data.partition(":")
    if kind not in PACKED or not place:
        return data, root
    if root is not None and Path(root) != Path(place):
        raise InputError(f"--data {data} says where the set lies, and --data-root {root} another place; leave one out")
    return kind, place


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """All that a run's data depends on."""

    name: str = "digits"
    root: Path | None = None  # image folders: required; CIFAR: data/
    download: bool = False  # CIFAR only
    image_size: int | None = None  # pixels a side; None: the files' own where small, else 224
    interpolation: str | None = None  # of resizing; None: bilinear
    crop: float | None = None  # of the shorter side, cut out of the middle; None: 224/256, of small images all
    normalise: str | None = None  # as `wmlc.data.normalisation` reads it; None: the images' own mean and deviation
    train_images: int | None = None  # a fixed random subset of train, taken before the hold-out
    held_out: float = 0.1  # share of train kept for choosing checkpoints and the outer problem
    seed: int = 0
    workers: int = 2  # processes that decode image files; 0: this one does
    skip_broken: bool = False  # pictures that cannot be read are left out
    tested: bool = False  # the test images are what is asked for: a folder may lack train/

    @property
    def folder(self) -> Path:
        """Where the set lies."""
        return Path(self.root or "data").expanduser()

    def __post_init__(self) -> None:
        if self.name not in DATA_SETS:
            raise InputError(f"there is no data set {self.name!r}; choose one of {', '.join(DATA_SETS)}")
        if self.name in _TEST_FOLDERS and self.root is None:
            raise InputError(f"{self.name} needs --data-root DIR, a folder with train/ and val/ or test/")
        if self.name in PACKED and self.root is None:
            raise InputError(f"{self.name} needs --data {self.name}:DIR, {PACKED[self.name]}")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if self.interpolation not in (*INTERPOLATIONS, None):
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.crop is not None and not LEAST_CROP <= self.crop <= 1:
            raise InputError(f"crop must be from {LEAST_CROP} to 1 (all of the shorter side), got {self.crop:g}")
        if self.normalise is not None:
            parse_normalisation(self.normalise)
        if self.train_images is not None and self.train_images < 2:
            raise InputError(f"train_images must be at least 2, got {self.train_images}")
        if not 0 < self.held_out <= 0.5:
            raise InputError(f"held_out must be above 0 and at most 0.5, got {self.held_out}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")
        if self.workers < 0:
            raise InputError(f"workers must be at least 0, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The train or the test images of a set: pixels, or the files that hold them."""

    class_names: list[str]
    labels_N: Tensor
    pixels_NHWC: Tensor | None = None
    paths: Sequence[str] = ()
    where: str = ""  # the folder, for messages
    hold: Sequence[str] = ()  # the files that pictures are packed in, where a path is none by itself
    skipped: Mapping[str, int] = field(default_factory=dict)  # what else lies there → how often


def part_digest(part: Part, sizes: bool = True) -> str:
    """A hash of the labels, and of the pixels or of the files' names and `sizes`, wherever the set lies."""
    digest = hashlib.sha256(part.labels_N.numpy().tobytes())
    if part.pixels_NHWC is not None:
        digest.update(part.pixels_NHWC.numpy().tobytes())
    files = part.hold or part.paths
    sized = [f"{path}\0{Path(path).stat().st_size}" for path in files] if sizes else files
    for name in (*sized, *(part.paths if part.hold else ())):
        digest.update(f"{name.removeprefix(part.where)}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


# Sets that come as arrays.


def _check_digits(config: DataConfig) -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("digits needs scikit-learn, which is not installed; pip install 'wmlc[demo]'")


def _read_digits(config: DataConfig, train: bool) -> Part:
    """scikit-learn's 1,797 grey images of 8 x 8; every 5th is a test image."""
    import numpy as np

    images, labels = _digits()
    chosen = (np.arange(len(labels)) % 5 != 4) == train
    pixels_NHWC = np.rint(images[chosen] * (255 / 16)).astype(np.uint8)[..., None]  # 0..16 -> 0..255
    return _array_part(config, pixels_NHWC, labels[chosen], [str(digit) for digit in range(10)])


def _digits() -> tuple[Any, Any]:
    """The images [N, 8, 8] of 0 to 16 and their labels [N], from the file that scikit-learn comes with.

    What reads it there imports SciPy's statistics and pandas first: two seconds of every process, for 57 kB.
    """
    import numpy as np

    spec = importlib.util.find_spec("sklearn")
    assert spec and spec.origin, "which _check_digits looks for"
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():  # a release that keeps it elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    rows = np.loadtxt(file, delimiter=",")  # 64 pixels and the label
    return rows[:, :64].reshape(-1, 8, 8), rows[:, 64].astype(int)


def _cifar(config: DataConfig) -> tuple[Any, Path, Path]:
    """torchvision's class, the folder to look in, and the folder that must be there."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    root = config.folder
    return kind, root, root / kind.base_folder


def _check_cifar(config: DataConfig) -> None:
    _, root, folder = _cifar(config)
    if not config.download and not folder.is_dir():
        raise InputError(
            f"{config.name} is not in {root} (there is no {folder}); pass --download to fetch it, "
            f"or --data-root DIR for where it is"
        )


def _read_cifar(config: DataConfig, train: bool) -> Part:
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
            f"cannot fetch {config.name} into {root} ({one_line_shown(error)}); "
            f"check the network, or pass --data-root DIR for a copy"
        ) from None
    return _array_part(config, part.data, part.targets, list(part.classes))


def _array_part(config: DataConfig, pixels_NHWC: Any, labels_N: Any, class_names: list[str]) -> Part:
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
    return Part(class_names=class_names, labels_N=labels, pixels_NHWC=pixels)


# Sets that come as folders of image files.


def _check_folder(config: DataConfig) -> None:
    root = config.folder
    wanted = "--data-root must be a folder with train/ and val/ or test/, and in each a folder a class"
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; {wanted}")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; {wanted}")
    train = root / "train"
    alone = config.tested and not train.is_dir() and any((root / name).is_dir() for name in _TEST_FOLDERS[config.name])
    if not train.is_dir() and not alone:
        within = root.resolve().parent
        meant = f"did you mean {within}? " if (within / "train").is_dir() else ""
        folders = [f"{own.name}/" for own in sorted(root.iterdir()) if own.is_dir()]
        found = f", only {some_of(folders, NAMED)}" if folders else ""
        raise InputError(f"{root} has no train/{found}; {meant}{wanted}")
    test = test_folder(config)
    test_classes = class_folders(test)
    classes = test_classes if alone else class_folders(train)
    names, test_names = list(classes), list(test_classes)
    if names and not test_names:
        raise InputError(
            f"{test} has no class folders, only {unlabelled(test):,} images without labels; "
            f"put test images into the class folders of train/, below test/ or val/"
        )
    if len(names) < 2:
        found = f"one class only, {names[0]}" if names else "no class folders"
        raise InputError(f"{test if alone else train} has {found}; give each of at least 2 classes a folder of images")
    if names != test_names:
        lone = [f"train/{name}" for name in names if name not in test_names]
        lone += [f"{test.name}/{name}" for name in test_names if name not in names]
        others = [name for name in _TEST_FOLDERS[config.name] if name != test.name and (root / name).is_dir()]
        fitting = [name for name in others if list(class_folders(root / name)) == names]
        hint = f"; {fitting[0]}/ has those of train/: to test on it, move {test.name}/ away" if fitting else ""
        raise InputError(f"only one part of {root} has {some_of(lone, NAMED)}; give both the same class folders{hint}")
    refuse_same_folder([root, *([] if alone else [train, *classes.values()]), test, *test_classes.values()])
    _note_unlabelled(config, test)


def test_folder(config: DataConfig) -> Path:
    """The first of the folders there may be for test images that has class folders; else the first that there is."""
    root, allowed = config.folder, _TEST_FOLDERS[config.name]
    there = [root / folder for folder in allowed if (root / folder).is_dir()]
    if not there:
        raise InputError(f"{root} has no val/ or test/; put test images into one, in the class folders of train/")
    return next((folder for folder in there if class_folders(folder)), there[0])


def _note_unlabelled(config: DataConfig, test: Path) -> None:
    """Say that test images are taken from another folder than expected, as the first has no labels."""
    root, first = config.folder, _TEST_FOLDERS[config.name][0]
    if test.name != first and (root / first).is_dir():
        count = unlabelled(root / first)
        note(f"{root / first} has no class folders ({count:,} images without labels), so {test.name}/ is tested on")


def _read_folder(config: DataConfig, train: bool) -> Part:
    """The paths of the image files and their classes; opens none. What is skipped is said, in one line.

    Where there is no train/, it has the test images' classes and no images.
    """
    import torch

    root = config.folder
    folder = root / "train" if train else test_folder(config)
    if not folder.is_dir():
        none = torch.zeros(0, dtype=torch.int64)
        return Part(class_names=list(class_folders(test_folder(config))), labels_N=none, where=str(folder))
    classes = class_folders(folder)
    parts = [root / name for name in ("train", *_TEST_FOLDERS[config.name])]
    found = listed(folder, classes, [path for path in parts if path != folder and path.is_dir()])
    if found.skipped:
        note(f"skipped in {folder}: {in_words(found.skipped)}")
    labels = torch.tensor(found.labels, dtype=torch.int64)
    return Part(class_names=list(classes), labels_N=labels, paths=found.paths, where=str(folder), skipped=found.skipped)


def refuse_empty_classes(part: Part) -> None:
    """Raise `InputError` that names the classes without an image."""
    counts = part.labels_N.bincount(minlength=len(part.class_names)).tolist()
    empty = [name for name, count in zip(part.class_names, counts, strict=True) if count == 0]
    if empty and part.where and not Path(part.where).exists():
        raise InputError(f"there is no {part.where}, and this needs images of it; name with --data-root where they lie")
    if empty and part.hold:
        raise InputError(
            f"{part.where} has no images in {some_of(empty, NAMED)}; labels are numbers from 0 to {len(counts) - 1}, "
            "and each needs images"
        )
    if empty:
        lying = f" (skipped: {in_words(part.skipped)})" if part.skipped else ""
        raise InputError(
            f"{part.where} has no images in {some_of(empty, NAMED)}{lying}; add some that end in {', '.join(ENDINGS)}, "
            f"or remove the class"
        )


# For each set: a check of what folders tell, and the reader of its train or test part.
SETS: dict[str, tuple[Callable[[DataConfig], None], Callable[[DataConfig, bool], Part]]] = {
    "digits": (_check_digits, _read_digits),
    "cifar10": (_check_cifar, _read_cifar),
    "cifar100": (_check_cifar, _read_cifar),
    "imagefolder": (_check_folder, _read_folder),
    "imagenet": (_check_folder, _read_folder),
    "hf": (check_packed, read_tables),
    "wds": (check_packed, read_shards),
}
