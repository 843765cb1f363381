"""TensorRT, as far as it goes without a GPU: real builds by TensorRT-RTX's builder, the API of TensorRT 10 and 11 as their
lean runtimes have it, records, refusals, and the engine's own logic around a fake. What needs a GPU is marked and skips.

TensorRT-RTX is another product with the same parser and nearly the same builder: it shows that our files parse, that their types
and profiles are taken and that the building code works, and nothing about TensorRT's engines or their speed.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from wmlc import tensorrt as plan_module
from wmlc.accuracy import disagreement, parity
from wmlc.bench.engines import trt_engine
from wmlc.bench.engines.trt_engine import TrtEngine, check_batch, computing_layers, main_precision
from wmlc.errors import EngineFailed, InputError
from wmlc.export import to_tensorrt
from wmlc.export.to_tensorrt import (
    build_plan,
    compare_layers,
    distance,
    extract_plan,
    mark_layers,
    plan_for,
    run_plainly,
)
from wmlc.files import sha256, write_json
from wmlc.forms import open_as_written
from wmlc.run import Run
from wmlc.tensorrt import (
    check_record,
    is_current,
    keep_timings,
    range_for,
    read_record,
    read_timings,
    record_path,
    require_tensorrt,
    this_machine,
    timings_file,
)

HOUSE = Path(__file__).resolve().parent.parent
Export = Callable[[str, str], Path]  # (architecture, form) -> ONNX file
Open = Callable[..., Any]

ARCHS = ("resnet20", "mobilenet_v2", "resnet50")
FORMS = ("fp32", "fp16", "int8-gpu")
RANGE = (1, 8, 32)
HERE = {
    "tensorrt": "10.16.1.11", "cuda": "13.2", "driver": "580.95.05", "gpu": "NVIDIA A10", "compute_capability": "8.6",
}  # fmt: skip
NO_GPU = "needs an NVIDIA GPU and its driver, and torch sees none"

# All of TensorRT's interface that is used, by class; an enumeration's members count as its attributes.
RUNTIME_API: dict[str, set[str]] = {
    "ILogger": {"Severity", "WARNING", "__init__", "log"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
    "ICudaEngine": {
        "create_engine_inspector", "create_execution_context", "get_tensor_dtype", "get_tensor_mode", "get_tensor_name",
        "get_tensor_profile_shape", "num_io_tensors",
    },
    "IExecutionContext": {
        "execute_async_v3", "get_tensor_shape", "infer_shapes", "profiler", "set_input_shape", "set_tensor_address",
    },
    "IProfiler": {"__init__"},
    "DataType": {"FLOAT", "UINT8"},
    "TensorIOMode": {"INPUT", "OUTPUT"},
    "LayerInformationFormat": {"JSON"},
    "BuilderFlag": {"TF32", "VERSION_COMPATIBLE"},
    "HardwareCompatibilityLevel": {"AMPERE_PLUS"},
    "ProfilingVerbosity": {"DETAILED"},
    "ITimingCache": {"serialize"},
    "IOptimizationProfile": {"set_shape"},
}  # fmt: skip
BUILDER_API: dict[str, set[str]] = {  # the lean runtimes have none of these
    "Builder": {
        "build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile",
    },
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "INetworkDefinition": {"get_input", "num_inputs"},
    "ITensor": {"dtype", "name", "shape"},
    "OnnxParser": {"get_error", "num_errors", "parse_from_file"},
    "ParserError": {"desc"},
    "IBuilderConfig": {
        "add_optimization_profile", "clear_flag", "create_timing_cache", "get_timing_cache",
        "hardware_compatibility_level", "profiling_verbosity", "set_flag", "set_timing_cache",
    },
    "EngineInspector": {"execution_context", "get_engine_information"},
}  # fmt: skip
# What the code calls the objects of these classes; ITensor, ParserError and ITimingCache have no names of their own.
CALLED = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
    "inspector": "EngineInspector",
}  # fmt: skip


@pytest.fixture(scope="session")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install '.[test]' on Linux, x86_64")


# --- building -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
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
    with pytest.raises(InputError, match=r"its input is 'input' of FLOAT \[-1, 3, 32, 32\], a plan needs 'image'"):
        build_plan(rtx, exported("resnet20", "fp32"), tmp_path / "p.plan", batch_range=RANGE, profile_input="image")
    assert list(tmp_path.iterdir()) == []


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


def test_timings_that_cannot_be_kept_cost_a_word_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    keep_timings(tmp_path / "file" / "gpu.timings", b"timings")
    assert capsys.readouterr().err.startswith("timings are not kept for the next build: cannot write")
    assert read_timings(tmp_path / "none.timings") == b""


def test_timings_are_of_one_version_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timings_file(HERE) == tmp_path / "wmlc" / "tensorrt-10.16.1.11-NVIDIA-A10-8.6.timings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert timings_file(HERE | {"gpu": "GeForce/RTX 5090"}).name == "tensorrt-10.16.1.11-GeForce-RTX-5090-8.6.timings"
    assert timings_file(HERE).parent == Path.home() / ".cache" / "wmlc"
    assert timings_file(HERE, tmp_path / "mine").parent == tmp_path / "mine"


# --- layer by layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_all_layers_as_outputs_builds_and_runs(
    rtx: Any, exported: Export, tmp_path: Path, form: str
) -> None:
    marked, images = tmp_path / "layers.onnx", some_images(2)
    names = mark_layers(exported("resnet20", form), marked)
    assert len(names) >= 21 + 19 + 9 + 1 and names[-1] == "logits" and len(set(names)) == len(names)
    outputs = dict(zip(names, run_plainly(marked, images), strict=True))
    # in fp16 ONNX Runtime rounds what is an output, and not what only its next node reads
    assert distance(outputs["logits"], as_written(exported("resnet20", form), images)) < 1e-3
    build_plan(rtx, marked, tmp_path / "p.plan", batch_range=(2, 2, 2))


def test_a_distance_is_relative() -> None:
    expected = np.array([3.0, 4.0], dtype=np.float16)
    assert distance(expected, expected) == 0
    assert distance(np.array([3.3, 4.4]), expected) == pytest.approx(0.1)
    assert distance(np.zeros(2), np.zeros(2)) == 0
    assert distance(np.full(2, 6e4), np.full(2, 6e4, dtype=np.float16)) == 0  # whose square is no float16


# --- records ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A file called plan with the record of a plan that was built here."""
    plan = tmp_path / "peer.plan"
    plan.write_bytes(b"plan" * 1000)
    write_json(record_path(plan), record_of(plan))
    return plan


