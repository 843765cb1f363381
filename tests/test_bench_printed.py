"""What a bench prints: tables that fit a terminal, and the same in Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from measured import classifier, engines_in_process, faster

from wmlc import records
from wmlc.cli import main
from wmlc.records import Bench
from wmlc.report.terminal import print_bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a bench of two files, run in this process."""
    engines_in_process(monkeypatch)
    files = [classifier(tmp_path / "wide.onnx", 32), classifier(tmp_path / "narrow.onnx", 8)]
    return ["bench", *map(str, files), "--seconds", "0.01", "--launches", "1", "--no-accuracy"]


def test_the_table_fits_100_columns_and_says_each_note_once(
    bench: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CliRunner().invoke(main, [*bench, "--out", str(tmp_path / "bench.json")]).exit_code == 0
    made = records.read(tmp_path / "bench.json", Bench, "bench", "bench again")
    wide = [
        replace(
            row, params=25_600_000, macs=4_090_000_000, file_bytes=102_000_000, ratio=0.7, top1=76.13, batch=batch,
            speedup=faster(12.34, 0.22), notes=["said once"],
        )
        for batch in (1, 8) for row in made.rows
    ]  # fmt: skip
    print_bench(replace(made, rows=wide), Path("bench.json"), "table")
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("network ", "wide ", "narrow "))]
    assert len(table) == 2 * (len(wide) + 2)
    assert max(map(len, lines)) <= 100
    assert lines.count("note: all: said once") == 1


def test_formats(bench: list[str], tmp_path: Path) -> None:
    def run(shown: str) -> Result:
        return CliRunner().invoke(main, [*bench, "--format", shown, "--out", str(tmp_path / f"{shown}.json")])

    markdown = run("md")
    assert markdown.exit_code == 0, markdown.output
    lines = [line for line in markdown.stdout.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [10] * 4 + [11] * 4
    assert set(lines[1]) == set("| -:") and lines[1].startswith("| ---") and lines[1].endswith("---: |")
    rows = list(csv.DictReader(io.StringIO(run("csv").stdout)))
    record = json.loads((tmp_path / "csv.json").read_text())
    assert [row["name"] for row in rows] == ["wide", "narrow"]
    assert [float(row["latency_ms_p50"]) for row in rows] == [row["latency_ms"]["p50"] for row in record["rows"]]
    assert json.loads(run("json").stdout) == json.loads((tmp_path / "json.json").read_text())
    assert record["command"].startswith("wmlc bench ") and record["command"].endswith("csv.json")
    assert "\x1b" not in markdown.stdout


def test_layers_stand_side_by_side(bench: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*bench, "--profile", "--out", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, result.output
    assert "narrow beside wide, ort, batch 1" in result.output


def test_a_gate_that_is_missed_comes_after_the_tables(bench: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*bench, "--min-speedup", "1e6", "--out", str(tmp_path / "bench.json")])
    assert result.exit_code == 3 and (tmp_path / "bench.json").exists()
    assert "wrote " in result.output
    assert result.output.splitlines()[-1].startswith("Error: narrow at batch 1: speed-up ")
