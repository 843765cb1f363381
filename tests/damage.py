"""Damaged and hostile files for the fuzz test: what a seeded generator makes of good ones."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Plant = Callable[[Path], object]  # puts something hostile where a file is to be


@dataclass(frozen=True)
class Damage:
    """One hostile input, and how to put it in a file's place."""

    label: str
    plant: Plant


PATHS = (
    "../../escaped",
    "/tmp/escaped",
    "a/b",
    "..",
    "/etc/passwd",
    "~",
    "CON",
    "x" * 5000,
    "evil.py:make",
    "os.system:touch",
)
WORDS = (
    "",
    "\x1b[31mred",
    "\u202egnp.exe",
    "a\nb",
    "\0",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "[red]",
    "=cmd|'/c'!A1",
    "%s%n",
)
NUMBERS = (0, -1, 1, 1.5, -0.0, 1e308, 5e-324, 2**31, 2**63, 10**30, float("nan"), float("inf"), float("-inf"))
VALUES: tuple[Any, ...] = (None, True, [], {}, [[]], [None], {"a": 1}, *NUMBERS, *WORDS, *PATHS)
RAW = (
    "9" * 6000,
    "1e999",
    "-" + "9" * 400 + ".5",
    "[" * 3000,
    '{"a":' * 3000,
    '"\\ud800"',
    "NaN",
    "'x'",
    "0x10",
    "1_000",
)


class Touch:
    """Unpickled, it would make the file that says that code ran."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sentinel}",)


def to_bytes(content: bytes) -> Plant:
    return lambda path: path.write_bytes(content)


def places(record: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a record, one entry a list."""
    yield at
    if isinstance(record, dict):
        for key, value in record.items():
            yield from places(value, (*at, key))
    elif isinstance(record, list) and record:
        yield from places(record[-1], (*at, len(record) - 1))


def json_damage(text: str, luck: random.Random, count: int) -> Iterator[Damage]:
    """`count` damages to one field of a JSON record: another value, none, one too many, or a piece that JSON lacks."""
    record = json.loads(text)
    ways = [way for way in places(record) if way]
    for _ in range(count):
        way, changed = luck.choice(ways), copy.deepcopy(record)
        parent = changed
        for key in way[:-1]:
            parent = parent[key]
        kind = luck.choice(("value", "value", "value", "gone", "more", "raw"))
        shown = kind
        if kind == "value":
            value = luck.choice(VALUES)
            parent[way[-1]], shown = value, repr(value)[:30]
        elif kind == "gone":
            del parent[way[-1]]
        elif kind == "more":
            if isinstance(parent, dict):
                parent[luck.choice(WORDS + PATHS)] = luck.choice(VALUES)
            else:
                parent.extend(parent * 3)
        else:
            parent[way[-1]] = "HERE"
        made = json.dumps(changed)
        if kind == "raw":
            piece = luck.choice(RAW)
            made, shown = made.replace('"HERE"', piece, 1), f"raw {piece[:10]}"
        yield Damage(f"{'.'.join(map(str, way))}: {shown}", to_bytes(made.encode("utf-8", "surrogatepass") + b"\n"))


def byte_damage(content: bytes, luck: random.Random, count: int) -> Iterator[Damage]:
    """`count` files that were cut short, or in which some bits are another way round, mostly near the beginning."""
    for _ in range(count):
        at = luck.randrange(min(len(content), luck.choice((64, 4096, len(content)))))
        if luck.random() < 0.4:
            yield Damage(f"cut at {at}", to_bytes(content[:at]))
        else:
            flipped = bytearray(content)
            for offset in range(luck.choice((1, 1, 8))):
                flipped[min(at + offset, len(content) - 1)] ^= 1 << luck.randrange(8)
            yield Damage(f"bits at {at}", to_bytes(bytes(flipped)))


def file_damage(content: bytes, sentinel: Path, secret: Path, most_bytes: int) -> Iterator[Damage]:
    """What lies in the file's place is empty, in another encoding, no file, too large, or a pickle."""
    text = content.decode("utf-8", "replace")

    def large(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(most_bytes + 1)

    def link(to: Path) -> Plant:
        return lambda path: (path.unlink(), path.symlink_to(to))

    yield Damage("empty", to_bytes(b""))
    yield Damage("zeros", to_bytes(bytes(64)))
    yield Damage("UTF-16", to_bytes(text.encode("utf-16", "replace")))
    yield Damage("a BOM", to_bytes(b"\xef\xbb\xbf" + content))
    yield Damage("Latin-1", to_bytes(b'{"name": "\xe9"}\n'))
    yield Damage("a list", to_bytes(b"[]\n"))
    yield Damage("deep", to_bytes(b"[" * 100_000 + b"\n"))
    yield Damage("many", to_bytes(b"[" + b"1," * 300_000 + b"1]\n"))
    yield Damage("twice", to_bytes(content + content))
    yield Damage("a pickle", to_bytes(pickle.dumps(Touch(sentinel))))
    yield Damage("too large", large)
    yield Damage("a pipe", lambda path: (path.unlink(), os.mkfifo(path)))
    yield Damage("a directory", lambda path: (path.unlink(), path.mkdir()))
    yield Damage("missing", lambda path: path.unlink())
    yield Damage("a link to a secret", link(secret))
    yield Damage("a link to itself", lambda path: (path.unlink(), path.symlink_to(path)))
    yield Damage("a link to an endless device", link(Path("/dev/zero")))


def recipe_damage(sentinel: Path, luck: random.Random, count: int) -> Iterator[Damage]:
    """Recipes that YAML or their reader must refuse, and `count` with one setting that no run can have."""
    layers = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))
    nested = "a0: &a0 {x: 1}\n" + "\n".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}" for i in range(1, 8)
    )
    texts = (
        f"a0: &a0 [x, x]\n{layers}\narch: *a9", f"a0: &a0 [x, x]\n{layers}\n? *a9\n: 1", nested, "arch: &a [*a]",
        "&a {arch: *a}", "? [a, b]\n: 1", "? {a: b}\n: 1", "arch: 2026-13-45", "arch: 2026-01-02", "epochs: 1:99:99",
        "arch: !!timestamp x", "epochs: !!int x", "epochs: !!int ''", "lr: !!float x", "arch: !!binary '*'", "arch: !!set {a, b}",
        "arch: !unknown x", f"arch: !!python/object/apply:os.system ['touch {sentinel}']", "arch: !!python/name:os.system",
        f"!!python/object/new:os.system ['touch {sentinel}']", "[" * 20_000, "{a: " * 20_000, "- " * 20_000, "a:\n" + " " * 20_000 + "b",
        "epochs: " + "9" * 6000, "lr: " + "9" * 6000 + ".0", "epochs: 0b" + "1" * 9999, "lr: .nan", "lr: .inf", "lr: -.inf", "1: 2",
        "null: 2", ".nan: 2", "true: 2", "- arch", "just words", "arch: [", "\t", "\x01", "%YAML 9.9\n---\na", "--- a\n--- b", "<<: 1",
        "<<: [1]", "arch: resnet20\narch: resnet32", "settings: {arch: resnet20}", "out: ../../escaped", "command: touch x", "*a",
    )  # fmt: skip
    for text in texts:
        yield Damage(f"recipe {text[:40]!r}", to_bytes(text.encode()))
    for name in ("epochs", "lr", "ratios", "divisor", "arch", "method", "batch_size", "seed", "held_out", "download"):
        for _ in range(count // 10):
            value = luck.choice([v for v in VALUES if v is not None])
            yield Damage(f"recipe {name}: {value!r:.30}", to_bytes(json.dumps({name: value}).encode()))