def record_of(plan: Path, **changed: Any) -> dict[str, Any]:
    return {
        **HERE, "batch_range": [1, 8, 32], "version_compatible": False, "hardware_compatible": False, "precision": "fp32",
        "target": None, "onnx_sha256": "0" * 64, "plan_sha256": sha256(plan), "plan_bytes": plan.stat().st_size,
        "network": {"peer": 1}, **changed,
    }  # fmt: skip


def test_a_record_lies_beside_its_plan(recorded: Path) -> None:
    assert record_path(recorded).name == "peer.plan.json"
    assert read_record(recorded)["network"] == {"peer": 1}


def test_a_plan_that_is_not_whole_is_refused(recorded: Path) -> None:
    content = recorded.read_bytes()
    recorded.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"peer\.plan is truncated: 3,999 of 4,000 bytes; build it again with 'wmlc"):
        read_record(recorded)
    recorded.write_bytes(b"q" + content[1:])
    with pytest.raises(InputError, match=r"is not the plan that peer\.plan\.json describes \(their hashes differ\)"):
        read_record(recorded)
    record_path(recorded).write_text('{"tensorrt": "10"}')
    with pytest.raises(InputError, match=r"is not a record of a plan: it lacks batch_range, compute_capability"):
        read_record(recorded)
    record_path(recorded).unlink()
    with pytest.raises(InputError, match=r"peer\.plan\.json is missing, so there is no record of a plan here; build"):
        read_record(recorded)
    recorded.unlink()
    with pytest.raises(InputError, match=r"peer\.plan is not a file; build it with 'wmlc extract"):
        read_record(recorded)


COMPATIBLE, PORTABLE = {"version_compatible": True}, {"hardware_compatible": True}
L4 = {"gpu": "NVIDIA L4", "compute_capability": "8.9"}


