"""Pictures inside of larger files: WebDataset's tar shards, and Hugging Face's image data sets in parquet.

Such a picture has a name that says where it is, so that any process reads it by its name alone: the file, and in it the
place, with a NUL between, which no path can hold.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlc.console import progress
from wmlc.data.listing import found_of_files
from wmlc.data.pictures import BETWEEN, ENDINGS, one_line_shown, shown, unfit_letters
from wmlc.errors import InputError
from wmlc.files import read_text

if TYPE_CHECKING:
    from wmlc.data.sources import DataConfig, Part

# Words that begin so in the name of a file, or else of its folder, and the part that it is of
_WORDS = {
    part: re.compile(rf"(?<![a-z]){word}")
    for part, word in (("train", "train"), ("test", "test"), ("val", r"val(id(ation)?)?(?![a-z])"))
}
MOST_CLASSES = 1_000_000
_BRACES, _PATTERN = re.compile(r"\{([^{}]*)\}"), re.compile(r"[{*?\[]")
CLASS_FILES = ("classnames.txt", "classes.txt")  # a name a line, in the order of the labels


def read_shards(config: DataConfig, train: bool) -> Part:
    """The samples of the shards of a part: members of one name up to its first dot, a picture and its label.

    The label is .cls, a number, or else the number "label" or "cls" in .json.
    """
    samples = _listed(config.folder, train)
    labels = [label for _, label in samples]
    names = _class_names(config.folder, lambda: [label for _, label in _listed(config.folder, True)])
    return _part([name for name, _ in samples], labels, names, config.folder, files_of(config.folder, "*.tar", train))


def read_tables(config: DataConfig, train: bool) -> Part:
    """The rows of a part's parquet files, through `datasets`."""
    root, which = config.folder, "train" if train else "test"
    table, image, label = _table(str(root), train)
    labels = _labels_of(root, train)
    names = list(getattr(table.features[label], "names", None) or []) or _class_names(
        root, lambda: _labels_of(root, True)
    )
    rows = [BETWEEN.join((str(root), which, image, str(row))) for row in range(len(table))]
    return _part(rows, labels, names, root, files_of(root, "*.parquet", train))


def check_packed(config: DataConfig) -> None:
    """Raise `InputError` where there are no files of both parts, or nothing to read them with."""
    if config.name == "hf" and importlib.util.find_spec("datasets") is None:
        raise InputError(
            "hf needs the package datasets, which is not installed (pip install 'wmlc[hf]'); install it, or unpack the "
            "pictures into folders (--data imagefolder)"
        )
    for train in (True, False):
        files_of(config.folder, "*.tar" if config.name == "wds" else "*.parquet", train)


def files_of(root: Path, pattern: str, train: bool) -> list[Path]:
    """The files of a part, by their names or their folders', sorted; to test on, test before validation.

    Args: a folder that holds files of this `pattern`, or itself a pattern: {0000..0127}, {train,val}, *, ? and [a-z].
    """
    folder, files = (root, sorted(root.rglob(pattern))) if root.is_dir() else _expanded(root, pattern)
    parts = {path: _part_of(path.relative_to(folder)) for path in files}
    for part in ("train",) if train else ("test", "val"):
        if found := [path for path, its in parts.items() if its == part]:
            return found
    wanted = "train" if train else "test, val or validation"
    raise InputError(f"{root} has no {pattern} with {wanted} in its name; name the files so")


def _part_of(path: Path) -> str | None:
    """Which part a file is of, by its own name or else its nearest folder's; `InputError` where that says two."""
    for name in reversed(path.parts):
        if found := [part for part, word in _WORDS.items() if word.search(name.lower())]:
            if len(found) > 1:
                raise InputError(f"{shown(str(path))} is of {' and '.join(found)} by its name; name it one of them")
            return found[0]
    return None


