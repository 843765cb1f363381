"""What `wmlc bench` prints: tables within 100 columns, each note once, and the same as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from made import made_bench, made_latency, made_layer, made_profile, made_row, made_speedup

from wmlc import records
from wmlc.layer_pairs import OTHER
from wmlc.records import Bench, Interval, Row, Scenario, Trial
from wmlc.report.terminal import _colour, layer_table, print_bench, profiled_words, short_name
from wmlc.settings import BenchSettings

OUT = Path("bench.json")


def shown(capsys: pytest.CaptureFixture[str], bench: Bench, form: str = "table") -> list[str]:
    print_bench(bench, OUT, form)
    return capsys.readouterr().out.splitlines()


def two_cells() -> list[Row]:
    rows = [made_row(peer, 2.0 - peer, (0.9, 1.0 + peer, 3.0), batch=batch) for batch in (1, 8) for peer in (0, 1)]
    return [replace(row, notes=["said once"]) for row in rows]


def test_the_tables_fit_100_columns_and_say_each_note_once(capsys: pytest.CaptureFixture[str]) -> None:
    large = {"params": 25_600_000, "macs": 4_090_000_000, "file_bytes": 102_000_000, "ratio": 0.7, "top1": 76.13}
    rows = [replace(row, speedup=made_speedup(12.12, 12.34, 12.56), **large) for row in two_cells()]
    lines = shown(capsys, made_bench(rows))
    table = [line for line in lines if line.startswith(("network ", "baseline ", "peer1 "))]
    assert len(table) == 2 * (len(rows) + 2)
    assert max(map(len, lines)) <= 100
    assert lines.count("note: all: said once") == 1 and lines[-1] == "wrote bench.json"


def test_a_row_tells_what_was_measured_and_dashes_what_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    peer = made_row(1, 1.6, (1.2, 1.25, 1.3), params=3000, macs=300, mac_ratio=3.333, paid_out=0.375, on_front=True,
                    top1=89.0, top1_drop=1.0)  # fmt: skip
    failed = made_row(1, None, name="peer1 int8", top1=None, top1_drop=None, mac_ratio=None, load_ms=None,
                      notes=["times not measured: it crashed"])  # fmt: skip
    lines = shown(capsys, made_bench([made_row(on_front=True), peer, failed]))
    words = [line.split() for line in lines]
    assert lines[1] == "batch 1, ort on a CPU, threads: 1"
    assert [
        "peer1",
        "70/70",
        "300",
        "1.60",
        "5.0",
        "2.40",
        "1.25",
        "[1.20,1.30]",
        "89.00",
        "[88.4,89.6]",
        "1.00",
    ] in words
    assert ["peer1", "int8", "70/70", "1k", "-", "-", "-", "-", "-", "-"] in words
    assert ["peer1", "3k", "40kB", "1000", "12.0", "5.00", "90MB", "625.0", "3.33", "0.38"] in words
    assert "Pareto front over p50 and top-1: peer1, baseline" in lines
    assert lines[-2] == "note: peer1 int8: times not measured: it crashed"


def test_names_give_way_where_a_table_is_wide(capsys: pytest.CaptureFixture[str]) -> None:
    large = {"macs": 4_090_000_000, "ratio": 0.7, "top1": 76.13, "top1_drop": -10.25}
    rows = [replace(row, name=f"{'x' * 40}{row.name} int8", speedup=made_speedup(12.1, 12.3, 12.5), **large)
            for row in two_cells()]  # fmt: skip
    lines = shown(capsys, made_bench(rows))
    assert max(map(len, lines)) <= 100 and sum("peer1 int8" in line and "[75.3,77.0]" in line for line in lines) == 2


def test_without_a_number_of_images_a_top1_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, made_bench([made_row()], data=None))
    assert any(line.split()[-2:] == ["90.00", "0.00"] for line in lines)


def test_a_note_of_one_cell_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = two_cells()
    rows[3] = replace(rows[3], notes=["slow"])
    lines = shown(capsys, made_bench(rows, notes=["busy"]))
    assert lines[-4:-1] == ["note: busy", "note: baseline, peer1 (batch 1): said once", "note: peer1 (batch 8): slow"]


def test_scenarios_have_a_table_each_and_stars(capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial(rate_per_s=60.0, p99_ms=None, n=3, held=False)
    found = {
        "offline": Scenario(valid=False, samples_per_s=1234.0, n=3),
        "server": Scenario(valid=True, latency_bound_ms=20.0, failed_rate_per_s=60.0, trials=[trial]),
        "single-stream": Scenario(valid=True, p50_ms=1.5, p90_ms=2.0, p99_ms=3.0, n=64),
    }
    bench = made_bench([made_row(scenarios=found, compute_ms=made_latency(1.0))])
    lines = shown(capsys, bench)
    words = [line.split() for line in lines]
    assert "server, p99 ≤ 20 ms" in lines and "without transfers" in lines
    assert ["baseline", "1,234*", "3"] in words
    assert ["baseline", "-", "60.0", "-", "-", "-"] in words
    assert ["baseline", "1.50", "2.00", "3.00", "64"] in words
    assert "*: of too few queries for LoadGen to vouch for it; raise --seconds" in lines


def test_csv_and_json_are_all_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"server": Scenario(valid=True, latency_bound_ms=20.0, rate_per_s=50.0, n=100)}
    bench = made_bench([made_row(scenarios=found, speedup=(1.0, 1.0, 1.0)), made_row(1, None, notes=["a", "b"])])
    print_bench(bench, OUT, "json")
    printed = capsys.readouterr()
    assert (
        records.parse(printed.out, Bench, "output", "bench", "retry") == bench and printed.err == "wrote bench.json\n"
    )
    print_bench(bench, OUT, "csv")
    first, second = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (first["latency_ms_p50"], first["server_rate_per_s"], second["speedup_low"]) == ("2.0", "50.0", "")
    assert (second["latency_ms_p50"], second["notes"], second["top1"]) == ("", "a; b", "90.0")
    assert json.loads(first["macs"]) == 1000 and not {"scenarios", "latency_ms", "speedup"} & first.keys()


def test_what_peers_were_cut_for_stands_beside_what_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [made_row(), *(made_row(peer, 1.0, latency_budget_ms=ms, budget_met=ms >= 1.0, p50_interval=interval)
            for peer, ms, interval in ((1, 0.8, Interval(low=0.9, high=1.1)), (2, 1.2, Interval(low=0.9, high=1.1)),
                                       (3, 1.05, Interval(low=0.9, high=1.1)))),
            made_row(4, None, latency_budget_ms=1.2)]  # fmt: skip
    lines = shown(capsys, made_bench(rows))
    start = lines.index("latency budgets")
    assert [line.split(maxsplit=5) for line in lines[start + 2 : start + 6]] == [
        ["peer1", "0.800", "1.00", "[0.900,1.10]", "125.0", "missed"],
        ["peer2", "1.20", "1.00", "[0.900,1.10]", "83.3", "met"],
        ["peer3", "1.05", "1.00", "[0.900,1.10]", "95.2", "met, not for sure"],
        ["peer4", "1.20", "-", "-", "-"],
    ]
    assert max(map(len, lines)) <= 100
    assert "latency budgets" not in shown(capsys, made_bench([made_row()]))


def test_convolutions_outside_of_the_blocked_layout_have_a_star(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [made_profile(peer, [made_layer("stem", 1.0, channels=(3, 8), blocked=True),
                                    made_layer("conv", 1.0, channels=(8 - peer, 8), blocked=not peer)])
                for peer in (0, 1)]  # fmt: skip
    asked = made_bench([made_row()], profiles=profiles, settings=BenchSettings(profile=True))
    lines = shown(capsys, asked)
    assert [line.split()[1] for line in lines if line.startswith(("stem", "conv"))] == ["3,8", "8,8→7,8*"]
    assert "*: outside of ONNX Runtime's blocked layout, which these channels do not fit" in lines
    calm = replace(asked, profiles=profiles[:1] * 2)
    assert not any(line.startswith("*") for line in shown(capsys, calm))


def test_markdown_has_whole_tables(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, made_bench(two_cells()), "md")
    assert lines[1] == "**batch 1, ort on a CPU, threads: 1**" and lines[2] == ""
    assert lines[-2] == "- all: said once"
    assert {line.count("|") for line in lines if line.startswith("|")} == {10, 11}


def test_profiles_stand_beside_the_baseline_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [made_profile(peer, [made_layer("stem", 1.0)]) for peer in (0, 1)]
    asked = made_bench([made_row()], profiles=profiles, settings=BenchSettings(profile=True))
    assert "peer1 beside baseline, ort, batch 1, threads 1" in shown(capsys, asked)
    lone = replace(asked, profiles=profiles[1:])
    assert "peer1, ort, batch 1, threads 1" in shown(capsys, lone)
    assert not any("beside" in line for line in shown(capsys, replace(asked, settings=BenchSettings())))


def test_the_layers_table_fits_the_terminal() -> None:
    made = made_profile(
        1,
        [
            made_layer("stem.conv", 0.5, 442_368, (3, 16), intensity=11.34),
            *(made_layer(f"stage3.{i}.a-very-long-name.conv1", 12.5, 2_359_296, (512, 512)) for i in range(20)),
            made_layer(f"{OTHER}Flatten", 0.25, 0, None, op="Flatten", intensity=None),
        ],
        p50_ms=20.0,
        profiled_ms=11.2,
    )
    assert profiled_words(made) == (
        "peer1: its layers add up to 11.2 ms with the profiler on, a call takes 20 ms without it (p50)"
    )
    assert profiled_words(replace(made, p50_ms=None)).endswith("11.2 ms, with what the profiler itself takes")
    halved = replace(made, layers=[replace(one, macs=one.macs // 2, ms=one.ms * 0.99) for one in made.layers])
    table = layer_table(made, halved)
    assert max(map(len, table.lines())) <= 100
    assert table.rows[0] == ("stem.conv", "3,16", "442k→221k", "11.3", "0.500→0.495", "1.01", "no faster")
    assert table.rows[1][4] == "12.5→12.4"
    assert table.rows[-1] == ("Flatten", "-", "-", "-", "0.250→0.247", "1.01", "")
    assert short_name("stage3.0.a-very-long-name.conv1") == "….a-very-long-name.conv1"


def test_each_column_has_its_own_number(capsys: pytest.CaptureFixture[str]) -> None:
    times = made_latency(2.0, p90=2.4, p99=3.5)
    row = made_row(
        1, ratio=0.7, achieved_ratio=0.68, latency_ms=times, compute_ms=made_latency(1.0, p90=1.1, p99=1.7, n=64)
    )
    words = [line.split() for line in shown(capsys, made_bench([row]))]
    assert ["peer1", "70/68", "1k", "2.00", "5.0", "3.50", "-", "90.00", "[89.4,90.6]", "0.00"] in words
    assert ["peer1", "1.00", "1.70", "64"] in words


def test_a_cell_on_a_gpu_names_it_and_no_threads(capsys: pytest.CaptureFixture[str]) -> None:
    bench = made_bench([made_row(), made_row(device="cuda"), made_row(1, device="cuda")])
    bench = replace(bench, environment=replace(bench.environment, gpu="a GPU"))
    lines = shown(capsys, bench)
    assert "batch 1, ort on a CPU, threads: 1" in lines and "batch 1, ort on a GPU" in lines
    rows = [line.split()[0] for line in lines if line.startswith(("batch", "baseline", "peer1"))]
    assert rows == ["batch", "baseline", "baseline", "batch", "baseline", "peer1", "baseline", "peer1"]


def test_only_a_speed_up_that_was_shown_is_green() -> None:
    for speedup, colour in (((1.1, 1.2, 1.3), "green"), ((0.9, 1.2, 1.3), "yellow"), ((0.7, 0.8, 1.1), "yellow"),
                            ((0.7, 0.8, 0.9), "red"), (None, "")):  # fmt: skip
        assert _colour(made_row(1, speedup=speedup)) == colour
    assert _colour(made_row(0, speedup=(1.1, 1.2, 1.3))) == ""


def test_a_profile_stands_beside_the_baseline_of_its_own_batch(capsys: pytest.CaptureFixture[str]) -> None:
    profiles = [made_profile(peer, [made_layer("stem", ms)], batch=batch)
                for batch, peer, ms in ((8, 0, 8.0), (1, 0, 1.0), (1, 1, 0.5), (8, 1, 16.0))]  # fmt: skip
    asked = made_bench([made_row()], profiles=profiles, settings=BenchSettings(profile=True))
    lines = shown(capsys, asked)
    assert [line.split()[-1] for line in lines if line.startswith("stem")] == ["2.00", "0.50"]
    assert [line for line in lines if " beside " in line] == [
        "peer1 beside baseline, ort, batch 1, threads 1", "peer1 beside baseline, ort, batch 8, threads 1",
    ]  # fmt: skip
