"""The Pareto front, and the peer to ship within bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made import made_bench, made_family, made_run, made_settings
from measured import made_row

from wmlc import records
from wmlc.bench.choose import Among, Bounds, choose, described, pareto, ship_command
from wmlc.cli import main
from wmlc.errors import GateError, InputError
from wmlc.files import sha256
from wmlc.records import Bench
from wmlc.run import Run

ROWS = [
    made_row(0, 4.0, 80.0),
    made_row(1, 1.0, 70.0),
    made_row(2, 2.0, 75.0),
    made_row(3, 3.0, 74.0),
    made_row(4, 4.5, 79.0),
]


def test_the_front_holds_what_nothing_beats_in_both():
    rows, (front,) = pareto(ROWS)
    assert [point.name for point in front.points] == ["peer1", "peer2", "baseline"]
    assert [row.on_front for row in rows] == [True, True, True, False, False]
    assert [replace(row, on_front=None) for row in rows] == ROWS


def test_equals_share_the_front_and_engines_have_fronts_of_their_own():
    alike = [made_row(1, 1.0, 70.0), made_row(2, 1.0, 70.0)]
    rows, fronts = pareto([*alike, made_row(3, 0.5, 90.0, engine="torch"), made_row(4, 1.0, None), made_row(5, None)])
    assert [[point.peer for point in front.points] for front in fronts] == [[1, 2], [3]]
    assert rows[3].on_front is rows[4].on_front is None


@pytest.mark.parametrize(
    ("bounds", "chosen"),
    [
        (Bounds(max_latency_ms=5.0), "peer2"),  # the most accurate of peers 1 and 2
        (Bounds(max_latency_ms=3.0), "peer1"),
        (Bounds(max_latency_ms=100.0), "peer4"),
        (Bounds(min_top1=72.0), "peer2"),  # the fastest of those above
        (Bounds(max_bytes=3000), "peer2"),
        (Bounds(max_macs=15), "peer1"),
        (Bounds(max_macs=35, min_top1=74.5), "peer2"),
    ],
)
def test_the_most_accurate_within_the_bounds_is_chosen(bounds, chosen):
    assert choose(ROWS, bounds).name == chosen


def test_where_none_fits_the_nearest_is_named_and_by_how_much_it_misses():
    with pytest.raises(GateError) as raised:
        choose(ROWS, Bounds(max_latency_ms=1.5))
    assert str(raised.value) == "none of 4 networks fits; the nearest, peer1, takes 2 ms (p99), 0.5 above 1.5"
    with pytest.raises(GateError) as raised:
        choose(ROWS, Bounds(max_bytes=500, min_top1=99))
    assert str(raised.value) == (
        "none of 4 networks fits; the nearest, peer1, has 1,000 bytes, 500 above 500 and has top-1 70.00, 29 points below 99"
    )


def test_what_was_not_measured_is_not_chosen_and_what_was_not_benched_is_refused():
    with pytest.raises(InputError, match="no peer whose numbers"):
        choose([made_row(0, 1.0, 80.0), made_row(1, 1.0, None)], Bounds(min_top1=10))
    failed = replace(made_row(1, 1.0, None), latency_ms=None, notes=["times not measured: it was killed"])
    with pytest.raises(InputError, match=r"be held against \(it was killed\); bench it again"):
        choose([made_row(0, 1.0, 80.0), failed], Bounds(max_bytes=10**6))
    with pytest.raises(InputError, match="engine trt was not benched, ort was"):
        choose(ROWS, Bounds(max_bytes=10**6), Among(engine="trt"))
    with pytest.raises(InputError, match="name at least one bound: --max-latency-ms"):
        Bounds()
    with pytest.raises(InputError, match="--max-macs must be above 0, got -1"):
        Bounds(max_macs=-1)


def invoke(*words: str) -> Any:
    return CliRunner().invoke(main, ["choose", *words])


def test_the_command_names_a_peer_and_how_to_ship_it(benched_run: Run, tmp_path: Path):
    result = invoke("--run", str(benched_run.root), "--max-bytes", "100000000")
    assert result.exit_code == 0, result.output
    assert f"ship it: wmlc ship --run {benched_run.root} --peer " in result.output
    as_json = invoke("--run", str(benched_run.root), "--max-bytes", "100000000", "--precision", "int8", "--json")
    chosen = json.loads(as_json.output)
    assert chosen["precision"] == "int8" and chosen["command"].endswith("--engine ort --precision int8")
    result = invoke("--run", str(benched_run.root), "--max-bytes", "10")
    assert result.exit_code == 3
    assert result.output.startswith("Error: none of ") and "above 10" in result.output
    result = invoke("--run", str(benched_run.root), "--bench", str(tmp_path / "no.json"), "--max-bytes", "10")
    assert result.exit_code == 1 and "run 'wmlc bench --run" in result.output
    alone = invoke("--bench", str(benched_run.bench), "--max-bytes", "100000000")  # which no run is known to belong to
    assert alone.exit_code == 0 and "ship it" not in alone.output


def test_a_bench_of_another_run_is_refused(tmp_path: Path):
    run = made_run(tmp_path / "a", made_settings(), made_family())
    (run.network(1) / "weights.safetensors").write_bytes(b"weights")
    bench, words = tmp_path / "b.json", ("--run", str(run.root), "--max-bytes", "100000000")
    for sha, code in (("0" * 64, 1), (sha256(run.network(1) / "weights.safetensors"), 0)):
        records.write(bench, made_bench([made_row(0, 2.0, 90.0), made_row(1, 1.0, 80.0, file_sha256=sha)]))
        result = invoke(*words, "--bench", str(bench))
        assert result.exit_code == code, result.output
        said = (
            f"{bench} was measured of no file of {run.root}; name the run that it is of, or leave --run or --bench out"
        )
        assert (result.output == f"Error: {said}\n") is bool(code)


def test_a_damaged_bench_is_refused_in_one_line(benched_run: Run, tmp_path: Path):
    record = json.loads(benched_run.bench.read_text())
    record["rows"][0]["top1"], record["rows"][1]["latency_ms"] = 101, {"p50": "fast"}
    (tmp_path / "bench.json").write_text(json.dumps(record))
    result = invoke("--bench", str(tmp_path / "bench.json"), "--max-bytes", "10")
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert "rows[0].top1 must be" in result.output and "rows[1].latency_ms" in result.output
    assert result.output.rstrip().endswith("run 'wmlc bench' first")


def test_only_what_ship_would_take_is_offered_for_shipping(benched_run: Run):
    record = records.read(benched_run.bench, Bench, "bench", "bench again")
    small = next(row for row in record.rows if row.peer == 1 and row.precision == "int8")
    large, elsewhere = replace(small, batch=8), replace(small, engine="openvino")
    settings = replace(record.settings, target="cpu")
    record = replace(record, rows=[*record.rows, large, elsewhere], settings=settings)
    command = ship_command(Run(Path("my runs/a")), record, small)
    assert command == "wmlc ship --run 'my runs/a' --peer 1 --engine ort --precision int8 --target cpu"
    assert ship_command(benched_run, record, large) is None
    assert ship_command(benched_run, record, elsewhere) is None


def test_a_share_is_no_percent_and_a_gain_no_negative_loss():
    with pytest.raises(InputError, match=r"--min-top1 is in percent, got 0\.65; did you mean 65\?"):
        Bounds(min_top1=0.65)
    gained, lost = (replace(made_row(1, 1.0, 70.0), top1_drop=drop) for drop in (-3.333, 2.0))
    assert "70.00 (3.33 above the baseline)" in described(gained)
    assert "70.00 (2.00 below the baseline)" in described(lost)


def test_what_is_named_is_looked_for_before_what_is_not():
    """Batch 8 was benched with two threads alone, and the bench's first row has one."""
    rows = [made_row(1, 1.0, 70.0, threads=1, batch=1), made_row(2, 2.0, 75.0, threads=2, batch=8)]
    assert choose(rows, Bounds(min_top1=60.0), Among(batch=8)).peer == 2
    with pytest.raises(InputError, match="batch 8 was not benched, 1 was"):
        choose(rows, Bounds(min_top1=60.0), Among(threads=1, batch=8))


def test_json_says_whether_the_baseline_fits_too(benched_run: Run):
    found = [invoke("--run", str(benched_run.root), *bound, "--json") for bound in (("--max-bytes", "100000000"),)]
    assert [json.loads(result.output)["baseline_fits"] for result in found] == [True]


def test_a_long_time_has_all_its_digits():
    slow = made_row(1, 1234.5, 70.0)
    assert described(slow).startswith("p50 1,234 ms, p99 2,469 ms") and described(ROWS[1]).startswith(
        "p50 1 ms, p99 2 ms"
    )
    with pytest.raises(GateError, match=r"peer1, takes 2,469 ms \(p99\), 1,469 above 1,000"):
        choose([slow], Bounds(max_latency_ms=1000.0))
