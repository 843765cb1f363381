"""One kind of table for all rooms: in a terminal, as Markdown, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wmlc.console import say

FORMATS = ("table", "md", "csv", "json")  # of everything that prints one


@dataclass(frozen=True)
class Table:
    """A header and rows of texts.

    The first `words` columns stand to the left, numbers to the right. What follows a line feed in a text stands
    below it in a terminal.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: int = 1
    colours: Sequence[str] = ()  # of each row, where the terminal has any

    def show(self, *, markdown: bool = False) -> None:
        """Print it, whole at any width of the terminal."""
        if markdown:
            say(self.markdown())
            return
        if self.title:
            say(self.title, "bold")
        for line, colour in zip(self.lines(), self._colours(), strict=True):
            say(line, colour)

    def lines(self) -> list[str]:
        """The header and the rows, aligned."""
        return ["  ".join(cells).rstrip() for cells in self._aligned([self.header, *self._split()])]

    def markdown(self) -> str:
        """A table of Markdown under its title; a bar in a text is escaped."""
        flat = [[cell.replace("\n", " ").replace("|", "\\|") for cell in row] for row in [self.header, *self.rows]]
        widths = _widths(flat)
        rule = ["-" * w if i < self.words else "-" * max(w - 1, 1) + ":" for i, w in enumerate(widths)]
        head, *body = self._aligned(flat)
        title = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*title, *(f"| {' | '.join(cells)} |" for cells in [head, rule, *body])])

    def csv(self) -> str:
        """A line a row."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """An object a row, for JSON."""
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]

    def _split(self) -> list[list[str]]:
        """The rows as lines: what stands behind a line feed goes on below."""
        lines = []
        for row in self.rows:
            parts = [cell.split("\n") for cell in row]
            lines += [[p[i] if i < len(p) else "" for p in parts] for i in range(max(map(len, parts)))]
        return lines

    def _colours(self) -> list[str]:
        """The header's, and each line's."""
        found = ["bold"]
        for row, colour in zip(self.rows, self.colours or [""] * len(self.rows), strict=True):
            found += [colour] * max(cell.count("\n") + 1 for cell in row)
        return found

    def _aligned(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        widths = _widths(rows)
        return [
            [
                cell.ljust(w) if i < self.words else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(r, widths, strict=True))
            ]
            for r in rows
        ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
