"""A recipe's file: what could grow, run or hang is refused in one line before anything is built of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wmlc.compress.config import settle
from wmlc.compress.recipes import read_recipe
from wmlc.errors import InputError

MULTIPLYING = ["a0: &a0 [0.5]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
NO_ANCHORS = "a recipe has no anchors and aliases; write the value out"
HOSTILE = {
    "date": ("epochs: 2026-11-25", ": epochs must be a whole number, got '2026-11-25'"),
    "no date": ("epochs: 2026-13-45", ": epochs must be a whole number, got '2026-13-45'"),
    "code": (
        "epochs: !!python/object/apply:os.getcwd []",
        ", line 1: a recipe has no tags, got 'tag:yaml.org,2002:python/object/apply:os.getcwd'; write a plain value",
    ),
    "tag": ("a: 1\nb: !!set {c}", ", line 2: a recipe has no tags, got 'tag:yaml.org,2002:set'; write a plain value"),
    "alias": ("ratios: &all [0.5, 0]\nalpha: *all", f", line 1: {NO_ANCHORS}"),
    "multiplying": ("\n".join(MULTIPLYING), f", line 1: {NO_ANCHORS}"),
    "no anchor": ("lr: 0.1\nalpha: *other", f", line 2: {NO_ANCHORS}"),
    "depth": (
        "ratios: " + 30000 * "[", ", line 1: lists in lists, more than 4 deep; settings are names and plain values",
    ),
    "size": ("# " + 65535 * "x", " has 65,537 letters, a recipe has at most 65,536"),
    "digits": ("epochs: " + 6000 * "9", " is not readable YAML: Exceeds the limit (4300 digits)"),
    "half a digit": ("epochs: 0b_", " is not readable YAML: invalid literal for int() with base 2: ''"),
    "syntax": ("epochs: [1", " is not readable YAML: while parsing a flow sequence"),
    "a list as a name": ("? [a]\n: 1", " is not readable YAML: while constructing a mapping"),
    "two documents": ("epochs: 1\n---\nepochs: 2", " is not readable YAML: expected a single document"),
    "unprintable": ("epochs: \x01", " is not readable YAML: unacceptable character #x0001"),
    "bare list": ("[1, 2]", " must hold settings as 'name: value', got list"),
    "list for a text": ("method: [wml]", ": method must be a text, got ['wml']"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    text, message = HOSTILE[kind]
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        settle(read_recipe(str(path)), str(path))
    assert str(caught.value).startswith(f"{path}{message}") and "\n" not in str(caught.value)


def test_what_a_recipe_needs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# mine\nratios: [0.5, 0]\nnesterov: yes\nclip:\narch: 'resnet20'\ndata_root: 2026-11-25\nlr: 1.0e-3\n"
    )
    assert read_recipe(str(path)) == {
        "ratios": [0.5, 0], "nesterov": True, "clip": None, "arch": "resnet20", "data_root": "2026-11-25", "lr": 0.001,
    }  # fmt: skip
    path.write_text("# nothing yet\n")
    assert read_recipe(str(path)) == {}


def test_a_pipe_and_a_folder_are_no_recipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError) as caught:
            read_recipe(str(path))
        remedy = "so there is no recipe in it; name a YAML file of settings"
        assert str(caught.value) == f"{path} is no regular file, {remedy}"