@pytest.mark.parametrize(
    ("built", "here", "said"),
    [
        ({}, {}, None),
        ({}, {"cuda": "12.9"}, None),
        ({}, {"driver": "590.1"}, None),
        ({}, {"driver": None}, None),
        ({}, {"driver": "570.1"}, "driver 580.95.05; here is driver 570.1"),
        ({}, {"tensorrt": "10.16.1.12"}, "TensorRT 10.16.1.11; here is TensorRT 10.16.1.12"),
        ({}, {"gpu": "NVIDIA RTX A4000"}, "NVIDIA A10 (8.6); here is NVIDIA RTX A4000 (8.6)"),
        (COMPATIBLE, {"tensorrt": "10.16.1.12"}, None),
        (COMPATIBLE, {"tensorrt": "11.4.0.106"}, None),
        (COMPATIBLE, {"tensorrt": "10.9.0.34"}, "TensorRT 10.16.1.11; here is TensorRT 10.9.0.34"),
        ({**COMPATIBLE, "tensorrt": "8.6.1"}, {}, None),
        ({**COMPATIBLE, "tensorrt": "8.6.1"}, {"tensorrt": "11.0.0"}, "TensorRT 8.6.1; here is TensorRT 11.0.0"),
        ({**COMPATIBLE, "tensorrt": "11.0.0"}, {}, "TensorRT 11.0.0; here is TensorRT 10.16.1.11"),
        (COMPATIBLE, L4, "NVIDIA A10 (8.6); here is NVIDIA L4 (8.9)"),
        (PORTABLE, L4, None),
        (PORTABLE, {"gpu": "NVIDIA B200", "compute_capability": "10.0"}, None),
        (PORTABLE, {"gpu": "T4", "compute_capability": "7.5"}, "NVIDIA A10 (8.6); here is T4 (7.5)"),
        (PORTABLE, {**L4, "tensorrt": "11.4.0.106"}, "TensorRT 10.16.1.11, NVIDIA A10 (8.6); here are TensorRT 11.4.0.106, NVIDIA L4 (8.9)"),
        (
            {},
            {"tensorrt": "11.4.0.106", **L4, "cuda": "13.0", "driver": "570.1"},
            "TensorRT 10.16.1.11, NVIDIA A10 (8.6), CUDA 13.2, driver 580.95.05; here are TensorRT 11.4.0.106, NVIDIA L4 (8.9), CUDA 13.0, driver 570.1",
        ),
    ],
)  # fmt: skip
def test_a_plan_says_all_that_differs_here(
    recorded: Path, built: dict[str, Any], here: dict[str, Any], said: str | None
) -> None:
    record, machine = record_of(recorded, **built), {**HERE, **here}
    if said is None:
        check_record(record, machine, "p.plan")
        return
    with pytest.raises(InputError) as caught:
        check_record(record, machine, "p.plan")
    assert str(caught.value) == f"p.plan was built with {said}; build it again with 'wmlc extract … --force'"


def test_a_plan_is_current_if_nothing_has_changed(recorded: Path) -> None:
    assert is_current(recorded, "0" * 64, [8, 1, 32], HERE)
    assert not is_current(recorded, "0" * 64, [1, 8, 32], HERE), "it is tuned for 8"
    assert not is_current(recorded, "1" * 64, [8, 32], HERE)
    assert not is_current(recorded, "0" * 64, [8, 33], HERE)
    assert not is_current(recorded, "0" * 64, [8, 32], HERE | L4)
    recorded.write_bytes(b"")
    assert not is_current(recorded, "0" * 64, [8, 32], HERE)


def test_a_range_holds_all_batches() -> None:
    assert range_for([1]) == (1, 1, 32)
    assert range_for([8, 1, 64]) == (1, 8, 64)


