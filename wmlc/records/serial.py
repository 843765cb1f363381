"""Records in files: one way to write them, one way to read them.

Reading checks every field and lists all faults in one line; that is what pydantic does, where msgspec, which is faster,
stops at the first. What is read is bounded in size and, by the parser, in depth and in the digits of a number.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wmlc.errors import InputError
from wmlc.files import new_file, read_text
from wmlc.records.common import SCHEMA

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MOST_FAULTS, LONGEST_VALUE = 12, 60  # that a message lists, and letters of what came

Kind = TypeVar("Kind")


def write(path: Path, record: Any) -> None:
    """Write a record as indented JSON, whole or not at all; a value that its type does not allow is a bug of ours."""
    with new_file(path) as aside:
        aside.write_text(text(record, indent=2) + "\n", encoding="utf-8")


def text(record: Any, indent: int | None = None) -> str:
    """A record as JSON."""
    fields = asdict(record)
    version = {"schema_version": fields.pop("schema_version")} if "schema_version" in fields else {}
    made = json.dumps(version | fields, indent=indent, allow_nan=False)
    parse(made, type(record), f"a {type(record).__name__} of ours", "record", "report this")
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


def _other_version(json_text: str, kind: type[Any]) -> str | None:
    """Why a record is not of this program's schema; None where it is, and where it is no JSON object at all."""
    from pydantic_core import from_json

    try:
        found = from_json(json_text)
    except ValueError:
        return None
    if not isinstance(found, dict) or "schema_version" not in kind.__dataclass_fields__:
        return None
    version = found.get("schema_version", "missing")
    return None if version == SCHEMA else f"its schema_version is {_shown(version)}, this one reads {SCHEMA}"


def _faults(error: ValidationError) -> list[str]:
    """Each fault in words: where, what is allowed, what came."""
    found = error.errors(include_url=False, include_context=False)
    said = [_fault(fault) for fault in found]
    more = len(said) - MOST_FAULTS
    return said[:MOST_FAULTS] + ([f"and {more} more"] if more > 0 else [])


def _fault(fault: Any) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{place} is unknown"
    if fault["type"] == "json_invalid":
        return f"damaged or truncated JSON ({fault['msg'].removeprefix('Invalid JSON: ')})"
    allowed = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{place or 'it'} must be {allowed}, got {_shown(fault['input'])}"


def _shown(value: Any) -> str:
    shown = " ".join(ascii(value).split()) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 1] + "…"
