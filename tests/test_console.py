"""What reaches a terminal: every name as it is, but nothing that a terminal or Markdown would obey; time left."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from made import made_bench, made_epoch, made_row, made_trained

from wmlc import console, records
from wmlc.cli import main
from wmlc.compress import command
from wmlc.compress.describe import print_epoch, print_epoch_header
from wmlc.console import UNKNOWN, LongWork, as_markdown, note, progress, say, say_exactly, say_notes, visible
from wmlc.errors import Stopped
from wmlc.records import Bench
from wmlc.report.terminal import print_bench
from wmlc.table import Table

# of colours and titles, of an 8-bit terminal, of a line that writes over itself and of writing from the right; half of
# a character, as in names that are no Unicode
HOSTILE = ["a\x1b[31mb", "a\x1b]0;title\x07", "a\x9b31m", "good\rbad", "tab\tbed", "\u202eexe.gnp", "latin\udce9"]
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
BRACKETS = ["exp[bold]", "[/]", "a[link=x]b", ":smile:", "[red]r[/red]"]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_terminal_would_obey_is_spelled_out(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = visible(name)
    assert not OBEYED.search(shown) and "\\" in shown and visible(shown) == shown
    say(f"run {name}")
    note(f"run {name}")
    say_notes([name])
    Table(["run", "n"], [[name, "1"], ["b" * 30, "2"]], title=name).show()
    Table(["run", "n"], [[name, "1"]], title=name).show(markdown=True)
    with progress(name, 1):
        printed = capsys.readouterr()
    assert not OBEYED.search(printed.out + printed.err)
    assert f"run {shown}\n" == printed.err and printed.out.count(shown) >= 4
    assert f"{shown:<30}  1\n" in printed.out, "aligned as it is shown"


def test_where_there_is_no_terminal_long_work_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 8))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with progress("timing", 2000) as advance:
        for _ in range(8):
            advance(250)
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said == ["timing: 750 of 2,000, 0:00:40 left", "timing: 1,500 of 2,000, 0:00:16 left"]


def test_an_escape_reads_as_python_writes_it() -> None:
    assert visible("a\x1b[0m\x9b\udce9\né中 [b]") == "a\\x1b[0m\\x9b\\udce9\né中 [b]"


@pytest.mark.parametrize("name", BRACKETS)
def test_brackets_are_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    note(name)
    Table(["run"], [[name]]).show()
    Table(["run"], [[name]]).show(markdown=True)
    printed = capsys.readouterr()
    assert printed.err == f"{name}\n" and printed.out.count(name) == 3


@pytest.mark.parametrize("name", ["a|b.onnx", "a\\|b", "\\", "|", "a\nb|c", "<b>x", "`|`", "*a*", "[x](http://y)"])
def test_a_name_is_one_cell_of_markdown(name: str) -> None:
    *_, row = Table(["network", "n"], [[name, "1"]]).markdown().splitlines()
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)
    assert len(cells) == 4
    unescaped = re.sub(r"\\([\\|`*<(])", r"\1", cells[1].strip())
    assert unescaped == name.replace("\n", " ")
    assert as_markdown("exp[bold] [1.20,1.30]") == "exp[bold] [1.20,1.30]", "no link, and so as it is"


def test_json_and_csv_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    say_exactly("a\tb\x7f[bold]")
    assert capsys.readouterr().out == "a\tb\x7f[bold]\n"
    bench = made_bench([made_row(name=name) for name in [*BRACKETS, "a|b", "\u202eexe.gnp", "中" * 200]])
    print_bench(bench, Path("x"), "json")
    assert records.parse(capsys.readouterr().out, Bench, "output", "bench", "retry") == bench
    print_bench(made_bench([made_row(name="n[bold]|a\x1b[31mb")]), Path("x"), "csv")
    text = capsys.readouterr().out
    assert next(csv.DictReader(text.splitlines(keepends=True)))["name"] == "n[bold]|a\x1b[31mb"


def test_a_run_with_brackets_pipes_and_escapes_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("exp[bold]", "a|b", "red\x1b[31m"):
        made_trained(Path("runs") / name, (75.0, 80.0), epochs=6)
    listed = CliRunner().invoke(main, ["list"]).output
    assert "runs/exp[bold]  " in listed and "runs/a|b  " in listed and "runs/red\\x1b[31m  " in listed
    assert [run["run"] for run in json.loads(CliRunner().invoke(main, ["list", "--json"]).output)] == [
        "runs/a|b", "runs/exp[bold]", "runs/red\x1b[31m",
    ]  # fmt: skip
    missing = CliRunner().invoke(main, ["report", "lost\x1b[31m[bold]"])
    assert missing.exit_code == 1 and "no run at lost\\x1b[31m[bold] or" in missing.output
    for words in (["train", "--\x1b[31m"], ["\x1b[31m"]):
        wrong = CliRunner().invoke(main, words)
        assert wrong.exit_code == 2 and "\\x1b[31m" in wrong.output and "\x1b" not in wrong.output


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_by(error: BaseException) -> None:
        def stop(*_: object) -> None:
            raise error

        monkeypatch.setattr(command, "train", stop)

    for error, line in (
        (KeyboardInterrupt(), "stopped"),
        (Stopped("stopped; go on with 'x'"), "stopped; go on with 'x'"),
    ):
        stopped_by(error)
        result = CliRunner().invoke(main, ["train"])
        assert (result.exit_code, result.output) == (130, f"Error: {line}\n")


def test_an_epoch_stands_below_its_header_with_the_mean_loss(capsys: pytest.CaptureFixture[str]) -> None:
    print_epoch_header("family", 4, 200)
    print_epoch("family", made_epoch(3, [45.0, 50.25, 51.0, 100.0], train_loss=8.0), 200, "1:02:03")
    about, header, line = capsys.readouterr().out.splitlines()
    columns = ["family", "epoch", "loss", "peer1", "peer2", "peer3", "peer4", "ensemble", "images/s", "left"]
    assert header.split() == columns and "loss: of training, mean over peers" in about
    values = ["family", "3/200", "2.000", "45.00", "50.25", "51.00", "100.00", "101.00", "900", "1:02:03"]
    assert line.split() == values and max(map(len, (about, header, line))) <= 100
    for column, value in zip(columns[1:], values[1:], strict=True):
        end = header.index(column) + len(column)
        assert line[:end].endswith(value)
    print_epoch_header("baseline", 1, 200)
    print_epoch("baseline", made_epoch(3, [45.0], train_loss=2.0), 200, UNKNOWN)
    *_, header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["baseline", "epoch", "loss", "top-1", "images/s", "left"]
    assert line.split() == ["baseline", "3/200", "2.000", "45.00", "900", "-"]


def test_time_left_is_told_by_the_pace_of_this_process() -> None:
    told: list[tuple[str, float]] = []
    work = LongWork(total=8.0, tell=lambda label, done: told.append((label, done)), start=time.monotonic() - 3600)
    assert work.left == UNKNOWN
    work.skip(4.0)  # by a process before
    assert work.left == UNKNOWN
    work.advance(1.0, "family 3/4")
    assert told == [("family 3/4", 5.0)] and work.left.startswith("3:00:0")
    work.advance(3.0, "family 4/4")
    assert work.left == "0:00:00"