@pytest.mark.parametrize(
    ("said", "found"), [("580.95.05", "580.95.05"), ("590.1\\n590.1", "590.1"), ("No devices were found", None)]
)
def test_this_machine_is_read_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, found: str | None
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(plan_module, "load_tensorrt", lambda purpose: SimpleNamespace(__version__="10.16.1.11"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA A10")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    assert this_machine() == {**HERE, "cuda": torch.version.cuda, "driver": found}


def test_a_driver_is_read_off_the_kernel_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version:  12.3.0"
    (tmp_path / "version").write_text(version)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(plan_module, "_PROC_VERSION", tmp_path / "version")
    assert plan_module._driver() == "580.95.05"
    monkeypatch.setattr(plan_module, "_PROC_VERSION", tmp_path / "none")
    assert plan_module._driver() is None


# --- a plan and its record ------------------------------------------------------------------------------------------------


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
    assert {key: record[key] for key in HERE} == HERE
    assert (record["precision"], record["target"], record["batch_range"]) == ("int8", "gpu", [1, 4, 16])
    assert (record["onnx_sha256"], record["plan_sha256"]) == (sha256(source), sha256(plan))
    assert record["network"]["peer"] == 1 and len(record["network"]["class_names"]) == 10
    assert record["versions"] and record["time"] and record["build_seconds"] > 0
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
    assert read_record(plan)["batch_range"] == [1, 8, 64]
    monkeypatch.setattr(to_tensorrt, "this_machine", lambda: HERE | L4)
    plan_for(source, [8, 64])
    assert read_record(plan)["gpu"] == "NVIDIA L4"
    source.write_bytes(exported("resnet20", "fp16").read_bytes())
    assert read_record(plan_for(source, [8, 64]))["precision"] == "fp16"


@pytest.mark.usefixtures("rtx_for_tensorrt")
def test_what_no_plan_can_be_made_of_is_said_before_the_build(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"is int8 for cpu, a plan takes int8 of --target gpu; extract that"):
        extract_plan(exported("resnet20", "int8-cpu"), tmp_path / "p.plan", batch_range=RANGE)
    monkeypatch.setattr(to_tensorrt, "this_machine", lambda: HERE | {"gpu": "T4", "compute_capability": "7.5"})
    with pytest.raises(InputError, match=r"need compute capability 8\.0 or newer, T4 has 7\.5; build without it"):
        extract_plan(
            exported("resnet20", "fp32"), tmp_path / "p.plan", batch_range=RANGE, hardware_compatible=True
        )  # fmt: skip
    (tmp_path / "p.onnx").write_bytes(b"not one")
    with pytest.raises(InputError, match=r"p\.onnx is not a readable ONNX file .*; extract it again"):
        extract_plan(tmp_path / "p.onnx", tmp_path / "p.plan", batch_range=RANGE)
    assert [path.name for path in tmp_path.iterdir()] == ["p.onnx"]


# --- what is said without a GPU, a driver or the package --------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path) -> dict[str, str]:
    """An environment where importing tensorrt ends the process, as its native code may without a driver."""
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    (tmp_path / "trap" / "tensorrt").mkdir(parents=True)
    (tmp_path / "trap" / "tensorrt" / "__init__.py").write_text("import os; os.abort()")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "trap")}


@pytest.mark.parametrize("words", [["bench", "--engine", "trt"], ["extract", "--peer", "1", "--out", "p.plan"]])
def test_without_a_gpu_one_line_says_so(trap: dict[str, str], run: Run, tmp_path: Path, words: list[str]) -> None:
    program = "import sys; from wmlc.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--run", str(run.root.resolve())],
        cwd=tmp_path, env=trap, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert NO_GPU in done.stderr and done.stderr.startswith("Error: ")
    assert not list(tmp_path.glob("p.plan*"))


def test_no_entrance_touches_tensorrt_without_a_gpu(trap: dict[str, str], tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
import numpy as np
from wmlc.bench.engines.trt_engine import TrtEngine
from wmlc.errors import InputError
from wmlc.export.to_tensorrt import compare_layers, extract_plan, plan_for
from wmlc.tensorrt import this_machine
file, plan = Path({str(tmp_path / "p.onnx")!r}), Path({str(tmp_path / "p.plan")!r})
for enter in (
    this_machine,
    lambda: TrtEngine(plan, 1, "cuda"),
    lambda: extract_plan(file, plan, batch_range=(1, 8, 32)),
    lambda: plan_for(file, [1]),
    lambda: compare_layers(file, np.zeros((1, 3, 8, 8), np.float32)),
):
    try:
        enter()
    except InputError as error:
        print(error)
assert "tensorrt" not in sys.modules and "polygraphy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], env=trap, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) == 5 and all(NO_GPU in line for line in said)
    assert said[1] == f"--engine trt {NO_GPU}; use a GPU machine, or use --engine ort or torch"


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        require_tensorrt("--engine trt", "--engine ort")
    assert str(caught.value) == (
        "--engine trt needs the package tensorrt, which is not installed (pip install 'wmlc[trt]'); install it, or use --engine ort"
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open')", r"installed but does not load \(libnvinfer\.so\.10: cannot"),
        ("__version__ = '8.6.1'", r"needs TensorRT 10\.3 or newer, here is 8\.6\.1; upgrade tensorrt"),
    ],
)  # fmt: skip
def test_a_package_that_will_not_do_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    try:
        with pytest.raises(InputError, match=said):
            trt_engine.load_tensorrt("--engine trt")
    finally:
        sys.modules.pop("tensorrt", None)


# --- the interface -------------------------------------------------------------------------------------------------------


