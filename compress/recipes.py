"""Recipes: experiments as YAML files, those that came with wmlc among them. Free of torch, so that a list is quick."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from wmlc.arch import needs_caller
from wmlc.compress.config import settle
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.yaml_file import read_settings
from wmlc.console import UNKNOWN, note, say, say_exactly
from wmlc.errors import InputError
from wmlc.settings import AUTO, ENGINE_SETTINGS, LATENCY, TrainConfig, names_of
from wmlc.table import Table

DEMO = "digits"
LENGTHS = ("steps", "as_long_as", "finetune_epochs")  # each of which says how long to train
FOLDER = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A recipe that came with wmlc: its name, what it is, and the settings that tell it from others."""

    recipe: str
    what: str
    arch: str
    data: str
    method: str
    ratios: tuple[float, ...]
    epochs: int


def own_recipes() -> dict[str, Path]:
    """The recipes that came with wmlc, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def read_recipe(name: str, given: Collection[str] = ()) -> dict[str, Any]:
    """The settings in a recipe: a YAML file, or the name of one that came with wmlc.

    Args: the settings that are `given` beside it. Raises `InputError` for an unknown name, with the nearest one that
    there is, for a file that holds no settings, and for one that would have code run, unless the arch is given.
    """
    own, path = own_recipes(), Path(name)
    if not path.is_file() and name in own:
        path = own[name]
    if not path.exists():
        near = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {near[0]}?" if near else "give a YAML file or a recipe's name"
        raise InputError(f"no recipe {name!r}; {hint} ('wmlc train --list' shows them all)")
    settings = read_settings(path)
    arch = settings.get("arch")
    if "arch" not in given and isinstance(arch, str) and needs_caller(arch):  # it would be run
        raise InputError(
            f"{path} names code of yours, which runs only if you name it too; pass --arch {arch}, or to a sweep --set "
            f"arch={arch}"
        )
    return settings


def override(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe's settings with `given` over them, and the names of those that were left out.

    What belongs to the recipe's method is left to another method's own: the constants of a loss, and the shape of a
    family that the other has no choice of. Another run's baseline is one, and none is nobody's; a rate is none to be
    found; and of ratios and milliseconds, and of what says how long to train, those that are given count.
    """
    if given.get("baseline_from") is not None:
        given = {"baseline": True, **given}
    elif given.get("baseline") is False:
        given = {"baseline_from": None, **given}
    if given.get("lr", AUTO) != AUTO:
        given = {"lr_auto": False, **given}
    recipe = _sized_as_given(recipe, given)
    if any(given.get(name) is not None for name in LENGTHS):
        recipe = {name: value for name, value in recipe.items() if name not in LENGTHS}
    if given.get("lr") == AUTO:
        recipe = {name: value for name, value in recipe.items() if name != "finetune_lr"}
    former = recipe.get("method", TrainConfig.method)
    method, left = given.get("method", former), list[str]()
    own = METHODS.get(method) if isinstance(method, str) and method != former else None
    if own is not None:
        not_its = {*names_of("method"), *(["share"] if own.fixed_shape else []), *([] if own.ratios else ["ratios"])}
        not_its.discard("as_long_as")  # at whose cost methods are compared holds for each of them
        if recipe.get("as_long_as") == method:
            recipe = {name: value for name, value in recipe.items() if name != "as_long_as"}
        left = [name for name in recipe if name in not_its and name not in given]
    return {**{name: value for name, value in recipe.items() if name not in left}, **given}, left


