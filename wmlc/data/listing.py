"""What was found out about many picture files, kept for the next time: which there are, and that they can be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmlc.data.folders import BROKEN_LINK, UNREADABLE, Found, find_pictures
from wmlc.errors import InputError
from wmlc.files import found_once, new_file, user_cache

MANY = 20_000  # files, below which a walk is as quick as reading what was kept
SETTLED_NS = 2 * 10**9  # a folder that changed later than so long before the walk may have changed again since
FORM = 1  # of what is kept


def listed(folder: Path, classes: Mapping[str, Path], others: Sequence[Path] = ()) -> Found:
    """`find_pictures`, once: of many pictures again only when a folder among them has changed.

    A folder's time of change tells of files that came, went or were renamed. Nothing is kept where that does not tell:
    where links lead to other folders or to nothing, and of folders that could not be read.
    """
    file = _place("listings", str(folder.resolve()))
    names = {name: str(path) for name, path in classes.items()}
    if (kept := _kept(file, names)) is not None:
        return kept
    start = time.time_ns()
    found = find_pictures(folder, classes, others)
    settled = found.folders and max(found.folders.values()) < start - SETTLED_NS
    settled = settled and not found.skipped.keys() & {UNREADABLE, BROKEN_LINK}
    if settled and len(found.paths) >= MANY:
        record = {"form": FORM, "classes": names} | vars(found)
        with contextlib.suppress(OSError, InputError), new_file(file) as aside:  # no cache is no error
            aside.write_text(json.dumps(record), encoding="utf-8", errors="surrogatepass")
    return found


def _kept(file: Path, classes: dict[str, str]) -> Found | None:
    """What was kept, if it is of these classes and no folder has changed."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
        if record["form"] != FORM or record["classes"] != classes:
            return None
        if any(Path(place).stat().st_mtime_ns != changed for place, changed in record["folders"].items()):
            return None
        return Found(record["paths"], record["labels"], record["skipped"], record["folders"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def found_of_files(
    what: str, paths: Sequence[str], how: str, find_out: Callable[[], Any], hold: Sequence[str] = ()
) -> Any:
    """What was found out of these very files, by name, size and time of change, as JSON holds it.

    `find_out` is asked where nothing is kept, or what is kept is damaged. Args: what is found out; the files; what else
    it hangs on; of packed pictures, the files that `hold` them.
    """
    digest = hashlib.sha256(how.encode())
    for path in paths if hold else ():
        digest.update(f"{path}\n".encode(errors="surrogatepass"))
    for path in hold or paths:
        digest.update(f"{path}\0{_state(path)}\n".encode(errors="surrogatepass"))
    return found_once(_place(what, digest.hexdigest()), find_out)


def _state(path: str) -> str:
    """A file's size and time of change; that it is not there, as the target of a link may be."""
    try:
        found = Path(path).stat()
    except OSError:
        return "gone"
    return f"{found.st_size}\0{found.st_mtime_ns}"


def _place(kind: str, of: str) -> Path:
    return user_cache() / kind / hashlib.sha256(of.encode(errors="surrogatepass")).hexdigest()[:32]