def as_written(onnx_file: Path, images_NCHW: np.ndarray) -> np.ndarray:
    """What a plan of this file has to agree with."""
    return np.asarray(open_as_written(onnx_file).run(["logits"], {"input": images_NCHW})[0])


def used_api() -> dict[str, set[str]]:
    """What the sources use of TensorRT, by class: `trt.X.Y`, and attributes of what `CALLED` names."""
    used: dict[str, set[str]] = {}
    for name in ("export/to_tensorrt.py", "bench/trt_engine.py", "wmlc/plan.py"):
        for node in ast.walk(ast.parse((HOUSE / name).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            path = ast.unparse(node).split(".")
            if path[0] == "trt" and path[1] != "__version__":
                used.setdefault(path[1], set()).update(path[2:])
            owner = path[-2].lstrip("_") if len(path) > 1 else ""
            if owner in CALLED and path[:-2] in ([], ["self"]):
                used.setdefault(CALLED[owner], set()).add(path[-1])
    return used


def test_all_of_the_interface_in_use_is_listed() -> None:
    listed, used = RUNTIME_API | BUILDER_API, used_api()
    without_names = {"ITensor", "ParserError", "ITimingCache"}
    assert used.keys() == listed.keys() - without_names
    assert {name: attributes - listed[name] for name, attributes in used.items() if attributes - listed[name]} == {}
    assert listed["IExecutionContext"] == used["IExecutionContext"] and listed["Builder"] == used["Builder"]


def lacking(module: Any, api: dict[str, set[str]]) -> list[str]:
    """What `module` does not have of `api`."""
    return [
        f"{name}.{attribute}"
        for name, attributes in api.items()
        for attribute in sorted(attributes)
        if not hasattr(getattr(module, name, None), attribute)
    ]


def test_rtx_has_the_whole_interface(rtx: Any) -> None:
    assert lacking(rtx, RUNTIME_API | BUILDER_API) == []


@pytest.mark.parametrize(("name", "version"), [("trt-lean-10", "10.16."), ("trt-lean-11", "11.4.")])
def test_tensorrt_10_and_11_have_the_runtimes_interface(name: str, version: str) -> None:
    python = HOUSE / ".servers" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {name}: run 'make servers'")
    program = (
        "import json, sys, tensorrt_lean as trt\n"
        "api = json.loads(sys.argv[1])\n"
        "lacks = [f'{c}.{a}' for c, names in api.items() for a in names if not hasattr(getattr(trt, c, None), a)]\n"
        "print(json.dumps([trt.__version__, lacks]))"
    )
    api = json.dumps({name: sorted(attributes) for name, attributes in RUNTIME_API.items()})
    done = subprocess.run([str(python), "-c", program, api], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, missing = json.loads(done.stdout)
    assert found.startswith(version) and missing == []
    pinned = (HOUSE / "tests" / "servers" / f"{name}.txt").read_text(encoding="utf-8").strip()
    assert pinned == f"tensorrt-lean=={found}"


# --- precision, as the inspector tells it -----------------------------------------------------------------------------------


def inspected(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": layers})


def layer(reads: str, weights: str | None = None, kind: str = "CaskConvolution", **more: Any) -> dict[str, Any]:
    """A layer as TensorRT 10 writes it."""
    told = {"Weights": {"Type": weights, "Count": 9408}} if weights else {}
    return {"Name": "conv", "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": reads}], **told, **more}


REFORMAT = layer("Row major linear FP32", kind="Reformat", Name="Reformatting CopyNode for Input Tensor 0 to conv")
UNTOLD = "N/A due to dynamic shapes"
TF32_KERNEL = "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_stage4"
INT8_KERNEL = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32"


def layer_11(reads: list[str], kind: str = "CaskConvolution", **more: Any) -> dict[str, Any]:
    """A layer as TensorRT 11 writes it, which tells type and format apart."""
    inputs = [{"Name": "x", "Datatype": each, "Format": "Row major linear format (kLINEAR)"} for each in reads]
    return {"Name": "conv", "LayerType": kind, "Inputs": inputs, **more}


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([layer("Row major linear FP32", "Float"), REFORMAT], {"fp32": 1}),
        ([layer("Channel major FP16 format where channel % 8 == 0", "Half"), REFORMAT], {"fp16": 1}),
        ([layer("Thirty-two wide channel vectorized row major Int8 format", "Int8")], {"int8": 1}),
        ([layer(UNTOLD, "Half"), layer(UNTOLD, "Int8")], {"fp16": 1, "int8": 1}),
        ([layer("Row major linear FP32", "Float", TacticName=TF32_KERNEL)], {"tf32": 1}),
        ([layer(UNTOLD, TacticName=INT8_KERNEL)], {"int8": 1}),
        ([layer(UNTOLD, TacticName="ampere_h16816cudnn_128x64_ldg8_relu_exp_stages_64x3_small_nhwc_tn_v1")], {"fp16": 1}),
        ([layer(UNTOLD, TacticName="turing_fp16_i8816cudnn_int8_128x128_ldg16_relu_small_nt_v1")], {"int8": 1}),
        ([layer(UNTOLD, TacticName="ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1")], {"fp32": 1}),
        ([layer("Half", kind="gemm"), layer("Float", kind="kgen", TacticName="__myl_Relu_0x1")], {"fp16": 1}),
        ([layer_11(["Int8", "Float"]), layer_11(["Half"], kind="MatrixMultiply")], {"int8": 1, "fp16": 1}),
        ([layer_11(["Half", "Float"], kind="kgen", TacticName="__myl_fused_0x1")], {"fp16": 1}),
        ([layer_11(["BFloat16"])], {"bf16": 1}),
        ([layer_11(["UInt8"]), layer_11(["Int32"])], {}),
        ([REFORMAT], {}),
    ],
)  # fmt: skip
def test_the_type_of_what_computes_is_read_off(layers: list[dict[str, Any]], told: dict[str, int]) -> None:
    assert computing_layers(inspected(*layers)) == told


