"""What goes along with a shipped model, by records made by hand: each number and each file is the one that was meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import (
    made_bench,
    made_family,
    made_framing,
    made_latency,
    made_row,
    made_run,
    made_settings,
    made_speedup,
)
from made_files import write_plan

from wmlc import records
from wmlc.errors import InputError
from wmlc.export import benched as room
from wmlc.export.benched import Benched, as_benched, check_device, missed_gates, read_bench, read_benched
from wmlc.export.card import make_manifest, model_card
from wmlc.export.config import ShipConfig
from wmlc.export.layouts import Model, lay_out
from wmlc.export.naming import model_name
from wmlc.export.publish import check_same_interface, refuse_foreign
from wmlc.files import sha256
from wmlc.plan_record import read_record
from wmlc.records import (
    About,
    Cost,
    Interval,
    Manifest,
    NetworkSpec,
    Row,
    ShippedAccuracy,
    ShippedLatency,
    ShippedPlan,
)
from wmlc.run import Run
from wmlc.settings import BenchSettings

ONNX = ShipConfig(to="mlserver")


def gated(row: Row, **gates: Any) -> list[str]:
    assert row.latency_ms is not None
    own = Benched(row=row, latency=row.latency_ms, machine=None, time="", test_images=100, against="fp32")
    return missed_gates("peer1", own, ShipConfig(**gates))


def test_a_gate_of_latency_holds_p99_and_the_bound_itself_passes() -> None:
    row = made_row(1, latency_ms=made_latency(2.0, p99=3.0), top1=89.0, batch=8)
    assert gated(row, max_latency_ms=3.0) == [] and gated(row, min_top1=89.0) == []
    assert gated(row, max_latency_ms=2.9) == ["peer1: p99 at batch 8 is 3 ms, --max-latency-ms allows 2.9"]
    assert gated(row, min_top1=89.01) == ["peer1: top-1 is 89.00, --min-top1 asks for 89.01"]
    unmeasured = replace(row, top1=None)
    assert gated(unmeasured, min_top1=0.0) == ["peer1: top-1 was not measured, --min-top1 asks for 0"]
    assert gated(unmeasured) == []


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    """A run whose peer1 was benched twice on a CPU, in two sizes of batch, and whose first precision was int8."""
    settings = made_settings()
    file = tmp_path / "run" / "onnx" / "family-peer1.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"a network")
    rows = [made_row(1, float(batch), batch=batch, file_sha256=sha256(file)) for batch in (8, 1, 32)]
    rows[1] = replace(rows[1], time="2025-01-01T00:00:00+00:00")
    bench = made_bench([made_row(0), *rows], settings=BenchSettings(precisions=("int8", "fp32")))
    bench = replace(bench, environment=replace(bench.environment, gpu="a GPU"))
    records.write(file.parents[1] / "bench.json", bench)
    made_run(tmp_path / "made", settings, made_family(settings=settings))
    for name in ("config.json", "family.json"):
        (tmp_path / "made" / name).rename(tmp_path / "run" / name)
    return Run(tmp_path / "run")


def with_rows(small_run: Run, **changes: Any) -> None:
    bench = records.read(small_run.bench, type(made_bench([])), "bench", "")
    records.write(small_run.bench, replace(bench, rows=[replace(row, **changes) for row in bench.rows]))


def test_what_ships_was_measured_at_the_smallest_batch_on_that_machine(small_run: Run) -> None:
    found = read_benched(small_run, read_bench(small_run, ONNX), 1, ONNX)
    assert (found.row.batch, found.latency.p50, found.test_images, found.against) == (1, 1.0, 10_000, "int8")
    assert (found.machine, found.time) == ("a CPU", "2025-01-01T00:00:00+00:00")
    with_rows(small_run, device="cuda", time=None)
    on_gpu = read_benched(small_run, read_bench(small_run, ONNX), 1, ONNX)
    assert (on_gpu.machine, on_gpu.time) == ("a GPU", "2026-01-02T03:04:05+00:00")


def test_another_file_than_the_benched_one_is_refused(small_run: Run) -> None:
    (small_run.onnx / "family-peer1.onnx").write_bytes(b"another network")
    with pytest.raises(InputError, match=r"family-peer1\.onnx is not the file that was benched; run 'wmlc bench"):
        read_benched(small_run, read_bench(small_run, ONNX), 1, ONNX)


def test_a_budget_that_was_missed_is_said_and_one_that_was_met_is_not(
    small_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for met, said in ((True, ""), (False, "peer1 misses its budget of 0.5 ms: 1 ms (p50)\n")):
        with_rows(small_run, latency_budget_ms=0.5, budget_met=met)
        read_benched(small_run, read_bench(small_run, ONNX), 1, ONNX)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("device", "config", "words"),
    [
        ("cpu", {}, ""),
        ("cuda", {}, ""),
        ("cpu", {"device": "cuda"}, "peer1 was benched on cpu, and triton will run it on cuda: its latency there is another"),
        ("cuda", {"device": "cpu"}, "peer1 was benched on cuda, and triton will run it on cpu: its latency there is"),
        ("cuda", {"to": "ovms"}, "peer1 was benched on cuda, and ovms will run it on cpu: its latency there is another"),
    ],
)  # fmt: skip
def test_a_server_on_another_device_has_another_latency(
    device: str, config: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = made_row(1, device=device)
    check_device("peer1", row, ShipConfig(**config))
    assert " ".join(capsys.readouterr().err.split()).startswith(words) and bool(words) == (
        room.served_on(row, ShipConfig(**config)) != device
    )
    if words:
        with pytest.raises(InputError, match="so --max-latency-ms says nothing of it"):
            check_device("peer1", row, ShipConfig(**config, max_latency_ms=5.0))


def test_int8_is_for_the_target_that_is_named_or_else_was_benched() -> None:
    bench = made_bench([], settings=BenchSettings(target="gpu"))
    for config, target in (({}, None), ({"precision": "int8"}, "gpu"), ({"precision": "int8", "target": "cpu"}, "cpu")):
        assert as_benched(ShipConfig(**config), bench).target == target


def test_int8_of_a_gpu_runs_on_no_cpu_that_did_not_bench_it() -> None:
    int8 = {"precision": "int8", "target": "gpu"}
    check_device("peer1", made_row(1, device="cpu"), ShipConfig(to="mlserver", **int8))
    for device, to in (("cpu", "ovms"), ("cuda", "mlserver")):
        with pytest.raises(InputError, match=f"may give other answers in {to} on the CPU"):
            check_device("peer1", made_row(1, device=device), ShipConfig(to=to, **int8))


SPEC = NetworkSpec(
    arch="resnet20", class_names=["cat", "dog", "cow"], input_shape=(3, 24, 32), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6],
    widths={}, framing=made_framing(32),
    about=About(peer=1, ratio=0.7, achieved_ratio=0.68, ratio_of="params", data="cifar10", method="wml", seed=3, commit="abc"),
)  # fmt: skip
MODEL = Model(name="m", version=2, file_name="model.onnx", labels=SPEC.class_names, input_dims=[3, 24, 32], pixels=False,
              device="cpu", threads=4, preferred_batches=[])  # fmt: skip
LATENCY = ShippedLatency(
    ms=made_latency(2.0, p90=2.4, p99=3.5), p50_interval=Interval(low=1.9, high=2.1), batch=8, engine="ort",
    provider="CPUExecutionProvider", machine="a CPU", threads=4, speedup=made_speedup(1.5, 1.6, 1.7),
    throughput_per_s=512.0, time="", of_sha256="0" * 64,
)  # fmt: skip


def manifest(root: Path, spec: NetworkSpec = SPEC, latency: ShippedLatency | None = LATENCY, **config: Any) -> Manifest:
    """Of a file of five bytes, shipped from a run in `root`."""
    root.mkdir(exist_ok=True)
    file = root / "x.onnx"
    file.write_bytes(b"bytes")
    return make_manifest(
        replace(MODEL, labels=spec.class_names), file, spec, Run(root), latency=latency, cost=Cost(3210, 345), plan=None,
        config=ShipConfig(**config),
        accuracy=ShippedAccuracy(top1=88.5, top1_drop=1.25, test_images=400, engine="ort", baseline_precision="fp32"),
    )  # fmt: skip


def test_a_manifest_says_how_pictures_come_in(tmp_path: Path) -> None:
    plain, pixels = manifest(tmp_path), manifest(tmp_path, with_preprocess=True)
    assert (plain.input.dtype, plain.input.layout, plain.input.shape) == ("float32", "NCHW", [-1, 3, 24, 32])
    assert (pixels.input.dtype, pixels.input.layout, pixels.input.shape) == ("uint8", "NHWC", [-1, 24, 32, 3])
    assert (plain.preprocess.inside, pixels.preprocess.inside) == (False, True)
    for found in (plain, pixels):
        own = found.preprocess
        assert (own.mean, own.std, own.scale, own.size, own.channels) == (SPEC.mean, SPEC.std, 255, (24, 32), "RGB")
        assert (found.output.shape, found.labels) == ([-1, 3], ["cat", "dog", "cow"])
    grey = replace(SPEC, input_shape=(1, 24, 32), mean=[0.1], std=[0.4])
    assert manifest(tmp_path, grey).preprocess.channels == "gray"


def test_a_manifest_and_its_card_have_each_number_in_its_place(tmp_path: Path) -> None:
    found = manifest(tmp_path, license="MIT", to="kserve", max_batch=16)
    network = found.network
    assert (network.ratio, network.achieved_ratio, network.params, network.macs, network.seed) == (
        0.7,
        0.68,
        3210,
        345,
        3,
    )
    assert (found.server, found.license, found.version, found.file_bytes, found.max_batch) == (
        "triton",
        "MIT",
        2,
        5,
        16,
    )
    card = model_card(found).splitlines()
    for line in (
        "resnet20, peer 1 of a family, pruned by 70% of its params, 68.0% reached, trained on cifar10 by the method `wml`; "
        "fp32; license: MIT.",
        "| parameters | 3,210 |",
        "| MACs | 345 |",
        "| top-1 | 88.50 % of 400 test images, through ort |",
        "| drop against the baseline | 1.25 points |",
        "| latency, batch 8 | p50 2.000 ms [1.900, 2.100], p99 3.500 ms, n = 1,000; CPUExecutionProvider on a CPU, "
        "4 thread(s), of the same network without preprocessing inside |",
        "| speed-up over the baseline | 1.60 [1.50, 1.70] |",
    ):
        assert line in card
    assert any("at most 16 images a request" in line for line in card)
    assert any("scale 255, mean 0.1, 0.2, 0.3, std 0.4, 0.5, 0.6." in line for line in card)
    assert "at most" not in model_card(manifest(tmp_path, to="mlserver"))
    of_the_file = replace(LATENCY, of_sha256=found.sha256)
    assert "without preprocessing" not in model_card(manifest(tmp_path, latency=of_the_file))


@pytest.mark.parametrize(
    ("speedup", "doubt"),
    [((0.8, 0.9, 0.95), ", slower |"), ((0.8, 0.9, 1.1), ", not shown to be faster |"), ((0.98, 1.05, 1.1), ", not shown to be faster |")],
)  # fmt: skip
def test_a_card_claims_no_speed_that_was_not_shown(
    tmp_path: Path, speedup: tuple[float, float, float], doubt: str
) -> None:
    card = model_card(manifest(tmp_path, latency=replace(LATENCY, speedup=made_speedup(*speedup))))
    (line,) = [line for line in card.splitlines() if line.startswith("| speed-up")]
    assert line.endswith(doubt)


def test_a_card_says_whether_the_budget_was_met_and_against_what(tmp_path: Path) -> None:
    for met, words in ((True, "met"), (False, "**missed**")):
        found = manifest(tmp_path, latency=replace(LATENCY, latency_budget_ms=2.5, budget_met=met))
        assert f"| latency budget | 2.500 ms, {words} by p50 |" in model_card(found)
    int8 = replace(found, accuracy=replace(found.accuracy, baseline_precision="int8"))
    assert "| drop against the baseline in int8 | 1.25 points |" in model_card(int8)


def test_a_baseline_that_is_the_start_says_so(tmp_path: Path) -> None:
    about = replace(SPEC.about, peer=0, ratio=0.0, achieved_ratio=0.0, start="net.pth")
    as_it_stands = manifest(tmp_path, replace(SPEC, about=about))
    assert "the unpruned baseline, `net.pth` as it stands, measured on cifar10" in model_card(as_it_stands)
    trained = manifest(tmp_path, replace(SPEC, about=replace(about, training_macs=5.0)))
    assert "the unpruned baseline, trained alone on cifar10 from `net.pth`" in model_card(trained)
    assert (as_it_stands.network.trained, trained.network.trained) == (False, True)
    cut = manifest(tmp_path, replace(SPEC, about=replace(SPEC.about, start="net.pth")))
    assert "68.0% reached, trained on cifar10 by the method `wml` from `net.pth`; fp32" in model_card(cut)


def test_a_plans_card_says_where_it_can_be_loaded(tmp_path: Path) -> None:
    write_plan(tmp_path / "x.plan")
    found = make_manifest(
        replace(MODEL, file_name="model.plan"), tmp_path / "x.plan", SPEC, Run(tmp_path), latency=None, cost=Cost(1, 1),
        plan=read_record(tmp_path / "x.plan"),
        accuracy=ShippedAccuracy(top1=None, top1_drop=None, test_images=1, engine="trt"), config=ShipConfig(engine="trt"),
    )  # fmt: skip
    assert found.plan is not None
    for changes, words in (
        ({}, "of TensorRT 10.3, for a GPU (compute capability 8.0) alone |"),
        ({"version_compatible": True}, "of TensorRT 10.3 and later, for a GPU (compute capability 8.0) alone |"),
        ({"hardware_compatible": True}, "of TensorRT 10.3, for a GPU (compute capability 8.0) and other GPUs from Ampere on |"),
    ):  # fmt: skip
        assert f"| plan | {words}" in model_card(replace(found, plan=replace(found.plan, **changes)))


def test_mlserver_is_told_the_models_own_shape_and_time(tmp_path: Path) -> None:
    model = replace(MODEL, version=3, labels=["a", "b"], input_dims=[24, 32, 3], pixels=True)
    layout = lay_out(model, ShipConfig(to="mlserver", max_batch=16, queue_delay_us=2000))
    settings = json.loads(layout.version["model-settings.json"])
    assert settings["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 24, 32, 3]}]
    assert settings["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}]
    assert (settings["max_batch_size"], settings["max_batch_time"], settings["versions"]) == (16, 0.002, ["3"])
    assert settings["parameters"]["extra"] == {"intra_op_threads": 4}
    assert layout.version["labels.txt"] == b"a\nb\n"
    for letter in "\u2028\u2029\n\x1b":
        with pytest.raises(InputError, match=r"which no line of labels\.txt can"):
            lay_out(replace(model, labels=["a", f"b{letter}c"]), ShipConfig(to="ovms"))


def test_a_models_name_tells_what_it_is(tmp_path: Path) -> None:
    settings = made_settings((80.0, 85.0, 90.0), ratios=(0.7, 0.5, 0.0))
    small_run = made_run(tmp_path / "run", settings, made_family((80.0, 85.0, 90.0), settings=settings))

    def named(form: str = "fp32", **about: Any) -> str:
        return model_name(small_run, replace(SPEC, about=replace(SPEC.about, **about)), form)

    assert [named(peer=peer) for peer in (0, 1, 2, None)] == [
        "resnet20_cifar10_baseline", "resnet20_cifar10_p07", "resnet20_cifar10_p05", "resnet20_cifar10_ensemble",
    ]  # fmt: skip
    assert [named(form) for form in ("fp16", "int8-cpu", "int8-gpu")] == [
        "resnet20_cifar10_p07_fp16", "resnet20_cifar10_p07_int8", "resnet20_cifar10_p07_int8-gpu",
    ]  # fmt: skip


def test_versions_of_a_model_are_called_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(former: Manifest, now: Manifest) -> None:
        (tmp_path / "m" / "1").mkdir(parents=True, exist_ok=True)
        records.write(tmp_path / "m" / "1" / "manifest.json", former)
        check_same_interface(now, tmp_path / "m")

    def other(found: Manifest, **pixels: Any) -> Manifest:
        return replace(found, preprocess=replace(found.preprocess, **pixels))

    plain, inside = manifest(tmp_path / "a"), manifest(tmp_path / "b", with_preprocess=True)
    for found in (plain, inside):
        check(found, found)
        for changed in (other(found, framing=made_framing(64)), other(found, inside=not found.preprocess.inside)):
            with pytest.raises(InputError, match="takes pictures in another way"):
                check(changed, found)
        with pytest.raises(InputError, match="has another labels than the new one"):
            check(replace(found, labels=["dog", "cat", "cow"]), found)
    check(other(inside, mean=[0.3, 0.2, 0.1]), inside)  # which the file itself takes care of
    with pytest.raises(InputError, match="takes pictures in another way"):
        check(other(plain, mean=[0.3, 0.2, 0.1]), plain)
    write_plan(tmp_path / "x.plan")
    plan = ShippedPlan(
        **{key: getattr(read_record(tmp_path / "x.plan"), key) for key in ShippedPlan.__dataclass_fields__}
    )
    check(replace(plain, plan=plan, max_batch=16), replace(plain, plan=plan, max_batch=8))
    assert capsys.readouterr().err == ""
    check(replace(plain, plan=plan, max_batch=8), replace(plain, plan=plan, max_batch=16))
    assert "to be able to go back to it, ship with --max-batch 8" in " ".join(capsys.readouterr().err.split())


def test_what_others_put_there_is_not_overwritten(tmp_path: Path) -> None:
    (model := tmp_path / "m").mkdir()
    refuse_foreign(model)  # empty
    for name, content in (("labels.txt", "a\n"), ("config.pbtxt", 'label_filename: "labels.txt"')):
        (model / name).write_text(content)
    (model / "away-2").mkdir()
    refuse_foreign(model)  # what is left of one of ours
    (model / "weights.bin").touch()
    with pytest.raises(InputError, match="was not shipped by wmlc, which would overwrite it"):
        refuse_foreign(model)
    (model / "weights.bin").unlink()
    (model / "config.pbtxt").unlink()
    with pytest.raises(InputError, match="was not shipped by wmlc, which would overwrite it"):
        refuse_foreign(model)
