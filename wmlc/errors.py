"""The errors a caller can act on, each with its exit code, and what others' errors say in one line."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """The caller can fix this; the one-line message says what came, what is allowed and what to do."""

    exit_code = 1


class Stopped(InputError):
    """The caller pressed Ctrl-C; the one-line message says how to go on."""

    exit_code = 130  # as a shell reports SIGINT


class EngineFailed(Exception):
    """An engine gave no number: it crashed, hung or raised; the message is one line."""


class GateError(Exception):
    """A measured value missed a bound that the caller set (`--max-drop`, `--min-speedup`, `--min-top1` …)."""

    exit_code = 3


def one_line(said: object, most: int | None = 400) -> str:
    """What an error or a text says, without line breaks and cut to `most` characters; a mute error says its class."""
    text = " ".join(str(said).split())
    if not text and isinstance(said, Exception):
        text = type(said).__name__
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def some_of(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are: a, b, c and 4 more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plain(name: str) -> str:
    """What a file or a library says, with nothing in it that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