def test_the_precision_is_that_of_most_layers() -> None:
    half, single = layer("Half", "Half"), layer("Float", "Float")
    assert main_precision(computing_layers(inspected(half, half, single))) == "fp16"
    assert main_precision(computing_layers(inspected(half, single))) == "fp32"
    assert (
        main_precision(computing_layers('{"Layers": ["conv + relu", "gemm"]}')) == "unknown"
    )  # built without detailed verbosity
    assert main_precision(computing_layers("{}")) == "unknown"


# --- the engine around a fake ---------------------------------------------------------------------------------------------


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 32, 32), dtype=np.float32)


class FakeGpu:
    """TensorRT and torch's CUDA in main memory: a plan is float32 weights [C * H * W, classes], a graph a list of runs."""

    DataType = SimpleNamespace(FLOAT=SimpleNamespace(name="FLOAT"), UINT8=SimpleNamespace(name="UINT8"))
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    __version__ = "10.16.1.11"

    class ILogger:
        Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"], start=0)

        def __init__(self) -> None:
            pass

    def __init__(self, **wrong: Any) -> None:
        self.wrong, self.graphs, self.enqueued = wrong, 0, 0
        self.recording: list[Callable[[], None]] | None = None
        self.host_code_allowed = False

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self._engine(logger, content))

    def _engine(self, logger: Any, content: bytes) -> Any:
        if "engine" in self.wrong:
            logger.log(self.ILogger.Severity.ERROR, "Version tag does not match.")
            return None
        weights = np.frombuffer(content, dtype=np.float32).reshape(-1, 10)
        kinds = {"input": ("in", self.wrong.get("takes", self.DataType.FLOAT)), "logits": ("out", self.DataType.FLOAT)}
        told = inspected(*self.wrong.get("layers", [layer("Float", "Float")]))
        return SimpleNamespace(
            num_io_tensors=2, get_tensor_name=lambda i: list(kinds)[i], get_tensor_mode=lambda name: kinds[name][0],
            get_tensor_dtype=lambda name: kinds[name][1],
            get_tensor_profile_shape=lambda name, profile: [(batch, 3, 32, 32) for batch in RANGE],
            create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda form: told),
            create_execution_context=lambda: FakeContext(self, weights),
        )  # fmt: skip

    @contextlib.contextmanager
    def record(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.recording, self.graphs = graph.runs, self.graphs + 1
        yield
        self.recording = None


class FakeContext:
    def __init__(self, gpu: FakeGpu, weights: np.ndarray) -> None:
        self.gpu, self.weights, self.address = gpu, weights, dict[str, int]()
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[1:] == (3, 32, 32)

    def infer_shapes(self) -> list[str]:
        return self.gpu.wrong.get("unknown", [])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 10)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return "address" not in self.gpu.wrong

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        self.gpu.enqueued += 1
        if self.gpu.recording is None:
            self.run()
        else:
            self.gpu.recording.append(self.run)
        return "run" not in self.gpu.wrong

    def run(self) -> None:
        sizes = {"input": int(np.prod(self.shape)), "logits": self.shape[0] * 10}
        images, logits = (
            np.ctypeslib.as_array((ctypes.c_float * sizes[name]).from_address(self.address[name])) for name in sizes
        )
        logits[:] = (images.reshape(self.shape[0], -1) @ self.weights).ravel()


