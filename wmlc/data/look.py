"""`wmlc data`: what a folder of pictures holds, as a network will see it, before anything is trained on it.

N images, T test images, D numbers of a thumbnail
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wmlc.console import note, progress, say, say_exactly
from wmlc.data import data_of, open_parts
from wmlc.data.pictures import Header, read_header, read_picture, shown
from wmlc.data.sources import INTERPOLATIONS, DataConfig, Part
from wmlc.errors import InputError, some_of
from wmlc.options import PATH, forced, json_option, options_of
from wmlc.settings import setting
from wmlc.table import Table

if TYPE_CHECKING:
    import numpy as np

    from wmlc.data.parts import Parts

_MOST_LOOKED_AT = 20_000  # images of a part that are decoded, evenly spread
_MOST_NAMED = 10  # leaks and classes in what is printed; JSON has all
_THUMB_SIDE = 16
_NEAR = 0.99  # correlation of two thumbnails from which on pictures are called the same
_BLOCK = 512  # test images compared at a time


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """How a folder is looked at: the settings that a training would read it with."""

    data: str = setting("imagefolder", "What it will be trained as: imagefolder or imagenet.", metavar="NAME")
    image_size: int | None = setting(None, "Image side in pixels.", shown="the files' own if small, else 224")
    interpolation: str | None = setting(None, "How pictures are resized.", shown="bilinear")
    crop: float | None = setting(
        None, "Share of the shorter side that is cut out of the middle.", shown="0.875 of large pictures"
    )
    train_images: int | None = setting(None, "Use a fixed random subset of so many training images.")
    held_out: float = setting(0.1, "Share of train held out.")
    seed: int = setting(0, "Seed of split and augmentation.")
    workers: int = setting(2, "Threads and processes that decode.")


@dataclass(frozen=True, kw_only=True)
class PartLook:
    """What one part of a set holds."""

    folder: str
    images: int
    looked_at: int
    classes: dict[str, int]
    sizes: dict[str, int]  # width x height, the most frequent first
    stored_as: dict[str, int]  # format and Pillow's mode
    turned: int  # by their EXIF
    transparent: int
    one_colour: list[str]
    unreadable: dict[str, str]  # file → why
    skipped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two files that show the same picture."""

    one: str
    other: str
    exact: bool  # the same pixels, not only nearly


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a training will see."""

    root: str
    train: PartLook
    test: PartLook
    leaks: list[Twins]  # a training image and a test image
    two_classes: list[Twins]  # training images of different classes
    input_shape: tuple[int, int, int] | None = None  # channels, height, width
    brought_by: str | None = None  # how pictures come to that size
    trained_on: int | None = None
    held_out: int | None = None
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    sheet: str | None = None
    refused: str | None = None  # why a training would not start


@dataclass(frozen=True)
class Seen:
    """One picture, decoded."""

    header: Header
    digest: bytes  # of its pixels
    thumb_D: np.ndarray | None  # of mean 0 and length 1; None where it has one colour


@click.command("data")
@click.argument("root", type=PATH, metavar="DIR")
@options_of(LookConfig, {"interpolation": INTERPOLATIONS})
@click.option("--out", type=PATH, metavar="FILE.png", help="The contact sheet.  [default: data.png]")
@json_option
@forced
def data_command(root: Path, out: Path | None, as_json: bool, force: bool, **settings: object) -> None:
    """Show what a folder of pictures holds, as a network will see it.

    Images a class and part, their sizes and modes, what is skipped and why, mean and deviation, test images that are
    training images too; and a contact sheet of augmented training images and of test images, as the network gets them.
    Exits with 1 where a training would not start.
    """
    look_at(root, LookConfig(**settings), out, as_json, force)  # type: ignore[arg-type]


def look_at(root: Path, config: LookConfig, out: Path | None, as_json: bool, force: bool) -> None:
    """Look at the folder `root`, print what it holds, and write the contact sheet to `out`."""
    from wmlc.data.sheet import refuse_foreign, write_sheet

    out = out or Path("data.png")
    if config.data not in ("imagefolder", "imagenet"):
        raise InputError(f"--data must be imagefolder or imagenet, got {config.data!r}")
    refuse_foreign(out, force)
    settings = DataConfig(
        name=config.data, root=root, image_size=config.image_size, interpolation=config.interpolation,
        crop=config.crop, train_images=config.train_images, held_out=config.held_out, seed=config.seed,
        workers=config.workers,
    )  # fmt: skip
    parts = open_parts(settings)
    look = survey(parts)
    if not look.refused:
        write_sheet(out, parts)
        look = replace(look, sheet=str(out))
    if as_json:
        say_exactly(json.dumps(asdict(look), indent=2))
    else:
        _print(look)
    if look.refused:
        raise InputError(look.refused)


def survey(parts: Parts) -> Look:
    """Decode the pictures of both parts, or many of them, and say what they are."""
    parts_of = {"train": parts.train, "test": parts.test}
    seen = {name: _see(part, max(1, parts.config.workers), name) for name, part in parts_of.items()}
    train, test = (_part_look(parts_of[name], seen[name]) for name in parts_of)
    of_train, of_test = ({p: s for p, s in seen[name].items() if isinstance(s, Seen)} for name in parts_of)
    class_of = dict(zip(parts.train.paths, parts.train.labels_N.tolist(), strict=True))
    found = Look(
        root=shown(str(parts.config.root)), train=train, test=test,
        leaks=_twins(of_train, of_test), two_classes=_two_classes(of_train, class_of),
    )  # fmt: skip
    faults = [reason for part in (train, test) for reason in part.unreadable.values()]
    if faults:
        return replace(found, refused=faults[0])
    try:
        data = data_of(parts)
        record = data.record
        data.train_steps(1)
        if record.small:  # else all was decoded above, and any size will do
            data.check_test()
            _ = list(data.held_out_batches(256))
    except InputError as error:
        return replace(found, refused=str(error))
    return replace(
        found, input_shape=record.input_shape, brought_by=_brought_by(parts), trained_on=record.train,
        held_out=record.held_out, mean=record.mean, std=record.std,
    )  # fmt: skip


def _see(part: Part, threads: int, name: str) -> dict[str, Seen | str]:
    """Each path that was looked at → what it shows, or why it shows nothing."""
    from wmlc.data.decode import spread

    paths = [part.paths[place] for place in spread(len(part.paths), _MOST_LOOKED_AT)]
    found: dict[str, Seen | str] = {}
    with progress(f"looking at {name}/", len(paths)) as advance, ThreadPoolExecutor(threads) as pool:
        for path, one in zip(paths, pool.map(_see_one, paths), strict=True):
            found[path] = one
            advance(1)
    return found


def _see_one(path: str) -> Seen | str:
    import numpy as np
    from PIL import Image

    try:
        header, picture = read_header(path), read_picture(path)
    except InputError as error:
        return str(error)
    colour = picture.convert("RGB")
    digest = hashlib.sha256(repr(colour.size).encode() + colour.tobytes()).digest()
    if all(low == high for low, high in colour.getextrema()):  # type: ignore[misc]
        return Seen(header, digest, None)
    small = colour.resize((_THUMB_SIDE, _THUMB_SIDE), Image.Resampling.BOX)
    thumb_D = np.asarray(small, np.float32).reshape(-1)
    thumb_D = thumb_D - thumb_D.mean()
    length = float(np.linalg.norm(thumb_D))
    return Seen(header, digest, thumb_D / length if length > 0 else None)


def _part_look(part: Part, seen: dict[str, Seen | str]) -> PartLook:
    whole = {path: one for path, one in seen.items() if isinstance(one, Seen)}
    headers = [one.header for one in whole.values()]
    counts = part.labels_N.bincount(minlength=len(part.class_names)).tolist()
    return PartLook(
        folder=shown(part.where), images=len(part.paths), looked_at=len(seen),
        classes=dict(zip(part.class_names, counts, strict=True)),
        sizes=dict(Counter(f"{h.width} x {h.height}" for h in headers).most_common()),
        stored_as=dict(Counter(f"{h.format} {h.mode}" for h in headers).most_common()),
        turned=sum(h.turned for h in headers), transparent=sum(h.alpha for h in headers),
        one_colour=[shown(path) for path, one in whole.items() if one.thumb_D is None],
        unreadable={shown(path): one for path, one in seen.items() if isinstance(one, str)},
        skipped=dict(part.skipped),
    )  # fmt: skip


def _twins(train: dict[str, Seen], test: dict[str, Seen]) -> list[Twins]:
    """The test images that are training images: by their pixels, else by thumbnails that are nearly the same."""
    import numpy as np

    by_digest = {one.digest: path for path, one in reversed(train.items())}
    found = {path: Twins(one=shown(by_digest[one.digest]), other=shown(path), exact=True)
             for path, one in test.items() if one.digest in by_digest}  # fmt: skip
    left = [(path, one.thumb_D) for path, one in test.items() if path not in found and one.thumb_D is not None]
    known = [(path, one.thumb_D) for path, one in train.items() if one.thumb_D is not None]
    if known:
        train_ND = np.stack([thumb_D for _, thumb_D in known])
        for start in range(0, len(left), _BLOCK):
            block = left[start : start + _BLOCK]
            alike_TN = np.stack([thumb_D for _, thumb_D in block]) @ train_ND.T
            for (path, _), nearest, alike in zip(block, alike_TN.argmax(1), alike_TN.max(1), strict=True):
                if alike >= _NEAR:
                    found[path] = Twins(one=shown(known[nearest][0]), other=shown(path), exact=False)
    return [found[path] for path in test if path in found]


def _two_classes(train: dict[str, Seen], class_of: dict[str, int]) -> list[Twins]:
    """The training images whose very pixels are an image of another class too."""
    first: dict[bytes, str] = {}
    found = []
    for path, one in train.items():
        known = first.setdefault(one.digest, path)
        if class_of[known] != class_of[path] and one.thumb_D is not None:
            found.append(Twins(one=shown(known), other=shown(path), exact=True))
    return found


def _brought_by(parts: Parts) -> str:
    layout = parts.layout
    words, side = layout.framing.words, layout.height
    if layout.small:
        return "as they are" if parts.config.image_size is None else words
    return f"to test {words}; to train, a random part resized to {side} x {side}"


def _print(look: Look) -> None:
    train, test = look.train, look.test
    split = "" if look.trained_on is None else f" ({look.trained_on:,} trained on, {look.held_out:,} held out)"
    say(f"{look.root}: {train.images:,} training images{split}, {test.images:,} test images")
    rows = [[name, f"{count:,}", f"{test.classes[name]:,}"] for name, count in train.classes.items()]
    Table(["class", "train", "test"], rows[:_MOST_NAMED]).show()
    if len(rows) > _MOST_NAMED:
        say(f"and {len(rows) - _MOST_NAMED:,} more classes, which --json lists")
    for name, part in (("train", train), ("test", test)):
        say(f"{name}/: {_counts(part.stored_as)}; {_counts(part.sizes, 'of ')} pixels")
        if part.looked_at < part.images:
            say(f"  of which {part.looked_at:,} were looked at, evenly spread")
        for count, what in (
            (part.turned, "turned upright, as their EXIF says"),
            (part.transparent, "with transparency, shown on white (white drawings on black)"),
            (len(part.one_colour), f"of one colour: {some_of(part.one_colour, 3)}"),
            (len(part.unreadable), f"cannot be read: {some_of(list(part.unreadable), 3)}"),
        ):
            if count:
                say(f"  {count:,} {what}")
    if look.input_shape:
        channels, height, width = look.input_shape
        kind = "grey" if channels == 1 else "colour"
        say(f"the network gets {kind}, {height} x {width} (height x width), {look.brought_by}")
        say(f"mean {_numbers(look.mean)}, deviation {_numbers(look.std)}, of 0 … 1, over the images trained on")
    _print_twins(look.leaks, "of the test images are training images too, so top-1 will flatter")
    _print_twins(look.two_classes, "training images lie in two classes")
    if look.sheet:
        note(f"wrote {look.sheet}")


def _print_twins(twins: Sequence[Twins], what: str) -> None:
    if twins:
        say(f"{len(twins):,} {what}:", "yellow")
    for pair in twins[:_MOST_NAMED]:
        say(f"  {pair.other} is {'' if pair.exact else 'nearly '}{pair.one}")
    if len(twins) > _MOST_NAMED:
        say(f"  and {len(twins) - _MOST_NAMED:,} more, which --json lists")


def _counts(counts: dict[str, int], of: str = "") -> str:
    first = [f"{count:,} {of}{what}" for what, count in list(counts.items())[:4]]
    return ", ".join(first) + (f" and {len(counts) - 4} others" if len(counts) > 4 else "")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
