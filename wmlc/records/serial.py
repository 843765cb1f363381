"""Records in files: one way to write them, one way to read them.

Reading checks every field and lists all faults in one line; that is what pydantic does, where msgspec, which is faster,
stops at the first. What is read is bounded in size and in the number of its values, and by the parser in depth and in
the digits of a number.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wmlc.errors import InputError
from wmlc.files import new_file, read_text
from wmlc.records.common import SCHEMA

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MOST_FAULTS, LONGEST_VALUE = 12, 60  # that a message lists, and letters of what came
MOST_VALUES = 500_000  # of a record; a checker keeps hundreds of bytes for each one that is wrong
# What would reach a terminal as a command, raw or as JSON writes it; a line break or a tab is text
CONTROL = re.compile(
    r"[\x7f-\x9f]|(?<!\\)(?:\\\\)*\\(?:[bfr]|u00(?:0[0-8bcef]|1[\da-f]|7f|[89][\da-f]))", re.IGNORECASE
)

# What a field may hold, by pydantic's name of the fault; the braces are filled from its context
ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
# What pydantic calls the two kinds of sizes, in the place of a fault in one that may be either
A_NUMBER, A_LIST = "constrained-int", "list[constrained-int]"

Kind = TypeVar("Kind")


def write(path: Path, record: Any) -> None:
    """Write a record as indented JSON, whole or not at all; a value that its type does not allow is a bug of ours."""
    with new_file(path) as aside:
        aside.write_text(text(record, indent=2) + "\n", encoding="utf-8")


def text(record: Any, indent: int | None = None) -> str:
    """A record as JSON, checked as it will be when it is read."""
    fields = asdict(record)
    version = {"schema_version": fields.pop("schema_version")} if "schema_version" in fields else {}
    made = json.dumps(version | fields, indent=indent)
    parse(made, type(record), "what was to be written", type(record).__name__, "this is a bug, please report it")
    return made


def read(path: Path, kind: type[Kind], what: str, remedy: str) -> Kind:
    """The record of type `kind` in `path`; `InputError` with all its faults, `what` it should be and the `remedy`."""
    return parse(read_text(path, what, remedy), kind, path, what, remedy)


def read_lines(path: Path, kind: type[Kind], what: str, remedy: str) -> list[Kind]:
    """The records in the lines of `path`, none where it does not exist; a last line cut short by a kill is dropped."""
    if not path.exists():
        return []
    *lines, cut = read_text(path, what, remedy).split("\n")
    del cut
    return [parse(line, kind, f"{path}, line {i}", what, remedy) for i, line in enumerate(lines, 1)]


def parse(json_text: str, kind: type[Kind], where: Path | str, what: str, remedy: str) -> Kind:
    """The record of type `kind` in the JSON that stands at `where`; see `read`."""
    from pydantic import ValidationError

    json_text = json_text.encode(errors="replace").decode()
    if fault := _unfit(json_text):
        raise InputError(f"{where} is not a readable {what}: {fault}; {remedy}")
    if fault := _other_version(json_text, kind):
        raise InputError(f"{where} is no {what} of this wmlc: {fault}; {remedy}")
    try:
        return reader(kind).validate_json(json_text)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = _faults(error)
    raise InputError(f"{where} is not a readable {what}: {'; '.join(faults)}; {remedy}")


@functools.cache
def reader(kind: Any) -> TypeAdapter[Any]:
    """pydantic's checker of a type."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _unfit(json_text: str) -> str | None:
    """Why a text is not even looked at as JSON; None where it may be."""
    if not json_text.strip():
        return "it is empty"
    if (values := json_text.count(",") + 1) > MOST_VALUES:
        return f"it has {values:,} values, at most {MOST_VALUES:,} are allowed"
    return "a text in it has a control character" if CONTROL.search(json_text) else None


def _other_version(json_text: str, kind: type[Any]) -> str | None:
    """Why a record is not of this program's schema; None where it is, and where it is no JSON object at all."""
    from pydantic_core import from_json

    if "schema_version" not in kind.__dataclass_fields__:
        return None
    try:
        found = from_json(json_text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if "schema_version" not in found:
        return f"its schema_version is missing, this one reads {SCHEMA}"
    version = found["schema_version"]
    same = type(version) is int and version == SCHEMA
    return None if same else f"its schema_version is {_shown(version)}, this one reads {SCHEMA}"


def _faults(error: ValidationError) -> list[str]:
    """Each fault in words: where, what is allowed, what came."""
    found = [fault for fault in error.errors(include_url=False) if not _is_of_the_other_kind(fault)]
    more = len(found) - MOST_FAULTS
    return [_fault(fault) for fault in found[:MOST_FAULTS]] + ([f"and {more} more"] if more > 0 else [])


def _is_of_the_other_kind(fault: Any) -> bool:
    """Whether it is what a number is refused for as a list, or a list as a number, where both are allowed."""
    if A_LIST in fault["loc"]:
        return bool(fault["type"] == "list_type")
    return A_NUMBER in fault["loc"] and isinstance(fault["input"], list)


def _fault(fault: Any) -> str:
    parts = [part for part in fault["loc"] if part not in (A_NUMBER, A_LIST)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{_plain(part)}" for part in parts).lstrip(".")
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{place} is unknown"
    if fault["type"] == "json_invalid":
        return f"damaged or truncated JSON ({fault['ctx']['error']})"
    allowed = ALLOWED.get(fault["type"], fault["msg"].removeprefix("Input should be "))
    if fault["type"] in ALLOWED:
        allowed = allowed.format(**{name: _bound(value) for name, value in fault.get("ctx", {}).items()})
    return f"{place or 'it'} must be {allowed}, got {_shown(fault['input'])}"


def _bound(value: Any) -> str:
    """A bound of a number or a length, or the choices that there are, as JSON has them."""
    if isinstance(value, str):
        return value.replace("'", '"').replace("True", "true")
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    return _cut(json.dumps(value))


def _plain(key: str) -> str:
    """A key with nothing in it that a terminal would obey, cut where it is long."""
    return _cut(ascii(key)[1:-1])


def _cut(shown: str) -> str:
    return shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 1] + "…"
