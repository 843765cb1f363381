"""The grid of a sweep: a recipe's settings, and every combination of the values that `--set` lists."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wmlc.compress.config import settle
from wmlc.compress.recipes import check_said_once, override, read_recipe
from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import short_hash, short_name
from wmlc.settings import TrainConfig

LONGEST_NAME = 200  # bytes: file systems take 255, and files beside a run are called after it
_TYPES = {field.name: str(field.type) for field in dataclasses.fields(TrainConfig)}


@dataclass(frozen=True)
class Point:
    """One run of the grid: what it is called, the settings that the grid varies, and all of them."""

    name: str
    varied: dict[str, Any]
    config: TrainConfig


def read_grid(recipe: str | None, sets: Sequence[str]) -> list[Point]:
    """Every combination of the values in `sets` over the recipe's settings, the last key varying fastest.

    Args: a recipe's name or file; texts KEY=VALUE,VALUE,… A ratio list's own numbers have colons
    between them: ratios=0.7:0.5:0.3:0,0.3:0.2:0.1:0. Where methods are compared at the cost of one (as_long_as), that
    one trains as long as it does anyway. Raises `InputError` for what `wmlc train` would refuse
    before it reads data, and for a key or a value named twice.
    """
    if not recipe and not sets:
        raise InputError("there is nothing to sweep; name a recipe, or pass --set KEY=VALUE,VALUE,…, like seed=0,1,2")
    axes: dict[str, list[Any]] = {}
    for text in sets:
        key, values = parse_set(text)
        if key in axes:
            raise InputError(f"--set {key} was passed twice; list all its values in one: --set {key}=VALUE,VALUE,…")
        axes[key] = values
    base = read_recipe(recipe, axes) if recipe else {}
    source = " and ".join([*([recipe] if recipe else []), *(["--set"] if sets else [])])
    points: dict[str, Point] = {}
    left: dict[str, list[str]] = {}  # what runs do without of the recipe's settings, which belong to its method
    for combination in itertools.product(*axes.values()):
        varied = dict(zip(axes, combination, strict=True))
        name = run_name(varied) or Path(recipe or "").stem
        if name in points and points[name].varied != varied:  # letters that a file's name cannot have told them apart
            name += f"-{short_hash(_meant(varied))}"
        if name in points:
            raise InputError(f"two runs of the grid would be called {name}; leave out the value that is named twice")
        try:
            settings, lost = override(base, varied)
            left.setdefault(" and ".join(lost), []).append(name)
            if len(axes.get("method", ())) > 1 and settings["method"] == settings.get("as_long_as"):
                settings["as_long_as"] = None  # the one that the others are to cost as much as
            check_said_once(settings)
            points[name] = Point(name, varied, settle(settings, source))
        except InputError as error:
            raise InputError(f"{error} (run {name})") from None
    for settings_left, names in left.items():
        if settings_left:
            note(f"{settings_left} of {recipe} belong to its method; {', '.join(names)} take their own")
    return list(points.values())


def parse_set(text: str) -> tuple[str, list[Any]]:
    """The key and the values in KEY=VALUE,VALUE,…, each by the setting's type; `null` is none at all.

    A value of another type stays text, so that `settle` says what the setting takes.
    """
    key, _, listed = text.partition("=")
    key, parts = key.strip().replace("-", "_"), [part.strip() for part in listed.split(",")]
    if not key or not all(parts):
        raise InputError(f"--set takes KEY=VALUE,VALUE,…, like seed=0,1,2, and no empty value; got {text!r}")
    if key in ("ratios", "max_latency_ms") and len(parts) > 1 and not any(":" in part for part in parts):
        one = f"{key}={':'.join(parts)}"
        raise InputError(
            f"--set {text} would be {len(parts)} families of one peer; for one of {len(parts)} write {one}"
        )
    return key, [_value(part, _TYPES.get(key, "str")) for part in parts]


def run_name(varied: dict[str, Any]) -> str:
    """A directory's name for the settings that vary: method-wml_seed-0; a long one ends in a hash of them."""
    name = "_".join(f"{key}-{_in_name(value)}" for key, value in varied.items())
    return short_name(name, LONGEST_NAME, _meant(varied))


def may_be_named(varied: dict[str, Any], name: str) -> bool:
    """Whether a sweep that names the keys, or the values, in another order may call a run of these settings so.

    Its parts are the same then, or it ends in the hash of the settings.
    """
    return sorted(name.split("_")) == sorted(run_name(varied).split("_")) or name.endswith(short_hash(_meant(varied)))


def _meant(varied: dict[str, Any]) -> str:
    return repr(sorted(varied.items()))


def _value(text: str, wanted: str) -> Any:
    kind = wanted.split(" | ")[0]
    if text == "null" and "None" in wanted:
        return None
    try:
        if kind == "tuple[float, ...]":
            return tuple(float(part) for part in text.split(":"))
        if kind in ("int", "float"):  # YAML takes 1e-3 for a text
            return int(text) if kind == "int" else float(text)
        return yaml.SafeLoader.bool_values[text.lower()] if kind == "bool" else text
    except (ValueError, KeyError):
        return text


def _in_name(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_in_name, value))
    if isinstance(value, float):
        return f"{value:.12g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
