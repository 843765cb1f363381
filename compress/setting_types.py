"""Values of settings, as YAML, JSON and Python give them: of the type that a field names, and as messages show them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from wmlc.errors import InputError

LONGEST_SHOWN = 60  # letters of a value in a message


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# By a field's annotation: what it takes in words, whether a value is one, and that as the field's own type.
_TYPES: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    "int": ("a whole number", lambda v: type(v) is int, int),
    "float": ("a number", _number, float),
    "bool": ("true or false", lambda v: isinstance(v, bool), bool),
    "str": ("a text", lambda v: isinstance(v, str), str),
    "tuple[float, ...]": (
        "a list of numbers",
        lambda v: isinstance(v, list | tuple) and all(map(_number, v)),
        lambda v: tuple(map(float, v)),
    ),
}


def typed(name: str, value: Any, annotation: str, source: str) -> Any:
    """`value` as the type that a field's `annotation` names."""
    if value is None and "None" in annotation:
        return None
    kind = annotation.split(" | ")[0]
    words, fits, make = _TYPES[kind]
    if not fits(value):
        hint = " (YAML reads that as a text; write it with a point, as 1.0e-3)"
        hint = hint if kind == "float" and _in_text(value) else ""
        raise InputError(f"{source}: {name} must be {words}, got {shown(value)}{hint}")
    try:
        return make(value)
    except OverflowError:
        raise InputError(f"{name} must be a finite number, got {shown(value)}") from None


def _in_text(value: Any) -> bool:
    """Whether it is a number in quotes, or one that YAML 1.1 takes for a text, like 1e-3."""
    with contextlib.suppress(ValueError):
        return isinstance(value, str) and math.isfinite(float(value))
    return False


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        shown = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return "a number of thousands of digits"
    return shown if len(shown) <= LONGEST_SHOWN else shown[: LONGEST_SHOWN - 1] + "…"
