"""What the commands of `cli.py` share: errors as one line and an exit code, options, and numbers in text."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wmlc.errors import GateError, InputError
from wmlc.forms import TARGETS


class Fixable(click.ClickException):
    """Shown as one line; the caller can act on it."""

    exit_code = InputError.exit_code


class GateMissed(click.ClickException):
    """Shown as one line; something measured misses a bound."""

    exit_code = GateError.exit_code


class Cli(click.Group):
    """Turns errors that the caller can act on into one line and their exit code."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = shlex.join(["wmlc", *args])  # before click takes them apart
        context = super().make_context(info_name, args, parent, **extra)
        context.meta["words"] = words
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise Fixable(_one_line(error)) from error
        except GateError as error:
            raise GateMissed(_one_line(error)) from error
        except click.MissingParameter:
            raise
        except click.BadParameter as error:  # a wrong value, not a wrong command line
            raise Fixable(error.format_message()) from error
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            raise Fixable(f"{error.strerror or error}{place}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


PATH = click.Path(path_type=Path)
run_option = click.option(
    "--run", "run_name", type=PATH, help="A run's directory or its name under runs/.  [default: the newest]"
)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def precision_option(default: str, metavar: str, text: str) -> Callable[[Any], Any]:
    return click.option("--precision", default=default, show_default=True, metavar=metavar, help=text)


target_option = click.option(
    "--target", metavar="|".join(TARGETS), help="What an int8 file shall run on.  [default: gpu for TensorRT, else cpu]"
)


def command_words() -> str:
    """The command that runs, as it was typed."""
    return str(click.get_current_context().find_root().meta["words"])


def names(text: str) -> tuple[str, ...]:
    """The names in "torch,ort"."""
    return tuple(part.strip() for part in text.split(","))


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """The numbers in "1,8"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be whole numbers with commas between them, like 1,8; got {text!r}") from None


def three_sizes(text: str) -> tuple[int, int, int]:
    numbers = whole_numbers("--batch-range", text)
    if len(numbers) != 3:
        raise InputError(f"--batch-range must be three batch sizes, like 1,8,32; got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def ratios(text: str | None) -> tuple[float, ...] | None:
    """The numbers in "0.7,0.5"."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--ratios must be numbers with commas between them, like 0.7,0.5,0.3,0; got {text!r}"
        ) from None
