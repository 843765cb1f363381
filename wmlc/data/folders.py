"""A folder with a folder a class → the picture files in it, and what else lies there.

Every real directory is visited once, by its device and inode, however many links lead to it; what notebooks, network
drives and archives leave behind is passed over. What is passed over is counted.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wmlc.data.pictures import ENDINGS, shown, unfit_letters
from wmlc.errors import InputError

_MOST_KINDS = 8  # of what was skipped, named in one line
UNREADABLE, BROKEN_LINK = "unreadable folder", "broken link"

Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Found:
    """The pictures of a part, ordered by class, folder and name, with the class of each."""

    paths: list[str]
    labels: list[int]
    skipped: dict[str, int]  # what was passed over → how often, the most frequent first
    folders: dict[
        str, int
    ]  # every folder that was walked → when it last changed, in ns; none where links were followed


@dataclass
class _Walk:
    """Where a walk has been, and what it has seen."""

    seen: set[Identity]
    skipped: Counter[str] = field(default_factory=Counter)
    links: list[tuple[int, str]] = field(default_factory=list)  # links to folders, with the class that they lie in
    files: list[tuple[int, str, list[str]]] = field(default_factory=list)  # class, folder, names in it
    folders: dict[str, int] = field(default_factory=dict)  # when each last changed, before it was walked


def is_left_behind(name: str) -> bool:
    """Whether an entry is no part of a data set: hidden, a network drive's (@eaDir) or an archive's (__MACOSX)."""
    return name.startswith((".", "@")) or name == "__MACOSX"


def class_folders(folder: Path) -> dict[str, Path]:
    """The class folders in `folder` by their names in Unicode's form NFC, sorted; `InputError` for an unfit name."""
    entries = [entry for entry in folder.iterdir() if not is_left_behind(entry.name) and _is_folder(entry)]
    found: dict[str, Path] = {}
    for path in sorted(entries):
        if letters := unfit_letters(path.name):
            what = "what is no Unicode" if _not_unicode(path.name) else "a control character"
            raise InputError(
                f"the class folder {shown(str(path))} has {what} in its name ({', '.join(letters)}); rename it"
            )
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise InputError(
                f"{shown(str(folder))} has two folders called {name}, which differ in their Unicode form only; "
                f"merge them"
            )
        found[name] = path
    return dict(sorted(found.items()))


def check_root(root: Path) -> None:
    """Raise `InputError` where no record could hold the path of a data set, as it is or without its links."""
    if letters := unfit_letters(f"{root.absolute()}{root.resolve()}"):
        raise InputError(
            f"{shown(str(root))} has {', '.join(letters)} in its name, a control character or what is no Unicode; "
            f"rename it"
        )


def refuse_same_folder(folders: Iterable[Path]) -> None:
    """Raise `InputError` where two class folders are one and the same, by a link."""
    seen: dict[Identity, Path] = {}
    for folder in folders:
        twin = seen.setdefault(_identity(folder), folder)
        if twin is not folder:
            raise InputError(
                f"{shown(str(twin))} and {shown(str(folder))} are the same folder; give each its own pictures"
            )


def find_pictures(folder: Path, classes: Mapping[str, Path], others: Sequence[Path] = ()) -> Found:
    """The pictures in the `classes` of the part `folder`.

    Args: the `others`, folders of other parts, whose pictures are no part of this one even where a link leads to them.
    """
    # No link leads back up, and what belongs to a class belongs to it alone.
    above = [path for place in (folder, folder.resolve()) for path in (place, *place.absolute().parents)]
    walk = _Walk({_identity(path) for path in [*above, *classes.values()]})
    _count_strays(folder, walk)
    linked = any(path.is_symlink() for path in classes.values())
    if linked:
        walk.seen |= _folders_in(others)
    for label, path in enumerate(classes.values()):
        _visit(str(path), label, walk, required=True)
    linked |= bool(walk.links)
    if walk.links:
        walk.seen |= _folders_in(others)
    while walk.links:
        label, place = walk.links.pop(0)
        identity = _identity(Path(place))
        if identity in walk.seen:
            walk.skipped["link to a folder that counts already"] += 1
        else:
            walk.seen.add(identity)
            _visit(place, label, walk)
    paths: list[str] = []
    labels: list[int] = []
    for label, place, names in sorted(walk.files):
        paths += [place + os.sep + name for name in names]
        labels += [label] * len(names)
    skipped = dict(sorted(walk.skipped.items(), key=lambda kind: (-kind[1], kind[0])))
    return Found(paths, labels, skipped, {} if linked else walk.folders)


