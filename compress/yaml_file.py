"""Settings in a YAML file: names, numbers, texts and lists, and nothing that could grow, run or hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from wmlc.errors import InputError
from wmlc.files import read_text

MOST_BYTES, DEEPEST = 64 << 10, 4  # of a file, and of lists in lists; ours have some hundred bytes, and two
DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """A date stays the text that it is written as."""

    yaml_implicit_resolvers = {  # noqa: RUF012  as in the class above
        letter: [(tag, pattern) for tag, pattern in resolvers if tag != DATE]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in `path`, by name; `InputError` for a file that holds something else.

    Hyphens in names are underscores, as in options. Refused before anything is built: aliases, which could multiply,
    anchors, tags, deep nesting and large files; and a name that stands twice.
    """
    text = read_text(path, "recipe", "name a YAML file of settings")
    if len(text) > MOST_BYTES:
        raise InputError(f"{path} has {len(text):,} letters, a recipe has at most {MOST_BYTES:,}")
    try:
        _check_events(text, path)
        _check_names(text, path)
        record = yaml.load(text, Loader=_Loader) or {}  # a SafeLoader
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a number of thousands of digits is a ValueError
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold settings as 'name: value', got {type(record).__name__}")
    return {str(name).replace("-", "_"): value for name, value in record.items()}


def _check_names(text: str, path: Path) -> None:
    """Raise `InputError` for a name that stands twice, of which YAML would take the last."""
    first: dict[str, int] = {}
    mapping = yaml.compose(text, Loader=_Loader)
    for key, _ in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
        name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
        if first.setdefault(name, line) != line:
            raise InputError(f"{path}, line {line}: {name} stands in line {first[name]} too; leave out one")


def _check_events(text: str, path: Path) -> None:
    """Raise `InputError` for what a recipe has no use for."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        fault = None
        if depth > DEEPEST:
            fault = f"lists in lists, more than {DEEPEST} deep; settings are names and plain values"
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            fault = "a recipe has no anchors and aliases; write the value out"
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            fault = f"a recipe has no tags, got {event.tag!r}; write a plain value"
        if fault:
            raise InputError(f"{path}, line {event.start_mark.line + 1 if event.start_mark else '?'}: {fault}")
