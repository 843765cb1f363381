"""Plans built for real by TensorRT-RTX's builder, without a GPU: every form parses, faults are told in the builder's words.

TensorRT-RTX is another product with the same parser and nearly the same builder: it shows that our files parse, that their types
and profiles are taken and that the building code works, and nothing about TensorRT's engines or their speed.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from trt_parts import HERE, L4, RANGE, Export, as_written, some_images

from wmlc.accuracy import relative_rms
from wmlc.errors import InputError
from wmlc.export import to_tensorrt
from wmlc.export.layer_by_layer import mark_layers, run_plainly
from wmlc.export.timings import read_timings
from wmlc.export.to_tensorrt import build_plan, extract_plan, plan_for
from wmlc.files import sha256
from wmlc.plan_record import check_record, read_record

FORMS = ("fp32", "fp16", "int8-gpu")


@pytest.fixture(scope="session")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install '.[test]' on Linux, x86_64")


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("form", FORMS)
def test_a_real_builder_builds_every_form_of_every_network(
    rtx: Any, exported: Export, tmp_path: Path, arch: str, form: str
) -> None:
    plan = tmp_path / "peer.plan"
    build_plan(rtx, exported(arch, form), plan, batch_range=RANGE)
    assert plan.stat().st_size > 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["peer.plan"]


@pytest.mark.parametrize(("form", "reads"), [("fp32", "FLOAT"), ("fp16", "HALF"), ("int8-gpu", "DEQUANTIZE")])
def test_the_parser_sees_the_precision_that_the_file_says(rtx: Any, exported: Export, form: str, reads: str) -> None:
    builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, builder.logger).parse_from_file(str(exported("resnet20", form)))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made_by = {layer.get_output(0).name: layer.type.name for layer in layers}
    convolutions = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
    assert len(convolutions) == 21
    for layer in convolutions:
        image = layer.get_input(0)
        assert reads in (image.dtype.name, made_by.get(image.name))


def test_an_int8_file_for_cpus_is_refused_with_the_parsers_words(rtx: Any, exported: Export, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build_plan(rtx, exported("resnet20", "int8-cpu"), tmp_path / "p.plan", batch_range=RANGE)
    said = str(caught.value)
    assert said.startswith(f"TensorRT {rtx.__version__} cannot build a plan from ")
    assert "DequantizeLinear" in said and "has type Int32" in said
    assert said.endswith("extract it again, int8 with --target gpu") and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_profile_for_another_input_is_refused(rtx: Any, exported: Export, tmp_path: Path) -> None:
    model = onnx.load(str(exported("resnet20", "fp32")))
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    onnx.save_model(model, str(tmp_path / "image.onnx"))
    with pytest.raises(InputError, match=r"its input is 'image' of FLOAT \[-1, 3, 32, 32\], a plan needs 'input' of "):
        build_plan(rtx, tmp_path / "image.onnx", tmp_path / "p.plan", batch_range=RANGE)
    assert [path.name for path in tmp_path.iterdir()] == ["image.onnx"]


def test_a_fixed_batch_is_refused(rtx: Any, exported: Export, tmp_path: Path) -> None:
    model = onnx.load(str(exported("resnet20", "fp32")))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save_model(model, str(tmp_path / "fixed.onnx"))
    with pytest.raises(InputError, match=r"\[1, 3, 32, 32\], a plan needs 'input' of .* with a free batch \(-1\)"):
        build_plan(rtx, tmp_path / "fixed.onnx", tmp_path / "p.plan", batch_range=RANGE)


@pytest.mark.parametrize("kept", [0, 1000, 100_000])
def test_a_damaged_file_is_refused(rtx: Any, exported: Export, tmp_path: Path, kept: int) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported("resnet20", "fp32").read_bytes()[:kept] or b"not an ONNX file")
    with pytest.raises(InputError, match=r"cannot build a plan from .*damaged\.onnx: .*Failed to parse.*; extract it"):
        build_plan(rtx, damaged, tmp_path / "p.plan", batch_range=RANGE)
    assert list(tmp_path.iterdir()) == [damaged]


def test_what_the_builder_says_is_in_the_error(rtx: Any, exported: Export, tmp_path: Path) -> None:
    """RTX has no lean runtime, so a version-compatible plan fails inside the builder, which returns None."""
    for _ in range(2):  # the first failure must not keep the second one's words
        with pytest.raises(
            InputError, match=r"cannot build .*: IBuilder::buildSerializedNetwork: Error Code"
        ) as caught:
            build_plan(
                rtx, exported("resnet20", "fp32"), tmp_path / "p.plan", batch_range=RANGE, version_compatible=True
            )
        assert "lean" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_does_not_ascend_is_the_builders_to_refuse(rtx: Any, exported: Export, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MIN<=OPT<=MAX.*; choose another batch range than 8,4,2"):
        build_plan(rtx, exported("resnet20", "fp32"), tmp_path / "p.plan", batch_range=(8, 4, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # RTX times nothing, and says so
def test_timings_are_kept_between_builds(
    rtx: Any, exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache" / "gpu.timings"
    build = functools.partial(
        build_plan, rtx, exported("resnet20", "fp32"), tmp_path / "p.plan", batch_range=RANGE, timing_cache=cache
    )
    build()
    kept = read_timings(cache)
    assert kept
    build()
    assert read_timings(cache) == kept and capsys.readouterr().err == ""
    cache.write_bytes(cache.read_bytes()[:-1])
    build()
    assert "are damaged; starting anew" in capsys.readouterr().err
    assert read_timings(cache) == kept


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_all_layers_as_outputs_builds_and_runs(
    rtx: Any, exported: Export, tmp_path: Path, form: str
) -> None:
    marked, images = tmp_path / "layers.onnx", some_images(2)
    names = mark_layers(exported("resnet20", form), marked)
    assert len(names) >= 21 + 19 + 9 + 1 and names[-1] == "logits" and len(set(names)) == len(names)
    outputs = dict(zip(names, run_plainly(marked, images), strict=True))
    # in fp16 ONNX Runtime rounds what is an output, and not what only its next node reads
    assert relative_rms(outputs["logits"], as_written(exported("resnet20", form), images)) < 1e-3
    build_plan(rtx, marked, tmp_path / "p.plan", batch_range=(2, 2, 2))


def test_a_distance_is_relative() -> None:
    expected = np.array([3.0, 4.0], dtype=np.float16)
    assert relative_rms(expected, expected) == 0
    assert relative_rms(np.array([3.3, 4.4]), expected) == pytest.approx(0.1)
    assert relative_rms(np.zeros(2), np.zeros(2)) == 0
    assert relative_rms(np.full(2, 6e4), np.full(2, 6e4, dtype=np.float16)) == 0  # whose square is no float16


@pytest.fixture
def rtx_for_tensorrt(rtx: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RTX's builder in TensorRT's place, on a machine said to be `HERE`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(to_tensorrt, "load_tensorrt", lambda purpose: rtx)
    monkeypatch.setattr(to_tensorrt, "this_machine", lambda: HERE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("rtx_for_tensorrt")
def test_a_plan_comes_with_its_record(exported: Export, tmp_path: Path) -> None:
    source, plan = exported("resnet20", "int8-gpu"), tmp_path / "out" / "peer.engine"
    extract_plan(source, plan, batch_range=(1, 4, 16))
    record = read_record(plan)
    assert vars(record).items() >= vars(HERE).items()
    assert (record.precision, record.target, record.batch_range) == ("int8", "gpu", (1, 4, 16))
    assert (record.onnx_sha256, record.plan_sha256) == (sha256(source), sha256(plan))
    assert record.network.peer == 1 and len(record.network.class_names) == 10
    assert record.versions and record.time and record.build_seconds > 0
    assert sorted(path.name for path in plan.parent.iterdir()) == ["peer.engine", "peer.engine.json"]
    check_record(record, HERE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("rtx_for_tensorrt")
def test_a_plan_never_stands_beside_anothers_record(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, rename = tmp_path / "peer.plan", Path.replace
    extract_plan(exported("resnet20", "fp32"), plan, batch_range=RANGE)
    first = read_record(plan)
    with pytest.raises(InputError, match="cannot build a plan"):  # before anything was touched
        extract_plan(exported("resnet20", "fp32"), plan, batch_range=(8, 4, 2))
    assert read_record(plan) == first

    def killed(self: Path, target: Path) -> Path:
        if Path(target) == plan:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_plan(exported("resnet20", "fp16"), plan, batch_range=RANGE)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["peer.plan.json"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("rtx_for_tensorrt")
def test_a_plan_is_built_where_it_is_missing_or_old(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "peer.onnx"
    source.write_bytes(exported("resnet20", "fp32").read_bytes())
    plan = plan_for(source, [8, 1])
    first = plan.stat().st_mtime_ns
    assert plan == tmp_path / "peer.plan" and plan_for(source, [8]).stat().st_mtime_ns == first
    assert plan_for(source, [8, 64]).stat().st_mtime_ns > first
    assert read_record(plan).batch_range == (1, 8, 64)
    monkeypatch.setattr(to_tensorrt, "this_machine", lambda: replace(HERE, **L4))
    plan_for(source, [8, 64])
    assert read_record(plan).gpu == "NVIDIA L4"
    source.write_bytes(exported("resnet20", "fp16").read_bytes())
    assert read_record(plan_for(source, [8, 64])).precision == "fp16"


@pytest.mark.usefixtures("rtx_for_tensorrt")
def test_what_no_plan_can_be_made_of_is_said_before_the_build(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"is int8 for cpu, a plan takes int8 of --target gpu; extract that"):
        extract_plan(exported("resnet20", "int8-cpu"), tmp_path / "p.plan", batch_range=RANGE)
    monkeypatch.setattr(to_tensorrt, "this_machine", lambda: replace(HERE, gpu="T4", compute_capability="7.5"))
    with pytest.raises(InputError, match=r"need compute capability 8\.0 or newer, T4 has 7\.5; build without it"):
        extract_plan(
            exported("resnet20", "fp32"), tmp_path / "p.plan", batch_range=RANGE, hardware_compatible=True
        )  # fmt: skip
    (tmp_path / "p.onnx").write_bytes(b"not one")
    with pytest.raises(InputError, match=r"p\.onnx is not a readable ONNX file .*; extract it again"):
        extract_plan(tmp_path / "p.onnx", tmp_path / "p.plan", batch_range=RANGE)
    assert [path.name for path in tmp_path.iterdir()] == ["p.onnx"]
