"""Files that are either whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wmlc.errors import InputError

FORMER = ".former"  # what a directory is called while its successor takes its name


def refuse_existing(path: Path, force: bool, marker: str | None = None) -> None:
    """Raise `InputError` where `path` exists and may not be overwritten.

    Even `force` replaces a directory only if it is empty or holds the file `marker`, as our own do.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists already; choose another --out, or pass --force to replace it")
    if path.is_dir() and any(path.iterdir()) and not (marker and (path / marker).is_file()):
        raise InputError(f"{path} is a directory that wmlc did not make; choose another --out")


def check_writable(path: Path) -> None:
    """Raise `InputError` where nothing could be written at `path`, before long work is done for it."""
    _aside(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it becomes `path` only if the block succeeds."""
    aside = _aside(path)
    try:
        yield aside
        flush(aside)
        aside.replace(path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory beside `path` to fill; it replaces `path` only if the block succeeds.

    An existing `path` stays readable until the rename; a kill between the two renames leaves it
    whole under `path.name + '.former'`, where `recover_directory` finds it.
    """
    aside = _aside(path)
    try:
        aside.mkdir()
        yield aside
        for file in aside.rglob("*"):
            flush(file)
        flush(aside)
        former = path.with_name(path.name + FORMER)
        replacing = path.exists()
        if replacing:
            shutil.rmtree(former, ignore_errors=True)
            path.replace(former)
        aside.replace(path)
        flush(path.parent)
        if replacing:
            shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Clear up after a kill in `new_directory`: what it was writing goes, what it had moved away comes back."""
    clear_asides(path.parent, path.name)
    former = path.with_name(path.name + FORMER)
    if former.is_dir() and not path.exists():
        former.replace(path)


def clear_asides(directory: Path, name: str = "*") -> None:
    """Remove what killed processes had begun to write in `directory`."""
    for aside in directory.glob(f".{name}.*"):
        if aside.suffix[1:].isdecimal():
            _discard(aside)


MOST_BYTES = 16 << 20  # of a file of text that is read; ours have some hundred kilobytes, few a megabyte


def read_text(path: Path, what: str, remedy: str) -> str:
    """The text in a regular file of bounded size, or an `InputError` that names `what` it should be and the `remedy`.

    A pipe or a device in its place is refused, as reading one may never end.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file, so there is no {what} in it; {remedy}")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path} has {size:,} bytes, a {what} has at most {MOST_BYTES:,}; {remedy}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so there is no {what} here; {remedy}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a readable {what} (it is no UTF-8: {error.reason}); {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON, whole or not at all."""
    with new_file(path) as aside:
        aside.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a directory."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _aside(path: Path) -> Path:
    """A fresh name beside `path`, on the same file system, in a directory that exists."""
    if not path.name:
        raise InputError(f"cannot write {path}: it names no file or directory; choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error} at {path.parent}; choose another place"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: {path.parent} is not writable; choose another place")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    _discard(aside)
    return aside


def _discard(path: Path) -> None:
    remove: Callable[[Path], Any] = shutil.rmtree if path.is_dir() else lambda p: p.unlink(missing_ok=True)
    remove(path)


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