def _expanded(wanted: Path, pattern: str) -> tuple[Path, list[Path]]:
    """The folder above all files of a pattern, and the files; `InputError` where one that it spells out is missing."""
    if re.search(r":/\w|^pipe:", str(wanted)):  # a Path has one slash of ://
        raise InputError(f"{wanted} is no path of this machine; fetch the files first, and name their folder")
    if not _PATTERN.search(str(wanted)):
        raise InputError(f"{wanted} is not a folder; name the one that holds {pattern} files")
    folder, files = _above(wanted), list[Path]()
    for name in _without_braces(str(wanted)):
        found = sorted(folder.glob(str(Path(name).relative_to(folder)))) if _PATTERN.search(name) else [Path(name)]
        if missing := next((one for one in found or [Path(name)] if not one.is_file()), None):
            raise InputError(f"{wanted} names {missing}, and there is no such file; mend the pattern")
        files += found
    return folder, files


def _above(root: Path) -> Path:
    """The folder itself, or the one above all files that a pattern may name."""
    while _PATTERN.search(str(root)) and not root.is_dir():
        root = root.parent
    return root


def _without_braces(text: str) -> list[str]:
    """The texts that {a,b} and {0000..0127} stand for, as in a shell."""
    found = _BRACES.search(text)
    if found is None:
        return [text]
    first, _, last = found[1].partition("..")
    if first.isdigit() and last.isdigit():
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        words = found[1].split(",")
    return [whole for word in words for whole in _without_braces(text[: found.start()] + word + text[found.end() :])]


def bytes_of(name: str) -> io.BytesIO:
    """The file of a packed picture, by its name."""
    where, *place = name.split(BETWEEN)
    if len(place) == 3 and not place[0].isdigit():
        which, image, row = place
        table, _, _ = _table(where, which == "train")
        found = table[int(row)][image]
        content = found.get("bytes") or (Path(found["path"]).read_bytes() if found.get("path") else None)
        if content is None:
            raise InputError("has neither bytes nor a path")
        return io.BytesIO(content)
    start, size, _ = place
    with Path(where).open("rb") as file:
        file.seek(int(start))
        return io.BytesIO(file.read(int(size)))


def _listed(root: Path, train: bool) -> list[tuple[str, int]]:
    """The name and the label of each sample of a part, as they are or were found."""
    shards = files_of(root, "*.tar", train)
    found: list[tuple[str, int]] = found_of_files(
        "shards", [str(own) for own in shards], "names, places, labels", lambda: _samples(shards)
    )
    return found


def _samples(shards: Sequence[Path]) -> list[tuple[str, int]]:
    """The name and the label of each sample; `InputError` for one that lacks either."""
    found = []
    with progress("reading shards", len(shards), "shards") as advance:
        for shard in shards:
            found += _of_shard(shard)
            advance(1)
    return found


def _of_shard(shard: Path) -> list[tuple[str, int]]:
    pictures = dict[str, tuple[str, str]]()  # a picture's ending, and where it is
    labels: dict[str, dict[str, int]] = {"json": {}, "cls": {}}  # by where it stands, the stronger last
    try:
        with tarfile.open(shard, "r:") as tar:  # not compressed: pictures are, and places have to be found again
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}"
                if not member.isfile() or not stem:
                    continue
                if f".{ending.lower().rpartition('.')[2]}" in ENDINGS:
                    place = BETWEEN.join((str(shard), str(member.offset_data), str(member.size), member.name))
                    pictures[key] = _the_picture(pictures.get(key), (ending, place), f"{shard}: {member.name}")
                elif ending in labels:
                    content = tar.extractfile(member)
                    assert content is not None
                    label = _label(content.read(), ending, f"{shard}: {member.name}")
                    labels[ending] |= {} if label is None else {key: label}
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{shown(str(shard))} is no readable tar ({one_line_shown(error)}); make it again") from None
    told = labels["json"] | labels["cls"]
    for key, (_, name) in pictures.items():
        if key not in told:
            raise InputError(f"{shown(name)} has no label; put a .cls or a .json with a number beside it in the shard")
    return [(name, told[key]) for key, (_, name) in pictures.items()]


