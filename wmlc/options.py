"""What the commands of `cli.py` share: options made of a configuration's fields, and errors as one line.

A field made by `wmlc.settings.setting` says its option's help, and its annotation what the option takes.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from wmlc.arch import needs_caller
from wmlc.console import visible
from wmlc.errors import GateError, InputError, Stopped, one_line
from wmlc.settings import AUTO, BUDGET, CALLERS_ARCH, option_of
from wmlc.table import FORMATS

if TYPE_CHECKING:
    from wmlc.run import Run


class _Named(click.Path):
    """A path with a name: an empty one, as an unset variable leaves it, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a file or a directory", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Named(path_type=Path)


class Fixable(click.ClickException):
    """Shown as one line, whatever a name in it holds; the caller can act on it."""

    exit_code = InputError.exit_code

    def __init__(self, error: Exception | str) -> None:
        super().__init__(visible(one_line(error, None)))


class Interrupted(Fixable):
    """The caller pressed Ctrl-C."""

    exit_code = Stopped.exit_code


class GateMissed(Fixable):
    """Something measured misses a bound."""

    exit_code = GateError.exit_code


class Setting(click.Option):
    """An option under a heading of the help; the short help leaves out what is not common."""

    def __init__(self, names: Sequence[str], group: str = "", common: bool = True, **kind: Any) -> None:
        super().__init__(names, **kind)
        self.group, self.common = group, common


class Grouped(click.Command):
    """A command whose help has its options under headings, and the less common ones with --help-all only."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        if any(not getattr(param, "common", True) for param in self.params):
            params.append(
                Setting(
                    ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_help_all,
                    help="Show all options and exit.",
                )
            )  # fmt: skip
        return params

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shortened = any(not getattr(param, "common", True) for param in self.params)
        everything = not shortened or ctx.meta.get("help_all", False)
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            line = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if line is not None and (everything or getattr(param, "common", True)):
                sections.setdefault(getattr(param, "group", "") or "Options", []).append(line)
        for title in sorted(sections, key=lambda title: shortened and title == "Options"):  # then they come last
            with formatter.section(title):
                formatter.write_dl(sections[title])


class Cli(click.Group):
    """Turns errors that the caller can act on into one line and their exit code."""

    command_class = Grouped

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
        except KeyboardInterrupt:
            raise Interrupted("stopped") from None
        except Stopped as error:
            raise Interrupted(error) from error
        except InputError as error:
            raise Fixable(error) from error
        except GateError as error:
            raise GateMissed(error) from error
        except click.MissingParameter:
            raise
        except click.BadParameter as error:  # a wrong value, not a wrong command line
            raise Fixable(error.format_message()) from error
        except click.UsageError as error:
            raise click.UsageError(visible(error.format_message()), error.ctx) from error
        except OSError as error:
            place = f": {error.filename}" if error.filename else ""
            raise Fixable(f"{error.strerror or error}{place}") from error


def _help_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["help_all"] = True
        click.echo(ctx.get_help())
        ctx.exit()


class Listed(click.ParamType):
    """Values with commas between them, as a tuple: "1,8" or "ort,openvino"."""

    name = "list"

    def __init__(self, option: str, item: type, like: str, count: int | None = None) -> None:
        self.option, self.item, self.like, self.count = option, item, like, count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self.item(part.strip()) for part in value.split(","))
        except ValueError:
            found = ()
        if found and self.count in (None, len(found)):
            return found
        what = {int: "whole numbers", float: "numbers"}[self.item]
        what = "three batch sizes" if self.count else f"{what} with commas between them"
        raise InputError(f"{self.option} must be {what}, like {self.like}; got {value!r}")


class NumberOr(click.ParamType):
    """A number, or a certain word."""

    name = "number"

    def __init__(self, word: str) -> None:
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == self.word:
            return value
        try:
            return click.FLOAT.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither a number nor {self.word}.", param, ctx)


LIKE = {"ratios": "0.7,0.5,0.3,0", "batch_range": "1,8,32"}  # examples in a message; else 1,8


def options_of(
    config: type, choices: Mapping[str, Sequence[str]] | None = None, *, switches: bool = False
) -> Callable[[Any], Any]:
    """A decorator that gives a command an option for each field of `config`, in their order.

    Args: the values that a field may have, for the help; whether a switch that is on by a recipe can be turned off.
    """
    fields = dataclasses.fields(config)
    shortened = any(field.metadata["common"] for field in fields)
    names, choices = {field.name for field in fields}, choices or {}
    made = [
        _option(config, field, choices.get(field.name), switches, shortened, auto=f"{field.name}_auto" in names)
        for field in fields
    ]

    def decorate(command: Any) -> Any:
        for option in reversed(made):
            command = option(command)
        return command

    return decorate


def _option(
    config: type,
    field: dataclasses.Field[Any],
    choices: Sequence[str] | None,
    switches: bool,
    shortened: bool,
    auto: bool,
) -> Callable[[Any], Any]:
    about, default = field.metadata, field.default
    flag = option_of(config, field.name)
    kind: dict[str, Any] = {"help": about["help"], "group": about["group"], "default": default}
    kind["common"] = about["common"] or not shortened
    if isinstance(default, bool):
        own = flag.startswith("--no-") or not switches
        kind |= {"is_flag": True, "flag_value": not default} if own else {}
        return click.option(flag if own else f"{flag}/--no-{flag[2:]}", field.name, cls=Setting, **kind)
    shown = about["shown"] or (",".join(map(str, default)) if isinstance(default, tuple) else default)
    kind["show_default"] = about["shown"] is None and shown not in (None, "")
    kind["help"] += f"  [default: {about['shown']}]" if about["shown"] else ""
    kind["metavar"] = "|".join(choices) if choices else about["metavar"]
    kind["type"] = NumberOr(AUTO) if auto else _type(flag, field.name, str(field.type).removesuffix(" | None"))
    if isinstance(default, tuple):
        kind["default"] = shown if default else ()
    return click.option(flag, field.name, cls=Setting, **kind)


def _type(flag: str, name: str, annotation: str) -> Any:
    """click's type for a field's annotation."""
    items = {"tuple[float, ...]": float, "tuple[int, ...]": int, "tuple[str, ...]": str, "tuple[int, int, int]": int}
    if annotation in items:
        return Listed(flag, items[annotation], LIKE.get(name, "1,8"), 3 if "int, int" in annotation else None)
    of_one = {"int": int, "float": float, "str": str, "float | Literal['budget']": NumberOr(BUDGET)}
    return of_one[annotation]


def split(settings: dict[str, Any], *kinds: type) -> Iterator[Any]:
    """A command's options as the configurations that they were made of."""
    for kind in kinds:
        yield kind(**{field.name: settings[field.name] for field in dataclasses.fields(kind)})


