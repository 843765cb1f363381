"""The rows of a bench: numbers from what was measured, and notes on what was not, on networks measured by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measured import CELL, measured

from wmlc import records
from wmlc.bench.cells import Measurement
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines.machine import read_environment
from wmlc.bench.engines.worker import Opened
from wmlc.bench.rows import bench_notes, indistinct_notes, make_rows
from wmlc.records import Bench, Interval, Row, Speedup, WarmUp
from wmlc.settings import BenchSettings

FEW = "p99 rests on fewer than 1,000 calls; raise --seconds for a firm one"


def rows_of(*networks: Measurement, batch: int = 1, accuracy: bool = True) -> list[Row]:
    top1 = {own.subject.key: own.top1 for own in networks if own.top1 is not None}
    by_key = {own.subject.key: own for own in networks}
    return make_rows(replace(CELL, batch=batch), by_key, top1, BenchConfig(accuracy=accuracy))


def test_every_number_follows_from_what_was_measured() -> None:
    times = [[np.array([1.0, 3.0]), np.array([2.0, 2.0])], [np.array([2.0, 4.0]), np.array([1.0, 1.0])]]
    own = measured(1, macs=40, top1=88.0, bursts=times, file_bytes=7, file_sha256="ab")
    _, row = rows_of(measured(0, 4.0, bursts=[[np.full(2, 4.0)] * 2] * 2), own, batch=8)
    expected = {
        "peer": 1, "name": "peer1", "ratio": 0.5, "achieved_ratio": 0.45, "engine": "ort", "precision": "fp32",
        "threads": 1, "batch": 8, "device": "cpu", "provider": "CPUExecutionProvider", "params": 400, "macs": 40,
        "flops": 80, "mac_ratio": 2.5, "file_bytes": 7, "file_sha256": "ab",
        "throughput_per_s": 8e3 / 2, "load_ms": 3.0, "first_ms": 6.0, "peak_memory_bytes": 300,
        "engine_memory_bytes": 200, "top1": 88.0, "top1_drop": 2.0, "scenarios": {}, "logits_apart": 1e-5,
        "compute_ms": None, "on_front": None, "warm_up": own.warm_ups[-1],
    }  # fmt: skip
    assert {name: getattr(row, name) for name in expected} == expected
    assert row.notes[0] == FEW
    assert row.latency_ms and (row.latency_ms.mean, row.latency_ms.n, row.latency_ms.min) == (2.0, 8, 1.0)
    assert row.speedup and row.speedup.median == pytest.approx(2.0) and (row.speedup.n, row.speedup.launches) == (4, 2)
    assert row.paid_out == pytest.approx(2.0 / 2.5)
    assert row.p50_interval and row.p50_interval.low <= 2.0 <= row.p50_interval.high


def test_an_interval_of_a_time_is_above_zero_however_much_that_varies() -> None:
    (row,) = rows_of(measured(0, bursts=[[np.array([1.0])], [np.array([1.0])], [np.array([80.0])]]))
    assert row.p50_interval and 0 < row.p50_interval.low <= 1.0 <= row.p50_interval.high


def test_the_baseline_is_as_fast_as_itself() -> None:
    (row,) = rows_of(measured(0))
    assert row.speedup == Speedup(median=1, low=1, high=1, n=6, launches=2)
    assert row.p50_interval == Interval(low=1, high=1)
    assert (row.top1_drop, row.mac_ratio, row.paid_out, row.notes) == (0, 1, 1, [FEW])


def test_the_engine_says_its_precision_and_compute_times_are_without_transfers() -> None:
    (row,) = rows_of(measured(0, opened=[Opened("TensorRT", "tf32", 1.0)], compute_ms=np.array([0.5, 0.7])))
    assert (row.precision, row.provider) == ("tf32", "TensorRT")
    assert row.compute_ms and row.compute_ms.p50 == pytest.approx(0.6)


def test_a_network_that_failed_has_null_values_and_the_reason() -> None:
    failed = measured(1, failure="its engine's process ended (killed by SIGKILL)", top1=None, apart=float("nan"))
    _, row = rows_of(measured(0), failed)
    for name in ("latency_ms", "speedup", "top1", "top1_drop", "throughput_per_s", "paid_out", "p50_interval",
                 "load_ms", "first_ms", "peak_memory_bytes", "warm_up", "logits_apart"):  # fmt: skip
        assert getattr(row, name) is None
    assert row.params and row.file_bytes and row.mac_ratio == 1
    assert row.notes == ["times and speed-up and top-1 not measured: its engine's process ended (killed by SIGKILL)"]
    known = measured(1, failure="it fell over", top1=80.0)  # top-1 from another cell
    assert rows_of(measured(0), known)[1].notes[0] == "times and speed-up not measured: it fell over"


def test_without_the_baselines_numbers_nothing_is_compared() -> None:
    baseline, peer = rows_of(measured(0, failure="no answer", top1=None), measured(1))
    assert peer.latency_ms and peer.speedup is peer.top1_drop is peer.paid_out is None
    assert peer.notes[0] == "no comparison with the baseline where that has no number: no answer"
    assert len(baseline.notes) == 1
    (alone,) = rows_of(measured(1))
    assert alone.speedup is alone.top1_drop is alone.mac_ratio is alone.paid_out is None and alone.top1 == 90
    assert alone.notes[0] == "speed-up, top-1 drop and the ratio of MACs need a baseline, and this run has none"


def test_notes_say_why_top1_is_missing_or_odd() -> None:
    (row,) = rows_of(measured(0, top1=None))
    assert row.notes[0] == "top-1 and its drop not measured: there is no data set; name one with --data"
    (row,) = rows_of(measured(0, top1=None), accuracy=False)
    assert row.notes[0] == "top-1 and its drop not measured: the accuracy was switched off"
    odd = measured(0)
    odd.top1 = 89.4
    assert rows_of(odd)[0].notes[-1] == (
        "top-1 is 89.40 here and was 90.00 after training; are these the same test images?"
    )
    odd.top1 = 89.6
    assert rows_of(odd)[0].notes == [FEW]
    odd.top1, odd.subject = 80.0, replace(odd.subject, precision="int8")  # which training knows nothing of
    assert rows_of(odd)[0].notes == [FEW]


def test_notes_on_times_that_say_little() -> None:
    wild = [WarmUp(calls=9, seconds=0.1, settled=settled, median_ms=1.0) for settled in (False, True)]
    slow = measured(1, 2.0, warm_ups=wild, lacking=["scenario offline not measured: no answer"])
    assert rows_of(measured(0), slow)[1].notes == [
        "the times had not settled when the warm-up ended; close other programs, or raise --seconds",
        FEW,
        "slower than the baseline: speed-up 0.50 [0.50, 0.50]",
        "scenario offline not measured: no answer",
    ]
    same = rows_of(measured(0), measured(1))[1]
    assert same.notes[-1] == "not shown to be faster than the baseline: speed-up 1.00 [1.00, 1.00]"
    many = measured(0, bursts=[[np.full(500, 1.0)] * 2])
    assert rows_of(many)[0].notes == []


def test_neighbours_that_cannot_be_told_apart_are_named() -> None:
    def noted(*networks: Measurement) -> list[str]:
        return indistinct_notes(CELL, {own.subject.key: own for own in networks}, seed=0)

    assert noted(measured(0, 2.0), measured(1, 1.0, macs=50)) == []
    assert noted(measured(0), measured(1, macs=50)) == [
        "ort, batch 1, 1 thread: peer1 and baseline cannot be told apart, their ratio is 1.00 [1.00, 1.00]"
    ]
    assert noted(measured(0), measured(1, macs=100)) == []  # of which none was expected
    assert noted(measured(0), measured(1, macs=50, failure="gone")) == []
    assert noted(measured(0), measured(1, macs=50, precision="int8")) == []
    draw = np.random.default_rng(0)
    moody = measured(1, macs=50, bursts=[[draw.lognormal(0, 0.5, 2) for _ in range(3)] for _ in range(2)])
    assert noted(measured(0), moody)[0].endswith(
        "; the machine was too noisy: close other programs, or raise --seconds"
    )


def test_a_busy_machine_is_said() -> None:
    calm = replace(read_environment({"ort": "cpu"}, (1, 2)), cores=4, load_average_before=2.0)
    assert calm.threads == [1, 2] and calm.devices == {"ort": "cpu"} and calm.cpu and calm.versions["torch"]
    busy = "the machine was busy before the bench (load 2.1 on 4 CPUs)"
    assert busy not in bench_notes(calm) and busy in bench_notes(replace(calm, load_average_before=2.1))


def test_a_bench_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = Bench(
        command="wmlc bench", environment=read_environment({"ort": "cpu"}, (1,)), settings=BenchSettings(), data=None,
        notes=[], rows=rows_of(measured(0), measured(1)), pareto=[], profiles=[],
    )  # fmt: skip
    records.write(tmp_path / "bench.json", made)
    assert records.read(tmp_path / "bench.json", Bench, "bench", "bench again") == made


def test_of_a_single_launch_it_is_said_that_launches_differ() -> None:
    rounds = [[np.full(2, 4.0)] * 2], [[np.full(2, 2.0)] * 2]
    whole, row = rows_of(*(measured(peer, bursts=bursts) for peer, bursts in enumerate(rounds)))
    words = "its interval knows nothing of how launches differ; leave --launches at more than 1"
    assert words in row.notes and words not in whole.notes
