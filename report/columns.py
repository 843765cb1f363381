"""A page's tables by their columns: each text with the value that it is sorted by, and no column that holds nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wmlc.report.series import UNKNOWN
from wmlc.table import Table

Sortable = tuple[float | str | None, str]  # what a column is sorted by, what is shown


def told(value: float | str | None, words: Callable[[float], str] | None = None) -> Sortable:
    """A number in `words`, or words as they are; a dash for what is not known."""
    if value is None:
        return None, UNKNOWN
    return value, value if isinstance(value, str) else words(value) if words else str(value)


def filled(lines: Sequence[Mapping[str, Sortable]], title: str) -> Table:
    """A table of `lines`, each by column title, without the columns that hold nothing."""
    titles = [name for name in lines[0] if any(line[name][1] not in ("", UNKNOWN) for line in lines)]
    return Table(
        titles,
        rows=[[line[name][1] for name in titles] for line in lines],
        values=[[line[name][0] for name in titles] for line in lines],
        title=title,
    )
