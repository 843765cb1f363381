"""What a person sees: progress on long work, and tables."""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wmlc.ranks import launched

UNKNOWN = "-"  # a number that there is not
WIDTH = 100  # columns that text is wrapped to
TELL_S = 20  # between two lines of progress where there is no terminal

QUIET = not launched().first  # of several processes that train together one speaks
out = Console(soft_wrap=True, highlight=False, emoji=False, quiet=QUIET)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False, quiet=QUIET)


# What a terminal would obey instead of showing: control characters (but the line feed, which is layout), what turns the
# direction of writing around or breaks a line; and halves of characters, as in names that are no Unicode
_HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\|`*<]|(?<=\])\(")  # what Markdown would obey; a bracket alone is none


def visible(text: str) -> str:
    """`text` with what a terminal would obey spelled out, as \\x1b: names come from folders and files of others."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def as_markdown(text: str) -> str:
    """`text` as Markdown that shows it as it is, on one line."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], visible(text.replace("\n", " ")))


def say(text: str, style: str = "") -> None:
    """Text to standard output, `visible`; `style` (a colour) shows only where that is a terminal."""
    out.print(visible(text), markup=False, style=style or None)


def say_exactly(text: str) -> None:
    """JSON or CSV to standard output, letter by letter, for another program."""
    print(_HALVES.sub(lambda found: ascii(found[0])[1:-1], text), file=out.file)


def note(text: str) -> None:
    """One line to standard error, beside a result on standard output."""
    err.print(visible(text), markup=False)


@contextlib.contextmanager
def progress(label: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left, or a line now and then where that is no terminal.

    Yields `advance(n)`.
    """
    columns = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}", markup=False))
    with _bar(columns) as bar:
        task, done = bar.add_task(visible(label), total=total, rate=""), 0
        start = told = time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, told
            speed, done, now = bar.tasks[task].speed, done + count, time.monotonic()
            bar.update(task, advance=count, rate=f"{speed:,.0f} {unit}/s" if speed else "")
            if not err.is_terminal and done < total and now - told >= TELL_S:
                left = timedelta(seconds=round((now - start) * (total - done) / done))
                note(f"{label}: {done:,} of {total:,}, {left} left")
                told = now

        yield advance


@dataclass
class LongWork:
    """Work of several parts, each as much as it says: how far it is, and how long the rest takes at the pace so far."""

    total: float
    tell: Callable[[str, float], None]  # the bar: what is done now, and how much of `total`
    done: float = 0.0
    here: float = 0.0  # of `done`, in this process: the pace is taken from it
    start: float = field(default_factory=time.monotonic)

    def skip(self, amount: float) -> None:
        """So much had been done before."""
        self.done += amount

    def advance(self, amount: float, label: str) -> None:
        """So much more is done, of what `label` says."""
        self.done, self.here = self.done + amount, self.here + amount
        self.tell(label, self.done)

    @property
    def left(self) -> str:
        """The time until all is done, as 1:02:03."""
        if not self.here:
            return UNKNOWN
        seconds = (time.monotonic() - self.start) * max(self.total - self.done, 0.0) / self.here
        return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def long_work(total: float) -> Iterator[LongWork]:
    """One bar with the time left over all parts of long work, below what `say` prints meanwhile."""
    share = TextColumn("{task.percentage:>3.0f} %", markup=False)
    with _bar((share,), keeps_lines=True) as bar:
        task = bar.add_task("", total=total)
        yield LongWork(total, lambda label, done: bar.update(task, description=visible(label), completed=done))


def _bar(columns: Sequence[Any], keeps_lines: bool = False) -> Progress:
    """A bar with time passed and left on standard error, where that is a terminal.

    Args: whether lines printed meanwhile stand above it; not where standard output goes elsewhere, as rich would send
    them to the terminal too.
    """
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), *columns, TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=err, transient=True, disable=QUIET or not err.is_terminal,
        redirect_stdout=not keeps_lines or (sys.stdout is not None and sys.stdout.isatty()),
        speed_estimate_period=300 if keeps_lines else 30,
    )  # fmt: skip


def say_notes(lines: Sequence[str], *, markdown: bool = False) -> None:
    """Remarks below a table, each wrapped, or as an item of a Markdown list."""
    for line in lines:
        say(
            f"- {as_markdown(line)}"
            if markdown
            else textwrap.fill(f"note: {visible(line)}", WIDTH, subsequent_indent="      ")
        )


def digits(value: float | None) -> str:
    """Three significant digits or more: 0.120, 12.3, 123.4, 1,234."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:#.3g}"


def ms_text(ms: float) -> str:
    """Milliseconds in a sentence: three significant digits, as short as they go, or more: 2, 12.3, 123.4, 1,234."""
    return digits(ms) if ms >= 100 else f"{ms:.3g}"


def scaled(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5 or unit == "G":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")
