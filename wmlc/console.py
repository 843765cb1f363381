"""What a person sees: progress on long work, and tables."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

UNKNOWN = "-"  # a number that there is not
WIDTH = 100  # columns that text is wrapped to

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def say(text: str, style: str = "") -> None:
    """One line to standard output, as it is; `style` (a colour) shows only where that is a terminal."""
    out.print(text, markup=False, style=style or None)


def note(text: str) -> None:
    """One line to standard error, beside a result on standard output."""
    err.print(text, markup=False)


@contextlib.contextmanager
def progress(label: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left, where that is a terminal; yields `advance(n)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(label, total=total, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[task].speed
            bar.update(task, advance=count, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


def say_notes(lines: Sequence[str], *, markdown: bool = False) -> None:
    """Remarks below a table, each wrapped, or as an item of a Markdown list."""
    for line in lines:
        say(f"- {line}" if markdown else textwrap.fill(f"note: {line}", WIDTH, subsequent_indent="      "))


def digits(value: float | None) -> str:
    """Three significant digits or more: 0.120, 12.3, 123.4, 1,234."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:#.3g}"


def scaled(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5 or unit == "G":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")
