"""What `wmlc extract` and `bench` make of a network, without an export: which file, of which weights, in which form."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from made import made_family, made_run, made_settings
from made_files import write_plan
from onnx import helper
from squares import DATA, SPEC, light_or_dark
from torch import nn

from wmlc import records, trt_machine
from wmlc.errors import GateError, InputError
from wmlc.export import extract as room
from wmlc.export import for_bench, precision, to_tensorrt
from wmlc.export.about import read_about, write_about
from wmlc.export.begun import is_as_asked
from wmlc.export.config import ExportConfig, ShipConfig
from wmlc.export.extract import Extracted, OnnxFile, convert, fp32_file, run_file
from wmlc.export.for_bench import bench_forms, kept_plan
from wmlc.export.to_onnx import _about
from wmlc.files import sha256
from wmlc.models.checkpoint import load_network, save_network
from wmlc.plan_record import record_path
from wmlc.records import About
from wmlc.run import Run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the conversions were asked for; in less than fp32 a network calls everything light."""
    found: list[dict[str, Any]] = []

    def lower(fp32: Path, out: Path, images: np.ndarray, **how: Any) -> None:
        found.append({"images": len(images), **how})
        light_or_dark(out, bias=100.0)

    monkeypatch.setattr(room, "to_fp16", lower)
    monkeypatch.setattr(room, "to_int8", lower)
    return found


def test_what_is_lost_is_fp32s_top1_less_its_own(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    fp32, out = light_or_dark(tmp_path / "fp32.onnx"), tmp_path / "out.onnx"
    half = ExportConfig(precision="fp16", max_drop=50.0)
    made = convert(fp32, SPEC, out, DATA, half)
    assert (made.top1, made.fp32_top1, made.test_images) == (50.0, 100.0, 4)
    assert made.accuracy("fp16") == (
        "; top-1 50.00, in fp32 100.00: drop 50.00 points (4 test images, ONNX Runtime on the CPU)"
    )
    out.unlink()
    with pytest.raises(GateError) as refused:
        convert(fp32, SPEC, out, DATA, replace(half, max_drop=49.9))
    assert str(refused.value) == "in fp16 loses 50.00 top-1 points (50.00 after 100.00), --max-drop allows 49.9"
    assert not out.exists()
    worse = light_or_dark(tmp_path / "worse.onnx", bias=-100.0)  # calls everything dark, and is as good as its fp16
    assert convert(worse, SPEC, out, DATA, replace(half, max_drop=0.0)).top1 == 50.0
    assert Extracted(out).accuracy("fp32") == ""


def test_each_form_is_made_as_it_was_asked_for(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    fp32 = light_or_dark(tmp_path / "fp32.onnx")
    for config in (ExportConfig(precision="fp16"), ExportConfig(precision="int8"),
                   ExportConfig(precision="int8", target="gpu", calibration=300, calibrator="entropy")):  # fmt: skip
        convert(fp32, SPEC, tmp_path / "out.onnx", DATA, config, measured=False)
    assert asked == [
        {"images": 64}, {"images": 256, "target": "cpu", "calibrator": "minmax"},
        {"images": 300, "target": "gpu", "calibrator": "entropy"},
    ]  # fmt: skip
    convert(fp32, SPEC, tmp_path / "plain.onnx", None, ExportConfig())
    assert (tmp_path / "plain.onnx").read_bytes() == fp32.read_bytes() and len(asked) == 3


def test_int8_of_a_gpu_is_computed_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "open_as_written", lambda path: "as written")
    file = light_or_dark(tmp_path / "x.onnx")
    opened = {
        target: OnnxFile(file, SPEC, ExportConfig(precision="int8", target=target))._session
        for target in ("cpu", "gpu")
    }
    assert opened["gpu"] == "as written" != opened["cpu"]


def test_an_fp16_file_that_would_end_onnx_runtimes_process_is_opened(tmp_path: Path) -> None:
    """A transposed tensor times a weight, as in torch's attention with the batch first."""
    sides: list[int | str] = ["N", 1, 4]
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Transpose", ["half"], ["places"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["places", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["logits"], to=onnx.TensorProto.FLOAT),
    ]
    ends = ([helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides)] for name in ("input", "logits"))
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float16), "weight")
    graph = helper.make_graph(nodes, "attention", *ends, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "x.onnx")
    assert OnnxFile(tmp_path / "x.onnx", SPEC, ExportConfig(precision="fp16"))


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    """A run of two peers and a baseline whose weights are a few bytes each."""
    settings = made_settings()
    made = made_run(tmp_path / "run", settings, made_family(settings=settings))
    for peer in range(3):
        made.network(peer).mkdir(parents=True, exist_ok=True)
        (made.network(peer) / "weights.safetensors").write_bytes(b"weights of %d" % peer)
    made.onnx.mkdir()
    return made


