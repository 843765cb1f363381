"""What `wmlc ship` refuses: what did not pass the bench or a gate, damaged records, servers that do not answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from measured import change_rows, copy_of

from wmlc import records
from wmlc.cli import main
from wmlc.errors import GateError, InputError
from wmlc.export import ship as ship_module
from wmlc.export.config import ShipConfig
from wmlc.export.ship import ship
from wmlc.models.checkpoint import read_spec
from wmlc.run import Run, read_family

pytest.importorskip("tritonclient.grpc.model_config_pb2")

TRITON = ShipConfig()


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["ship", *map(str, arguments)])


def test_the_bench_that_is_asked_for_keeps_the_baseline_of_the_one_that_is_there(
    benched_run: Run, tmp_path: Path
) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    change_rows(run, engine="torch")
    with pytest.raises(
        InputError, match=r"run 'wmlc bench --run .* --engine ort --precision fp32,int8' first, as only"
    ):
        list(ship(run, "1", tmp_path / "models", replace(TRITON, precision="int8")))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda run: run.bench.unlink(),
            r"so there is no bench here; run 'wmlc bench --run .* --engine ort --precision fp32' first",
        ),
        (
            lambda run: change_rows(run, engine="torch"),
            r"peer1 was not benched with --engine ort --precision fp32; run ",
        ),
        (
            lambda run: change_rows(run, latency_ms=None, notes=["times not measured: its engine's logits differ"]),
            r"peer1 did not pass the bench \(times not measured: its engine's logits differ\); it cannot ship",
        ),
        (
            lambda run: (run.onnx / "family-peer1.onnx").write_bytes(b"another"),
            r"family-peer1\.onnx is not the file that was benched; run ",
        ),
        (lambda run: (run.onnx / "family-peer1.onnx").unlink(), r"is not the file that was benched; run "),
    ],
)
def test_only_what_passed_the_bench_ships(
    benched_run: Run, tmp_path: Path, break_it: Callable[[Run], Any], message: str
) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    break_it(run)
    with pytest.raises(InputError, match=message):
        list(ship(run, "1", tmp_path / "models", TRITON))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bench: bench.clear(), r"bench\.json is no bench of this wmlc: its schema_version is "),
        (lambda bench: bench.update(rows=5), r"bench\.json is not a readable bench: rows must be .*; run 'wmlc bench"),
        (lambda bench: bench["rows"][0].pop("notes"), r"rows\[0\]\.notes is missing; run 'wmlc bench"),
        (lambda bench: bench.update(data=None), r"peer1 was not benched with --engine ort"),
    ],
)
def test_a_damaged_or_older_bench_is_one_line(
    benched_run: Run, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    bench = json.loads(run.bench.read_text())
    damage(bench)
    run.bench.write_text(json.dumps(bench))
    with pytest.raises(InputError, match=message):
        list(ship(run, "1", tmp_path / "models", TRITON))
    assert not (tmp_path / "models").exists()


def test_an_ensemble_needs_a_weight_of_each_peer(benched_run: Run, tmp_path: Path) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    records.write(run.family, replace(read_family(run), peer_weights=[1.0]))
    with pytest.raises(InputError, match="no weight of each peer"):
        list(ship(run, "1", tmp_path / "models", replace(TRITON, ensemble=True)))
    assert not (tmp_path / "models").exists()


def test_a_network_that_says_it_is_another_one_is_refused(benched_run: Run, tmp_path: Path) -> None:
    run = copy_of(benched_run, tmp_path / "run")
    spec = read_spec(run.network(1))
    records.write(run.network(1) / "spec.json", replace(spec, about=replace(spec.about, ratio=None)))
    with pytest.raises(InputError, match=r"spec\.json is damaged: it is not about peer1; train again"):
        list(ship(run, "1", tmp_path / "models", TRITON))


def test_gates_refuse_in_words_and_write_nothing(benched_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "models"
    with pytest.raises(GateError, match=r"^peer1: top-1 is [\d.]+, --min-top1 asks for 100; peer1: p99 at batch 1 is "):
        list(ship(benched_run, "1", out, replace(TRITON, min_top1=100, max_latency_ms=1e-6)))
    unmeasured = copy_of(benched_run, tmp_path / "run")
    change_rows(unmeasured, top1=None)
    with pytest.raises(GateError, match="peer2: top-1 was not measured, --min-top1 asks for 0"):
        list(ship(unmeasured, "2", out, replace(TRITON, min_top1=0)))
    result = invoke("--run", benched_run.root, "--peer", "1", "--out", out, "--min-top1", "100")
    assert result.exit_code == 3 and result.output.count("\n") == 1
    change_rows(unmeasured, top1=100.0)
    with pytest.raises(GateError, match="ensemble: top-1 is "):  # measured here, not taken from the bench
        list(ship(unmeasured, "2", out, replace(TRITON, ensemble=True, min_top1=99.9)))
    assert list(out.iterdir()) == [] if out.exists() else True
    assert list(ship(benched_run, "1", out, replace(TRITON, min_top1=0, max_latency_ms=1e6)))


def test_a_failure_on_the_way_leaves_the_repository_as_it_was(
    benched_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "models"
    list(ship(benched_run, "1", out, TRITON))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ship_module, "model_card", full)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; choose another --out"):
        list(ship(benched_run, "1,2", out, TRITON))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "heroku"}, "--to must be one of triton, kserve, ovms, mlserver, got 'heroku'"),
        ({"engine": "torch"}, "--engine must be one of ort, trt, got 'torch'"),
        ({"engine": "trt", "device": "cpu"}, "a TensorRT plan runs on a GPU; use --engine ort for the CPU"),
        ({"max_batch": 0}, "--max-batch must be from 1 to 65,536, got 0"),
        ({"queue_delay_us": 10**20}, "--queue-delay-us must be from 0 to 60,000,000, got 100000000000000000000"),
        (
            {"to": "ovms", "device": "cuda", "instances": 2},
            "--device, --instances has no place in ovms's layout; leave it out, or ship to triton",
        ),
        (
            {"max_latency_ms": 1.0, "with_preprocess": True},
            "--max-latency-ms cannot hold with --with-preprocess, a file that bench has not timed; leave one out",
        ),
        ({"min_top1": 101.0}, "--min-top1 must be from 0 to 100 percent, got 101"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms must be above 0, got 0"),
        ({"storage_uri": "pvc://x"}, "--storage-uri goes with --to kserve, got --to triton"),
    ],
)
def test_what_cannot_be_shipped_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        ShipConfig(**settings)
    assert str(raised.value) == message


def test_a_server_that_does_not_answer_is_one_line(benched_run: Run, tmp_path: Path) -> None:
    repository = tmp_path / "served" / "models"
    list(ship(benched_run, "1", repository, TRITON))
    result = invoke("--run", benched_run.root, "--out", repository, "--verify", "http://127.0.0.1:9")
    assert result.exit_code == 1 and result.output.startswith("Error: no server answers at http://127.0.0.1:9 (")
    result = invoke("--run", benched_run.root, "--out", repository, "--verify", "127.0.0.1:9")
    assert result.output == "Error: --verify takes an address like http://127.0.0.1:8000, got 127.0.0.1:9\n"
    for address in ("http://127.0.0.1:99999", "http://127.0.0.1:abc", "http://", "https://127.0.0.1:1", "http://a/b"):
        result = invoke("--run", benched_run.root, "--out", repository, "--verify", address)
        assert result.output == f"Error: --verify takes an address like http://127.0.0.1:8000, got {address}\n"
    result = invoke("--run", benched_run.root, "--out", repository.parent, "--verify", "http://127.0.0.1:9")
    assert "there is no shipped model in" in result.output
    assert invoke("--run", benched_run.root).exit_code == 2
    result = invoke("--run", benched_run.root, "--verify", "http://127.0.0.1:9", "--peer", "1")
    assert result.output == "Error: --verify ships nothing: give it --out, --run and --json, without --peer\n"


def test_a_version_that_takes_pictures_in_another_way_is_refused(benched_run: Run, tmp_path: Path) -> None:
    (version,) = ship(benched_run, "1", tmp_path / "models", TRITON)
    manifest = json.loads((version / "manifest.json").read_text())
    for key, value in (("mean", [9.0] * len(manifest["preprocess"]["mean"])), ("inside", True)):
        former = manifest | {"preprocess": manifest["preprocess"] | {key: value}}
        (version / "manifest.json").write_text(json.dumps(former))
        with pytest.raises(
            InputError, match=r"1 in this repository takes pictures in another way \(.*ship into another"
        ):
            list(ship(benched_run, "1", tmp_path / "models", TRITON))
    assert [path.name for path in version.parent.iterdir() if path.is_dir()] == ["1"]


def test_a_name_that_is_elsewhere_already_is_refused_before_anything_is_there(benched_run: Run, tmp_path: Path) -> None:
    (version,) = ship(benched_run, "1", tmp_path / "first", replace(TRITON, to="ovms"))
    there = {"config": {"name": version.parent.name, "base_path": "/elsewhere/m"}}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_text(json.dumps({"model_config_list": [there]}))
    with pytest.raises(InputError, match="at /elsewhere/m already; move it away"):
        list(ship(benched_run, "1", tmp_path / "models", replace(TRITON, to="ovms")))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["config.json"]
