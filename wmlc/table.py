"""One kind of table for all rooms: in a terminal, as Markdown, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmlc.console import WIDTH, as_markdown, say, visible

FORMATS = ("table", "md", "csv", "json")  # of everything that prints one


@dataclass(frozen=True)
class Table:
    """A header and rows of texts.

    The first `words` columns stand to the left, numbers to the right. In a terminal, what follows a line feed in a text
    stands below it, and so does what is longer than `first_letters` in the first column.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: int = 1
    first_letters: int | None = None
    colours: Sequence[str] = ()  # of each row, where the terminal has any
    values: Sequence[Sequence[Any]] = ()  # of each text, for a page to sort by; None: not measured

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """Of records that need not have the same keys: a column a key, a row a record, None left empty."""
        header = list(dict.fromkeys(key for record in records for key in record))
        return cls(header, [[_plain(record.get(key)) for key in header] for record in records])

    def show(self, *, markdown: bool = False) -> None:
        """Print it, whole at any width of the terminal."""
        if markdown:
            say(self.markdown())
            return
        if self.title:
            say(textwrap.fill(visible(self.title), WIDTH), "bold")
        for line, colour in zip(self.lines(), self._colours(), strict=True):
            say(line, colour)

    def lines(self) -> list[str]:
        """The header and the rows, aligned."""
        lines = [line for row in [self.header, *self.rows] for line in self._stacked(row)]
        return ["  ".join(texts).rstrip() for texts in self._aligned(lines)]

    def markdown(self) -> str:
        """A table of Markdown under its title, which shows the texts as they are."""
        flat = [[as_markdown(text) for text in row] for row in [self.header, *self.rows]]
        widths = _widths(flat)
        rule = ["-" * w if i < self.words else "-" * max(w - 1, 1) + ":" for i, w in enumerate(widths)]
        head, *body = self._aligned(flat)
        title = [f"**{as_markdown(self.title)}**", ""] if self.title else []
        return "\n".join([*title, *(f"| {' | '.join(texts)} |" for texts in [head, rule, *body])])

    def csv(self) -> str:
        """A line a row."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()

    def _stacked(self, row: Sequence[str]) -> list[list[str]]:
        """A row as lines: what stands behind a line feed goes on below."""
        parts = [visible(text).split("\n") for text in row]
        if self.first_letters:
            parts[0] = textwrap.wrap(visible(row[0]), self.first_letters)
        return [[part[i] if i < len(part) else "" for part in parts] for i in range(max(map(len, parts)))]

    def _colours(self) -> list[str]:
        """The header's, and each line's."""
        given = self.colours or [""] * len(self.rows)
        head = ["bold"] * len(self._stacked(self.header))
        return head + [c for row, c in zip(self.rows, given, strict=True) for _ in self._stacked(row)]

    def _aligned(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        widths = _widths(rows)
        return [
            [
                text.ljust(w) if i < self.words else text.rjust(w)
                for i, (text, w) in enumerate(zip(r, widths, strict=True))
            ]
            for r in rows
        ]


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