@pytest.fixture
def open_fake(monkeypatch: pytest.MonkeyPatch, recorded: Path) -> Callable[..., tuple[TrtEngine, FakeGpu, np.ndarray]]:
    """Opens a `TrtEngine` on a fake; returns it, the fake and the weights [C * H * W, classes]."""

    def open_engine(cuda_graph: bool = True, record: dict[str, Any] | None = None, **wrong: Any) -> Any:
        gpu, here = FakeGpu(**wrong), HERE
        weights = np.random.default_rng(1).standard_normal((3 * 32 * 32, 10), dtype=np.float32)
        recorded.write_bytes(weights.tobytes())
        write_json(record_path(recorded), record_of(recorded, **(record or {})))
        event = SimpleNamespace(record=lambda s: None, synchronize=lambda: None, elapsed_time=lambda other: 1.5)
        for name, fake in {
            "Stream": lambda: SimpleNamespace(cuda_stream=7, synchronize=lambda: None), "CUDAGraph": FakeGraph,
            "stream": lambda s: contextlib.nullcontext(), "Event": lambda enable_timing: event, "graph": gpu.record,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, fake)
        for name in ("zeros", "empty"):
            monkeypatch.setattr(torch, name, functools.partial(in_main_memory, getattr(torch, name)))
        monkeypatch.setattr(trt_engine, "load_tensorrt", lambda purpose, instead: gpu)
        monkeypatch.setattr(trt_engine, "this_machine", lambda: here)
        return TrtEngine(recorded, 1, "cuda", cuda_graph=cuda_graph), gpu, weights

    return open_engine


class FakeGraph:
    def __init__(self) -> None:
        self.runs: list[Callable[[], None]] = []

    def replay(self) -> None:
        for each in self.runs:
            each()


def in_main_memory(make: Callable[..., Any], shape: Any, device: str = "cpu", pin_memory: bool = False) -> Any:
    return make(shape)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_each_batch_size_has_its_buffers_and_its_graph(open_fake: Open, cuda_graph: bool) -> None:
    engine, gpu, weights = open_fake(cuda_graph)
    assert (engine.provider, engine.precision, engine.layers) == ("TensorRT 10.16.1", "fp32", {"fp32": 1})
    images = some_images(8)
    for batch in (8, 1, 8, 3):
        logits = engine.infer(images[-batch:])
        np.testing.assert_allclose(logits, images[-batch:].reshape(batch, -1) @ weights, rtol=1e-3, atol=1e-3)
    kept = engine.infer(images[:1])
    engine.infer(images[1:2])
    np.testing.assert_allclose(kept, images[:1].reshape(1, -1) @ weights, rtol=1e-3, atol=1e-3)
    assert (engine.time_call(images), engine.time_compute(images)) == (1.5, 1.5)
    # three sizes: one run each and its recording, or every one of the eight calls besides
    assert (gpu.graphs, gpu.enqueued) == ((3, 3 + 3) if cuda_graph else (0, 3 + 8))
    with pytest.raises(InputError, match=r"takes batches of 1 to 32, got 33; build it again .* --batch-range 1,33,33 "):
        engine.infer(some_images(33))
    engine.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"engine": None}, r"TensorRT 10\.16\.1\.11 cannot load .*peer\.plan: Version tag does not match\.; build it again"),
        ({"takes": FakeGpu.DataType.UINT8}, r"has input of UINT8, logits of FLOAT; bench needs .*: extract it again, without prep"),
        ({"layers": [layer("Half", "Half")]}, r"built from an ONNX file in fp32 and computes in fp16 \(.*: 1 in fp16\)"),
        ({"layers": [layer("Float", "Float", TacticName=TF32_KERNEL)]}, r"in fp32 and computes in tf32"),
        ({"layers": []}, r"computes in unknown \(.*: none found\)"),
    ],
)  # fmt: skip
def test_a_plan_that_will_not_do_is_refused(open_fake: Open, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_fake(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"run": None}, r"TensorRT did not run: it gave no reason"),
        ({"unknown": ["logits"]}, r"TensorRT does not know the shape of logits at batch 2"),
        ({"address": None}, r"TensorRT refuses the buffer of input"),
    ],
)
def test_a_run_that_fails_is_said(open_fake: Open, wrong: dict[str, Any], said: str) -> None:
    engine, _, _ = open_fake(**wrong)
    with pytest.raises(EngineFailed, match=said):
        engine.infer(some_images(2))


