"""A model repository on disk: its versions, and how a new one gets there without anybody seeing half of it."""

from __future__ import annotations

import contextlib
import glob
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wmlc import records
from wmlc.console import note
from wmlc.data.normalisation import Normalisation
from wmlc.errors import InputError
from wmlc.files import OURS, flush
from wmlc.records import Manifest

MANIFEST_FILE = "manifest.json"
LABELS_FILE, TRITON_CONFIG = "labels.txt", "config.pbtxt"  # beside the versions of a model, which share them


def newest_version(model: Path) -> int:
    """The highest version of a model in a repository, 0 if there is none."""
    return max((int(path.name) for path in model.glob("*") if path.is_dir() and path.name.isdecimal()), default=0)


def free_version(model: Path) -> int:
    """A version above all that a model in a repository has, and above those that were set aside there, as away-2."""
    return 1 + max((_number(path) for path in model.glob("*")), default=0)


def _number(path: Path) -> int:
    """The version that a directory holds, also where it is set aside; 0 of anything else.

    Set aside it begins with letters, as Triton takes 2.away for version 2.
    """
    named = re.fullmatch("(?:away-)?([0-9]+)", path.name)
    return int(named[1]) if named and path.is_dir() else 0


def models_in(repository: Path) -> list[Path]:
    """The models of a repository that wmlc shipped, by name; others have no manifest."""
    versions = {path: path / str(newest_version(path)) for path in repository.glob("*") if newest_version(path)}
    return sorted(path for path, newest in versions.items() if (newest / MANIFEST_FILE).exists())


def refuse_foreign(model: Path) -> None:
    """Raise `InputError` where a model of that name is there that wmlc did not ship, and which would be overwritten."""
    if newest_version(model) or not model.exists():
        return
    if not model.is_dir() or (any(model.iterdir()) and not _is_left_of_ours(model)):
        raise InputError(f"{model} was not shipped by wmlc, which would overwrite it; ship into another --out")


def _is_left_of_ours(model: Path) -> bool:
    """Whether a directory has just what is left of a model of ours whose versions have all been moved or set aside."""
    if {path.name for path in model.iterdir() if not _number(path)} != {LABELS_FILE, TRITON_CONFIG}:
        return False
    return f'label_filename: "{LABELS_FILE}"' in (model / TRITON_CONFIG).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def staging_beside(repository: Path) -> Iterator[Path]:
    """A directory on the repository's file system and outside it: a server would take one inside for a model.

    Whoever asks has `wmlc.files.locked` the repository; what a killed one left goes.
    """
    parent = repository.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    if repository.is_dir() and repository.stat().st_dev != parent.stat().st_dev:
        raise InputError(
            f"{repository} is a mount of its own, and a version can only be renamed into it from beside it; "
            "choose --out inside the mount"
        )
    name = repository.resolve().name
    for left in parent.glob(f".{glob.escape(name)}.ship-*{OURS}"):  # by a kill: who ships now has the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.ship-", suffix=OURS) as directory:
        yield Path(directory)


def read_manifest(version: Path, remedy: str = "ship it again") -> Manifest:
    """The manifest of one version of a model."""
    return records.read(version / MANIFEST_FILE, Manifest, "manifest", remedy)


def check_same_interface(manifest: Manifest, model: Path) -> None:
    """Versions of a model share its configuration, so they must be called alike, by the same kind of server."""
    former = read_manifest(model / str(newest_version(model)), "ship into another --out")
    for key in ("server", "file", "input", "output", "labels", "arch_args"):
        if getattr(former, key) not in (getattr(manifest, key), None):
            raise InputError(
                f"{manifest.model} {former.version} in this repository has another {key} than the new one; "
                "ship into another --out"
            )
    was, now = former.preprocess, manifest.preprocess
    alike = Normalisation(tuple(was.mean), tuple(was.std)).is_near(Normalisation(tuple(now.mean), tuple(now.std)))
    if was.inside != now.inside or was.framing != now.framing or not (now.inside or alike):
        raise InputError(
            f"{manifest.model} {former.version} in this repository takes pictures in another way ({was.formula}, "
            f"{was.framing.words}) than the new one ({now.formula}, {now.framing.words}), and its clients would go on "
            "with that; ship into another --out"
        )
    if manifest.plan is not None and manifest.max_batch > former.max_batch:
        note(
            f"{manifest.model} {former.version} was shipped for {former.max_batch} images a call, and what versions "
            f"share will say {manifest.max_batch}, which its plan may not take; to be able to go back to it, ship with "
            f"--max-batch {former.max_batch}"
        )


def publish(staged: Path, model: Path, version: int, *, replace: bool) -> Path:
    """Move a staged model into the repository so that a server watching it never sees half a version.

    A new model or a new version comes by one rename. A version that is replaced changes file by file, the
    model first, as a rename of a directory over another would leave a moment without any.
    """
    target = model / str(version)
    for path in staged.rglob("*"):
        flush(path)
    if not model.exists():
        staged.replace(model)
        flush(model.parent)
        return target
    if target.exists() and not replace:
        raise InputError(f"{target} was made by somebody else meanwhile; ship again")
    if target.exists():
        for path in sorted((staged / str(version)).iterdir(), key=lambda path: not path.name.startswith("model.")):
            path.replace(target / path.name)
    for path in staged.iterdir():  # shared by all versions; the old ones are served with it as well
        if path.is_file() and not _same(path, model / path.name):
            path.replace(model / path.name)
    if not target.exists():
        (staged / str(version)).replace(target)
    flush(model)
    return target


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()
