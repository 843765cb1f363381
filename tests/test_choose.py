"""The Pareto front, and the peer to ship within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wmlc.bench.choose import Bounds, choose, pareto, ship_command
from wmlc.cli import main
from wmlc.errors import GateError, InputError
from wmlc.run import Run


def row(peer: int, p50: float, top1: float | None, **other: Any) -> dict[str, Any]:
    return {
        "peer": peer, "name": f"peer{peer}" if peer else "baseline", "engine": "ort", "threads": 1, "batch": 1,
        "precision": "fp32", "latency_ms": {"p50": p50, "p99": 2 * p50}, "top1": top1, "top1_drop": None,
        "file_bytes": 1000 * peer or 5000, "macs": 10 * peer or 50, "speedup": None, "on_front": None, **other,
    }  # fmt: skip


ROWS = [row(0, 4.0, 80.0), row(1, 1.0, 70.0), row(2, 2.0, 75.0), row(3, 3.0, 74.0), row(4, 4.5, 79.0)]


def test_the_front_holds_what_nothing_beats_in_both():
    rows = [dict(each) for each in ROWS]
    (front,) = pareto(rows)
    assert [point["name"] for point in front["points"]] == ["peer1", "peer2", "baseline"]
    assert [each["on_front"] for each in rows] == [True, True, True, False, False]


def test_equals_share_the_front_and_engines_have_fronts_of_their_own():
    rows = [row(1, 1.0, 70.0), row(2, 1.0, 70.0), row(3, 0.5, 90.0, engine="torch"), row(4, 1.0, None)]
    fronts = pareto(rows)
    assert [[point["peer"] for point in front["points"]] for front in fronts] == [[1, 2], [3]]
    assert rows[3]["on_front"] is None


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
    assert choose(ROWS, bounds)["name"] == chosen


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
        choose([row(0, 1.0, 80.0), row(1, 1.0, None)], Bounds(min_top1=10))
    with pytest.raises(InputError, match="engine trt was not benched, ort was"):
        choose(ROWS, Bounds(max_bytes=10**6), engine="trt")
    with pytest.raises(InputError, match="name at least one bound: --max-latency-ms"):
        Bounds()
    with pytest.raises(InputError, match="max_macs must be above 0, got -1"):
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


def test_only_what_ship_would_take_is_offered_for_shipping(benched_run: Run):
    record = json.loads(benched_run.bench.read_text())
    small = next(row for row in record["rows"] if row["peer"] == 1 and row["precision"] == "int8")
    large = {**small, "batch": 8}
    record["rows"].append(large)
    record["settings"]["target"] = "cpu"
    command = ship_command(Run(Path("my runs/a")), record, small)
    assert command == "wmlc ship --run 'my runs/a' --peer 1 --engine ort --precision int8 --target cpu"
    assert ship_command(benched_run, record, large) is None
    assert ship_command(benched_run, record, {**small, "engine": "openvino"}) is None