def given(names: Sequence[str]) -> dict[str, Any]:
    """Those of the options `names` that the caller passed, with their values."""
    context = click.get_current_context()
    passed = [n for n in names if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    return {name: context.params[name] for name in passed}


shown_as = click.option(
    "--format", "shown", default="table", show_default=True, metavar="|".join(FORMATS), help="What to print."
)


def _name_code(context: click.Context, parameter: click.Parameter, arch: str | None) -> None:
    if arch is None:
        return
    file, _, factory = arch.rpartition(":")
    if not (needs_caller(arch) and file and factory):
        raise InputError(
            f"--arch must be FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, as a run of your own code was trained with, "
            f"got {arch!r}; a run of another network takes none"
        )
    if file.endswith(".py") and not Path(file).expanduser().is_file():
        raise InputError(f"--arch: there is no file {file}")
    os.environ[CALLERS_ARCH] = arch


def run_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a command finds a run, and its network's code where that is the caller's own."""
    run = click.option(
        "--run", "run_name", type=PATH, help="A run's directory or its name under runs/.  [default: the newest]"
    )
    arch = click.option(
        "--arch", metavar="FILE.py:FACTORY", expose_value=False, callback=_name_code,
        help="The code of a run's network, if it is your own, as for its training; no file makes wmlc run code.",
    )  # fmt: skip
    return run(arch(command))


peer_option = click.option(
    "--peer", required=True, metavar="K|all|baseline", help="Which network; peer 1 is the smallest."
)
sets_option = click.option(
    "--set", "sets", multiple=True, metavar="KEY=V,V,…",
    help="Values of a setting; again for other settings. A list's own values take colons: ratios=0.7:0.5:0,0.3:0.",
)  # fmt: skip
forced = click.option("--force", is_flag=True, help="Replace what is there.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def the_run(name: Path | None) -> Run:
    """The run that `run_option` named; what finds it is imported as late as a room."""
    from wmlc.run import find_run

    return find_run(name)


def command_words() -> str:
    """The command that runs, as it was typed."""
    return str(click.get_current_context().find_root().meta["words"])