def _sized_as_given(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings without its milliseconds where `given` are ratios, of whatever, and the other way round."""
    gone: set[str] = set()
    if "max_latency_ms" in given:
        gone = {"ratios", "ratio_of"}
    elif given.get("ratio_of", LATENCY) != LATENCY:
        gone = {"max_latency_ms", "paid_out", *ENGINE_SETTINGS}
    elif "ratios" in given:
        of_latency = LATENCY in (given.get("ratio_of"), recipe.get("ratio_of"))
        gone = {"max_latency_ms"} | (set() if of_latency else {"paid_out", *ENGINE_SETTINGS})
    return {name: value for name, value in recipe.items() if name not in gone or name in given}


def check_said_once(settings: Mapping[str, Any]) -> None:
    """Raise `InputError` where settings that somebody wrote say twice how long to train, or how small peers shall be.

    A run's record may.
    """
    if settings.get("max_latency_ms"):
        if settings.get("ratios"):
            raise InputError("--ratios and --max-latency-ms say each how small peers shall be; pass one of them")
        if settings.get("ratio_of", LATENCY) != LATENCY:
            raise InputError("--max-latency-ms asks for milliseconds, and --ratio-of for others; pass one of them")
    if settings.get("steps") is not None and settings.get("as_long_as") is not None:
        raise InputError(
            f"steps {settings['steps']} and as_long_as {settings['as_long_as']} say each how long to train; pass one"
        )


def check_place(given: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise `InputError` where a place was given for data that lie in none: a set of one's own was meant."""
    if given.get("data_root") is not None and config.data == "digits":
        raise InputError(
            f"the digits come with scikit-learn and lie in no data_root, got {given['data_root']}; pass --data too, "
            "imagefolder for folders of images"
        )


def choose_config(recipe: str | None, given: Mapping[str, Any]) -> TrainConfig:
    """The settings in a recipe, with `given` over them; a note says what another method left out.

    Where neither a recipe nor `given` says what to train, it is the demo's recipe.
    """
    if recipe is None and not given.keys() - {*names_of("place", "incidental", "seed")}:
        recipe = DEMO
    chosen, left = override(read_recipe(recipe, given) if recipe else {}, given)
    check_said_once(chosen)
    config = settle(chosen, recipe or "options")
    if config.start is not None and config.epochs and not {"lr", "lr_auto", "finetune_lr"} & chosen.keys():
        note(f"lr {config.lr:g}, the default from a start, is a careful one; --lr auto finds what suits this start")
    if left:
        note(f"{' and '.join(left)} of {recipe} belong to its method; {config.method} takes its own")
    return config


def print_settings(recipe: str | None, given: Mapping[str, Any], *, beside: Mapping[str, Any]) -> None:
    """Print the settings of `choose_config` as YAML, from which they settle to themselves.

    Raises `InputError` where, `beside` that, something is to be done with them.
    """
    flags = {"resume": "--resume", "dry_run": "--dry-run", "as_json": "--json"}
    if asked := [flag for name, flag in flags.items() if beside[name]]:
        raise InputError(f"--print-config prints the settings as YAML and stops; leave out {', '.join(asked)}")
    config = choose_config(recipe, given)
    idle = {"ratios"} if config.max_latency_ms else set()  # made of the milliseconds
    known = {name: value for name, value in asdict(config).items() if value is not None and name not in idle}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    say_exactly(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None).rstrip("\n"))


def list_recipes() -> list[Recipe]:
    """The recipes that came with wmlc."""
    found = []
    for name, path in own_recipes().items():
        config = settle(read_settings(path), name)
        found.append(
            Recipe(name, _description(path), config.arch, config.data, config.method, config.ratios, config.epochs)
        )
    return found


def print_recipes(as_json: bool) -> None:
    """List the recipes that came with wmlc, as a table or as JSON."""
    found = list_recipes()
    if as_json:
        say_exactly(json.dumps([asdict(recipe) for recipe in found], indent=2))
        return
    rows = [
        [r.recipe, r.what, r.arch, r.data, r.method, ",".join(f"{x:g}" for x in r.ratios) or UNKNOWN, str(r.epochs)]
        for r in found
    ]
    Table(["recipe", "what", "arch", "data", "method", "ratios", "epochs"], rows, words=6).show()
    say("wmlc train RECIPE; options override its settings, --dry-run shows its family")


def _description(path: Path) -> str:
    """The comment that a recipe begins with, up to the first line that is none."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ").strip() for line in lines)
