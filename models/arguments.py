"""Constructor arguments as a text: `key=value,key=value`, values being literals or plain words. Free of torch."""

from __future__ import annotations

import ast
import re
from typing import Any

from wmlc.errors import InputError

LONGEST = 2_000  # letters; a network's arguments are a line
WORD = re.compile(r"[\w./:+-]+")  # a text that needs no quotes
CONSTANTS = {"true": True, "false": False, "none": None}


def parse_args(text: str) -> dict[str, Any]:
    """The arguments in `text`, by name: `depth=20,widths=[16,32],act=relu,bias=false`.

    Nothing is evaluated: a value is a number, true, false, none, a text (quoted, or a plain word), or a list or tuple
    of such. Raises `InputError` for anything else.
    """
    if not text.strip():
        return {}
    try:
        if len(text) > LONGEST:
            raise ValueError(f"more than {LONGEST:,} letters")
        call = ast.parse(f"f({text})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("no key=value")
        if len({each.arg for each in call.keywords} - {None}) < len(call.keywords):  # one twice, or **more
            raise ValueError("no key=value")
        source = f"f({text})"
        return {str(each.arg): _value(each.value, source) for each in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        shown = text if len(text) <= 60 else f"{text[:59]}…"
        raise InputError(
            f"arch_args must be key=value,key=value with numbers, true, false, none, texts or [lists], got {shown!r}"
        ) from None


def _value(node: ast.expr, source: str) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        parts = [_value(part, source) for part in node.elts]
        return parts if isinstance(node, ast.List) else tuple(parts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        word = ast.get_source_segment(source, node) or ""
    if not WORD.fullmatch(word):
        raise ValueError(word)
    return CONSTANTS.get(word.lower(), word)
