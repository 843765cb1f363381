"""Recipes: experiments as YAML files, those that came with wmlc among them. Free of torch, so that a list is quick."""

from __future__ import annotations

import difflib
import itertools
import json
from pathlib import Path
from typing import Any

import yaml

from wmlc.compress.config import METHODS, TrainConfig, config_from
from wmlc.console import UNKNOWN, print_table, say
from wmlc.errors import InputError

OF_A_METHOD = ("alpha", "temperature", "join", "feature_loss", "feature_weight", "finetune_epochs", "finetune_lr")
FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def own_recipes() -> dict[str, Path]:
    """The recipes that came with wmlc, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def read_recipe(name: str) -> dict[str, Any]:
    """The settings in a recipe: a YAML file, or the name of one that came with wmlc.

    Raises `InputError` for an unknown name, with the nearest one that there is, and for a file that holds no settings.
    """
    own = own_recipes()
    path = Path(name) if Path(name).is_file() else own.get(name)
    if path is None:
        near = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {near[0]}?" if near else "give a YAML file or a recipe's name"
        raise InputError(f"no recipe {name!r}; {hint} ('wmlc train --list' shows them all)")
    return _read(path)


def override(recipe: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe's settings with `given` over them, and the names of those that were left out.

    What belongs to the recipe's method is left to another method's own: the constants of a loss, and the shape of a
    family that the other has no choice of.
    """
    former = recipe.get("method", TrainConfig.method)
    method, left = given.get("method", former), list[str]()
    if method in METHODS and method != former:
        own = METHODS[method]
        not_its = [*OF_A_METHOD, *(["share"] if own.fixed_shape else []), *([] if own.ratios else ["ratios"])]
        left = [name for name in recipe if name in not_its and name not in given]
    return {**{name: value for name, value in recipe.items() if name not in left}, **given}, left


def _read(path: Path) -> dict[str, Any]:
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold settings as 'name: value', got {type(record).__name__}")
    return record


def recipe_records() -> list[dict[str, Any]]:
    """One record a recipe that came with wmlc: its name, what it is, and the settings that tell it from others."""
    records = []
    for name, path in own_recipes().items():
        config = config_from(_read(path), name)
        shown = {key: getattr(config, key) for key in ("arch", "data", "method", "ratios", "epochs")}
        records.append({"recipe": name, "what": _description(path), **shown})
    return records


def print_recipes(as_json: bool) -> None:
    """List the recipes that came with wmlc, as a table or as JSON."""
    records = recipe_records()
    if as_json:
        say(json.dumps(records, indent=2))
        return
    rows = [
        [
            r["recipe"], r["what"], r["arch"], r["data"], r["method"],
            ",".join(f"{ratio:g}" for ratio in r["ratios"]) or UNKNOWN, str(r["epochs"]),
        ]
        for r in records
    ]  # fmt: skip
    print_table("", ["recipe", "what", "arch", "data", "method", "ratios", "epochs"], rows, left=6)
    say("wmlc train RECIPE; options override its settings, --dry-run shows its family")


def _description(path: Path) -> str:
    """The comment that a recipe begins with, up to the first line that is none."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ").strip() for line in lines)
