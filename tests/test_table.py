"""Tables: aligned in a terminal, whole as Markdown and CSV, and what stands below what."""

from __future__ import annotations

import csv

import pytest

from wmlc.console import say_notes
from wmlc.table import Table

TABLE = Table(("method", "n", "top-1"), [["wml", "3", "70.12\n±0.50"], ["self-distillation", "1", "69.00"]])


def test_words_stand_to_the_left_numbers_to_the_right_and_spreads_below() -> None:
    assert TABLE.lines() == [
        "method             n  top-1",
        "wml                3  70.12",
        "                      ±0.50",
        "self-distillation  1  69.00",
    ]
    assert Table(("a", "b", "c"), [["1", "2", "3"]], words=2).lines() == ["a  b  c", "1  2  3"]
    assert Table(("a", "long"), [["x", "y"]], words=2).lines() == ["a  long", "x  y"]


def test_a_long_first_text_goes_on_below() -> None:
    table = Table(TABLE.header, TABLE.rows, first_letters=13)
    assert table.lines()[-2:] == ["self-         1  69.00", "distillation"]
    assert "self-distillation" in table.markdown(), "a Markdown reader wraps by itself"


def test_markdown_is_a_title_a_rule_and_escaped_bars() -> None:
    table = Table(("network", "p50"), [["a|b", "1.0\n±0.1"]], title="batch 1")
    assert table.markdown().splitlines() == [
        "**batch 1**", "", "| network |      p50 |", "| ------- | -------: |", "| a\\|b    | 1.0 ±0.1 |",
    ]  # fmt: skip


def test_csv_gives_back_what_went_in() -> None:
    table = Table(("name", "value"), [['with "quotes", and a comma', "1"], ["", "2"]])
    assert [*csv.reader(table.csv().splitlines())] == [list(table.header), *map(list, table.rows)]


def test_records_of_different_keys_share_a_header() -> None:
    table = Table.of([{"a": 1, "b": None}, {"a": 2.5, "c": True}])
    assert (table.header, table.rows) == (["a", "b", "c"], [["1", "", ""], ["2.5", "", "True"]])
    assert Table.of([]).csv() == "\n"


def test_nothing_is_cut_and_no_line_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "x" * 300
    Table(("a", "b"), [[wide, ""]], title="T " * 60, colours=["red"]).show()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == wide and not any(line.endswith(" ") for line in lines)
    assert max(map(len, lines[:2])) <= 100, "a title is wrapped"
    Table(("a", "b"), [["1", "2"]]).show()
    assert capsys.readouterr().out == "a  b\n1  2\n"
    Table(("a",), [["[red]x[/red] :smile:"]]).show(markdown=True)
    assert capsys.readouterr().out.endswith("| [red]x[/red] :smile: |\n")


def test_notes_wrap_below_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    say_notes(["word " * 30, "b"])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("note: word word") and second.startswith("      word") and third == "note: b"
    say_notes(["a"], markdown=True)
    assert capsys.readouterr().out == "- a\n"
