"""Pictures that cannot be read: found once, named, and left out where that was asked for (`--skip-broken`)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from wmlc.console import note, progress
from wmlc.data.listing import found_of_files
from wmlc.data.pictures import REPAIR, read_picture
from wmlc.errors import InputError

if TYPE_CHECKING:
    from wmlc.data.sources import Part

_NAMED = 3  # broken pictures, in one line
_AT_ONCE = 1024  # pictures that are given to the threads together


def without_broken(part: Part, workers: int) -> Part:
    """The part without the pictures that cannot be read, which are counted and the first of them named.

    All of them are opened and decoded, in as many threads as there are `workers`, the first time that these very files
    are asked about; later those that were broken then, as a disk or a right may have been what was in the way.
    """
    if not part.paths:
        return part
    former: dict[str, str] = found_of_files(
        "broken", part.paths, "whole", lambda: _broken(part.paths, workers), part.hold
    )
    broken = _broken([path for path in part.paths if path in former], workers) if former else {}
    if not broken:
        return part
    named = "; ".join(list(broken.values())[:_NAMED])
    more = f"; and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
    plural = "s" * (len(broken) > 1)
    note(f"skipped {len(broken):,} broken picture{plural} of {len(part.paths):,} in {part.where}: {named}{more}")
    whole = [place for place, path in enumerate(part.paths) if path not in broken]
    return replace(part, paths=[part.paths[place] for place in whole], labels_N=part.labels_N[whole])


def _broken(paths: Sequence[str], workers: int) -> dict[str, str]:
    """The pictures that cannot be read, each with why."""
    found: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool, progress("looking for broken pictures", len(paths)) as advance:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            found |= {path: words for path, words in zip(some, pool.map(_fault, some), strict=True) if words}
            advance(len(some))
    return found


def _fault(path: str) -> str:
    try:
        read_picture(path)
    except InputError as error:
        return str(error).removesuffix(REPAIR)
    return ""