def _the_picture(former: tuple[str, str] | None, other: tuple[str, str], where: str) -> tuple[str, str]:
    """Of two pictures of one key, as (ending, place), that whose ending is a format alone: jpg, and not mask.png."""
    if former is None:
        return other
    alone = [own for own in (former, other) if "." not in own[0]]
    if len(alone) != 1:
        raise InputError(
            f"{shown(where)} is a second picture of its key, after .{former[0]}, and nobody can tell which is meant; "
            "leave one out, or name the other like KEY.mask.png"
        )
    return alone[0]


def _label(content: bytes, ending: str, where: str) -> int | None:
    """None of a .json that tells other things, as of where a picture comes from."""
    try:
        found: Any = json.loads(content)
        if ending == "json":
            found = found.get("label", found.get("cls"))
            if found is None:
                return None
        if not _is_label(found):
            raise ValueError
        return int(found)
    except (ValueError, AttributeError):
        raise InputError(f"{shown(where)} holds no label; it must be a number from 0") from None


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_CLASSES


@functools.lru_cache(maxsize=4)
def _table(root: str, train: bool) -> tuple[Any, str, str]:
    """The rows of a part, and the names of the columns that hold pictures and labels."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it tells its makers of every set that is read

    files = [str(path) for path in files_of(Path(root), "*.parquet", train)]
    try:
        table = datasets.load_dataset("parquet", data_files={"part": files}, split="part")
    except Exception as error:  # of its own and of pyarrow's
        raise InputError(f"{root} is not readable as parquet ({one_line_shown(error)}); make it again") from None
    images = [name for name, feature in table.features.items() if _is_picture(feature)]
    labels = [name for name, feature in table.features.items() if hasattr(feature, "names")]
    labels += [name for name in ("label", "labels") if name in table.features and name not in labels]
    if not images or not labels:
        columns = ", ".join(table.features)
        raise InputError(
            f"{root} needs a column of pictures and one of labels, and has {columns}; name them image, label"
        )
    if isinstance(table.features[images[0]], datasets.Image):
        table = table.cast_column(images[0], datasets.Image(decode=False))
    return table, images[0], labels[0]


@functools.lru_cache(maxsize=4)
def _labels_of(root: Path, train: bool) -> list[int]:
    """The labels of a part's rows; `InputError` for the first that is none."""
    table, _, column = _table(str(root), train)
    labels = list(table[column])
    for row, value in enumerate(labels):
        if not _is_label(value):
            raise InputError(
                f"{root}: {column} of row {row} of {'train' if train else 'test'} is {shown(repr(value))}; it must be "
                f"the number of a class, from 0{'; to test on another part, move this one away' if not train else ''}"
            )
    return labels


def _is_picture(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _class_names(root: Path, trained_on: Callable[[], Sequence[int]]) -> list[str]:
    """Names by a file beside the data, else the numbers of the classes that are `trained_on`, asked only then."""
    found = next((file for name in CLASS_FILES if (file := _above(root) / name).is_file()), None)
    if found is None:
        return [str(label) for label in range(max(trained_on(), default=-1) + 1)]
    names = read_text(found, "list of class names", "give a name a line, in the order of the labels").splitlines()
    seen = set[str]()
    for number, name in enumerate(names):
        if not name.strip() or unfit_letters(name) or name in seen:
            what = "no name" if not name.strip() else f"{shown(name)} again" if name in seen else shown(name)
            raise InputError(
                f"{found} has {what} for class {number}; give each a name of its own, a line each, without control "
                f"characters"
            )
        seen.add(name)
    return names


def _part(paths: list[str], labels: list[int], class_names: list[str], root: Path, files: Sequence[Path]) -> Part:
    import torch

    from wmlc.data.sources import Part

    if labels and max(labels) >= len(class_names):
        raise InputError(
            f"{root} has a label {max(labels)} and {len(class_names)} classes; each needs a name and images to train on"
        )
    return Part(
        class_names=class_names, labels_N=torch.tensor(labels, dtype=torch.int64), paths=paths, where=str(root),
        hold=[str(file) for file in files],
    )  # fmt: skip