def test_a_plan_of_another_machine_is_not_loaded(open_fake: Open) -> None:
    with pytest.raises(InputError, match=r"peer\.plan was built with NVIDIA L4 \(8\.9\); here is NVIDIA A10 \(8\.6\)"):
        open_fake(record=L4)
    with pytest.raises(InputError, match="got --device cpu; use --device cuda, or --engine ort"):
        open_fake()[0].__class__(Path("p.plan"), 1, "cpu")


def test_an_engine_can_be_handed_to_another_process() -> None:
    opener = functools.partial(TrtEngine, cuda_graph=False)
    assert pickle.loads(pickle.dumps(opener)).keywords == {"cuda_graph": False}


def test_a_batch_outside_the_plan_is_said() -> None:
    check_batch(4, 4, 16, Path("p.plan"))
    with pytest.raises(
        InputError, match=r"^p\.plan takes batches of 4 to 16, got 2; build .* --batch-range 2,2,16 --for"
    ):
        check_batch(2, 4, 16, Path("p.plan"))


# --- on a GPU ---------------------------------------------------------------------------------------------------------------

HAS_TENSORRT = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not HAS_TENSORRT, reason="needs an NVIDIA GPU, its driver and tensorrt (pip install 'wmlc[trt]')"
    ),
]


def marked(test: Callable[..., Any]) -> Callable[..., Any]:
    return functools.reduce(lambda wrapped, mark: mark(wrapped), on_gpu, test)


@marked
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_answers_as_onnx_runtime_does(exported: Export, tmp_path: Path, arch: str, form: str) -> None:
    source, plan = exported(arch, form), tmp_path / "peer.plan"
    extract_plan(source, plan, batch_range=RANGE, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir())
    replayed, launched = TrtEngine(plan, 1, "cuda"), TrtEngine(plan, 1, "cuda", cuda_graph=False)
    precision = form.removesuffix("-gpu")
    assert replayed.precision == precision
    images = some_images(32)
    for batch in (1, 8, 32, 8):
        expected = as_written(source, images[:batch])
        for engine in (replayed, launched):
            difference = parity(engine.infer(images[:batch]), expected, precision)
            assert disagreement(difference, precision) is None
        calls, computes = (
            min(clock(images[:batch]) for _ in range(20)) for clock in (replayed.time_call, replayed.time_compute)
        )
        assert calls > computes > 0
    with pytest.raises(InputError, match="takes batches of 1 to 32, got 33"):
        replayed.infer(some_images(33))
    for engine in (replayed, launched):
        engine.close()


@marked
@pytest.mark.parametrize("option", ["version_compatible", "hardware_compatible"])
def test_a_compatible_plan_loads_here_too(exported: Export, tmp_path: Path, option: str) -> None:
    plan = tmp_path / "peer.plan"
    extract_plan(exported("resnet20", "fp16"), plan, batch_range=RANGE, cache_dir=tmp_path / "cache", **{option: True})
    engine = TrtEngine(plan, 1, "cuda")
    assert engine.infer(some_images(2)).shape == (2, 10)
    engine.close()


@marked
def test_a_gpu_loads_no_plan_of_another(exported: Export, tmp_path: Path) -> None:
    plan = tmp_path / "peer.plan"
    extract_plan(exported("resnet20", "fp32"), plan, batch_range=RANGE, cache_dir=tmp_path / "cache")
    write_json(record_path(plan), {**read_record(plan), "gpu": "another GPU", "tensorrt": "10.0.0"})
    with pytest.raises(InputError, match=r"was built with TensorRT 10\.0\.0, another GPU .*; here are TensorRT"):
        TrtEngine(plan, 1, "cuda")


@marked
def test_a_gpu_compares_layer_by_layer(exported: Export) -> None:
    pytest.importorskip("polygraphy", reason="needs polygraphy: pip install 'wmlc[trt]'")
    for form, allowed in (("fp32", 1e-4), ("fp16", 0.02)):
        rows = compare_layers(exported("resnet20", form), some_images(2))
        assert len(rows) >= 50 and rows[-1][0] == "logits" and max(far for _, far in rows) < allowed