def in_words(skipped: Mapping[str, int]) -> str:
    """What was passed over, in one line: 3 .txt, 2 hidden, 1 unreadable folder."""
    kinds = [f"{count:,} {_plural(what, count)}" for what, count in list(skipped.items())[:_MOST_KINDS]]
    rest = sum(list(skipped.values())[_MOST_KINDS:])
    return ", ".join(kinds) + (f" and {rest:,} more" if rest else "")


def _folders_in(others: Sequence[Path]) -> set[Identity]:
    """The real directories of other parts, at every depth."""
    return {_identity(Path(place)) for other in others for place, _, _ in os.walk(other)}


def _visit(place: str, label: int, walk: _Walk, required: bool = False) -> None:
    """Take in the pictures of a directory and of the real directories below it; links to others are left for later."""
    waiting = [place]
    while waiting:
        place = waiting.pop()
        try:
            walk.folders[place] = Path(place).stat().st_mtime_ns
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            if required:
                raise
            walk.skipped[UNREADABLE] += 1
            continue
        required, names = False, []
        for entry in entries:
            if is_left_behind(entry.name):
                walk.skipped["hidden"] += 1
            elif _is_folder(entry):
                if entry.is_symlink():
                    walk.links.append((label, entry.path))
                elif (identity := _identity(entry)) in walk.seen:
                    walk.skipped["folder that counts already"] += 1
                else:
                    walk.seen.add(identity)
                    waiting.append(entry.path)
            elif kind := _no_picture(entry):
                walk.skipped[kind] += 1
            else:
                names.append(entry.name)
        walk.files.append((label, place, names))


def _count_strays(folder: Path, walk: _Walk) -> None:
    """Count what lies beside the class folders of a part."""
    walk.folders[str(folder)] = folder.stat().st_mtime_ns
    for entry in os.scandir(folder):
        if is_left_behind(entry.name):
            walk.skipped["hidden"] += 1
        elif not _is_folder(entry):
            walk.skipped[_no_picture(entry) or "picture outside the class folders"] += 1


def unlabelled(folder: Path) -> int:
    """How many pictures lie in a folder itself, in none of its folders."""
    return sum(1 for entry in os.scandir(folder) if not is_left_behind(entry.name) and not _no_picture(entry))


def _no_picture(entry: os.DirEntry[str]) -> str | None:
    """What an entry is that counts as no picture, by its ending; None for a picture."""
    stem, dot, ending = entry.name.lower().rpartition(".")  # a Path's suffix takes 2 s a million files
    if not (stem and dot and ending):
        return "file without an ending"
    if f".{ending}" not in ENDINGS:
        return shown(f".{ending}")[:20]
    try:
        # A pipe among pictures would never end, and a device may not either.
        if entry.is_file():
            return None
        return BROKEN_LINK if entry.is_symlink() and not Path(entry.path).exists() else "pipe or device"
    except OSError:  # links in a circle
        return BROKEN_LINK


def _is_folder(entry: os.DirEntry[str] | Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(entry: os.DirEntry[str] | Path) -> Identity:
    found = Path(entry).stat()
    return found.st_dev, found.st_ino


def _not_unicode(name: str) -> bool:
    return any(unicodedata.category(letter) == "Cs" for letter in name)


def _plural(what: str, count: int) -> str:
    """Endings and "hidden" are the same for many."""
    if count == 1 or what.startswith(".") or what == "hidden":
        return what
    first, *rest = what.split(" ", 1)
    if what in (UNREADABLE, BROKEN_LINK):
        return what + "s"
    return {"pipe": "pipes or devices"}.get(first) or " ".join([first + "s", *rest])