def test_each_network_and_form_has_a_file_of_its_own(small_run: Run) -> None:
    forms = ("fp32", "fp16", "int8-cpu", "int8-gpu", "pixels")
    files = [
        run_file(small_run, peer, form, suffix) for peer in range(3) for form in forms for suffix in (".onnx", ".plan")
    ]
    assert len(set(files)) == len(files)
    assert run_file(small_run, 1, "fp32").name == "family-peer1.onnx"
    assert run_file(small_run, 0, "int8-gpu", ".plan").name == "family-int8-gpu-baseline.plan"


def test_a_file_is_made_anew_for_other_weights_and_from_its_own_network(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []

    def export(network: Any, spec: Any, out: Path, pixels: Any, **how: Any) -> None:
        made.append((network, spec, out.name, how["with_preprocess"]))
        model = onnx.load(light_or_dark(out))
        helper.set_model_props(model, {"weights": how["weights_sha256"]})
        onnx.save(model, out)

    def read(file: Path) -> Any:
        return SimpleNamespace(weights_sha256=onnx.load(file).metadata_props[0].value)

    monkeypatch.setattr(room, "export_onnx", export)
    monkeypatch.setattr(room, "load_network", lambda directory: f"network of {directory.name}")
    monkeypatch.setattr(room, "read_spec", lambda directory: f"spec of {directory.name}")
    monkeypatch.setattr(room, "images_to_check", lambda run, data: None)
    monkeypatch.setattr(room, "read_about", read)
    for _ in range(2):  # the second time it is there
        assert fp32_file(small_run, 2, None, False, tmp_path) == run_file(small_run, 2, "fp32")
        fp32_file(small_run, 2, None, True, tmp_path)
    own = small_run.network(2).name
    assert made == [
        (f"network of {own}", f"spec of {own}", f"family-{form}peer2.onnx", pixels)
        for form, pixels in (("", False), ("pixels-", True))
    ]
    assert read(run_file(small_run, 2, "fp32")).weights_sha256 == sha256(small_run.network(2) / "weights.safetensors")
    (small_run.network(2) / "weights.safetensors").write_bytes(b"trained anew")
    fp32_file(small_run, 2, None, False, tmp_path)
    assert len(made) == 3


def test_a_bench_runs_int8_for_the_target_alone_and_plans_for_all_its_batches(
    small_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(run: Run, peer: int, data: Any, config: ExportConfig) -> Path:
        return Path(f"{config.form}.onnx")

    planned: list[tuple[Path, tuple[int, ...]]] = []
    monkeypatch.setattr(for_bench, "kept_file", file)
    monkeypatch.setattr(for_bench, "images_a_call", lambda height, width: 77)
    monkeypatch.setattr(to_tensorrt, "plan_for", lambda file, batches: planned.append((file, batches)))
    found = bench_forms(small_run, DATA, ("fp32", "int8"), "gpu", plans=False, batches=(1, 8))
    forms = {"fp32": Path("fp32.onnx"), "int8": Path("int8-gpu.onnx")}
    assert found == {"onnx": {(peer, name): file for name, file in forms.items() for peer in range(3)}}
    data = SimpleNamespace(input_shape=(3, 24, 32))
    kept_plan(Path("fp32.onnx"), data, (1, 8))  # type: ignore[arg-type]
    assert planned == [(Path("fp32.onnx"), (1, 8, 77))]  # the last for the test set


def test_a_form_that_cannot_be_made_has_its_reason_in_its_place_and_none_at_all_is_refused(
    small_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(run: Run, peer: int, data: Any, config: ExportConfig) -> Path:
        if peer in too_large and config.precision == "fp16":
            raise InputError(f"conv1 of peer {peer} does not fit")
        return Path(f"{peer}.onnx")

    too_large = {2}
    monkeypatch.setattr(for_bench, "kept_file", file)
    monkeypatch.setattr(for_bench, "kept_plan", lambda file, data, batches: file.with_suffix(".plan"))
    made = bench_forms(small_run, DATA, ("fp32", "fp16"), None, plans=True, batches=(1,))
    assert {kind: {key for key, each in own.items() if isinstance(each, InputError)} for kind, own in made.items()} == {
        "onnx": {(2, "fp16")}, "plan": {(2, "fp16")},
    }  # fmt: skip
    assert str(made["plan"][2, "fp16"]) == "conv1 of peer 2 does not fit"
    too_large |= {0, 1}
    with pytest.raises(InputError, match="conv1 of peer 0 does not fit"):
        bench_forms(small_run, DATA, ("fp16",), None, plans=False, batches=(1,))


def test_a_plan_takes_int8_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_machine, "require_tensorrt", lambda *words: None)
    assert room._fitting(Path("x.plan"), ExportConfig(precision="int8")).form == "int8-gpu"
    assert room._fitting(Path("x.onnx"), ExportConfig(precision="int8")).form == "int8-cpu"
    assert ShipConfig(engine="trt", precision="int8").form == "int8-gpu"
    assert ShipConfig(precision="int8").form == "int8-cpu"


@pytest.mark.parametrize("name", ["instances", "max_batch", "queue_delay_us"])
def test_what_openvinos_server_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} has no place in ovms's layout"):
        ShipConfig(to="ovms", **{name: 7})  # type: ignore[arg-type]


def test_the_largest_activations_are_over_all_images_and_what_is_no_number_stays_one(tmp_path: Path) -> None:
    model = onnx.load(light_or_dark(tmp_path / "x.onnx"))
    images = np.zeros((40, 1, 2, 2), np.float32)
    images[39] = -10.0
    assert precision.largest_activations(model, images) == {"flat": 10.0, "logits": 40.0}
    images[0] = np.nan
    assert np.isnan(precision.largest_activations(model, images)["logits"])


@pytest.mark.parametrize(("bias", "half"), [(20_000.0, 20_000.0), (-3.4028235e38, -65_504.0), (-np.inf, -np.inf)])
def test_what_float16_holds_stays_and_the_lowest_of_float32_becomes_its_lowest(
    bias: float, half: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of attention are made of it; the converter's own bound of 10,000 is not the type's."""
    monkeypatch.setattr(precision, "_save", lambda model, out, **changed: onnx.save(model, out))
    monkeypatch.setattr(precision, "largest_activations", lambda model, images: {})
    precision.to_fp16(light_or_dark(tmp_path / "x.onnx", bias), tmp_path / "half.onnx", np.zeros((1, 1, 2, 2)))
    tensors = {own.name: onnx.numpy_helper.to_array(own) for own in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert tensors["bias"].dtype == np.float16 and half in tensors["bias"].tolist()


def test_what_float16_hardly_holds_stays_in_float32_and_what_it_does_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "_save", lambda model, out, **changed: onnx.save(model, out))
    file, out = light_or_dark(tmp_path / "x.onnx"), tmp_path / "half.onnx"
    images = np.full((1, 1, 2, 2), 2000.0, np.float32)
    precision.to_fp16(file, out, images)  # the logits reach 8,000
    assert capsys.readouterr().err == ""
    precision.to_fp16(file, out, 5 * images)
    said = " ".join(capsys.readouterr().err.split())
    assert "stay in fp32: activations reach 40,000 on 1 training images, and float16 holds 65,504" in said
    for bias in (-70_000.0, 70_000.0):
        with pytest.raises(InputError, match=r"^bias of x\.onnx does not fit into float16; export it in fp32$"):
            precision.to_fp16(light_or_dark(file, bias), out, images)


def test_a_calibrator_sees_every_image_once() -> None:
    seen: list[int] = []
    images = precision._Images(np.zeros((20, 1, 2, 2), np.float32), seen.append)
    images.set_range(0, len(images))
    batches = []
    while (batch := images.get_next()) is not None:
        batches.append(len(batch["input"]))
    assert sum(batches) == sum(seen) == 20


def test_a_file_says_of_itself_what_its_network_is(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    about = About(peer=1, ratio=0.7, achieved_ratio=0.68, ratio_of="params", top1=90.0, data="digits", method="wml")
    found = _about(network, replace(SPEC, about=about), 20, False, "a hash")
    assert (found.params, found.macs, found.weights_sha256, found.opset) == (10, 8, "a hash", 20)
    assert (found.ratio, found.achieved_ratio, found.top1, found.mean, found.std) == (0.7, 0.68, 90.0, [0.5], [0.25])
    model = onnx.load(light_or_dark(tmp_path / "x.onnx"))
    write_about(model, found)
    precision._save(model, tmp_path / "half.onnx", precision="int8", target="gpu", calibration_images=7)
    assert read_about(tmp_path / "half.onnx") == replace(
        found, top1=None, precision="int8", target="gpu", calibration_images=7
    )  # whose accuracy is another


def squares() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def test_an_extract_of_all_that_was_stopped_goes_over_what_it_had_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = made_run(tmp_path / "run", made_settings(), made_family()), tmp_path / "family"
    spec = replace(SPEC, arch="squares.py:make")
    for peer in range(3):
        run.network(peer).mkdir(exist_ok=True)
        save_network(squares(), spec, run.network(peer))
    monkeypatch.setattr(room, "load_network", lambda directory: load_network(directory, squares))
    first, second, third = (out / name for name in ("baseline", "peer1", "peer2"))
    for done in room.extract(run, "all", out, ExportConfig(), force=False):
        if done.path == second:  # and it is stopped
            break
    assert first.is_dir() and second.is_dir() and not third.exists()
    assert len(list(room.extract(run, "all", out, ExportConfig(), force=False))) == 3
    with pytest.raises(InputError, match="baseline exists already"):  # all of it is there
        list(room.extract(run, "all", out, ExportConfig(), force=False))
    shutil.rmtree(third)
    (second / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match="peer1 exists already"):
        list(room.extract(run, "all", out, ExportConfig(), force=False))
    assert (second / "weights.safetensors").read_bytes() == b"others" and not third.exists()


INT8 = ExportConfig(precision="int8", target="cpu", calibration=300)


@pytest.mark.parametrize(
    ("says", "config", "same"),
    [
        ({}, ExportConfig(), True),
        ({"weights_sha256": "other"}, ExportConfig(), False),
        ({"with_preprocess": True}, ExportConfig(), False),
        ({}, ExportConfig(precision="fp16"), False),
        ({"precision": "fp16"}, ExportConfig(precision="fp16"), True),
        ({"calibration_images": 300}, INT8, True),
        ({"calibration_images": 200}, INT8, False),
        ({"calibration_images": 300, "target": "gpu"}, INT8, False),
        ({"calibration_images": 300, "calibrator": "entropy"}, INT8, False),
        ({"calibration_images": 1000}, replace(INT8, calibration=2000), True),  # all that there are
    ],
)
def test_what_was_asked_in_another_way_is_not_gone_over(
    tmp_path: Path, says: dict[str, Any], config: ExportConfig, same: bool
) -> None:
    model, file, plan = onnx.load(light_or_dark(tmp_path / "x.onnx")), tmp_path / "x.onnx", tmp_path / "x.plan"
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    if config.precision == "int8":
        says = {"precision": "int8", "target": "cpu", "calibrator": "minmax", **says}
    about = replace(_about(network, SPEC, 20, False, "a hash"), **says)
    assert not is_as_asked(file, "a hash", config, 1000), "it is nobody's"
    write_about(model, about)
    onnx.save(model, file)
    assert is_as_asked(file, "a hash", config, 1000) is same
    assert not is_as_asked(tmp_path / "gone.onnx", "a hash", config, 1000) and not is_as_asked(file, None, config, 1000)
    assert not is_as_asked(plan, "a hash", config, 1000)
    write_plan(plan)
    record = records.read(record_path(plan), records.PlanRecord, "", "")
    records.write(record_path(plan), replace(record, network=about))
    assert is_as_asked(plan, "a hash", config, 1000) is same
    assert not is_as_asked(plan, "a hash", replace(config, version_compatible=True), 1000)
