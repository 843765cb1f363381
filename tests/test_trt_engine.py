"""The engine of TensorRT: its precision as the inspector tells it, its buffers and graphs around a fake, and on a GPU itself."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trt_parts import (
    HERE,
    L4,
    RANGE,
    TF32_KERNEL,
    Export,
    as_written,
    inspected,
    layer,
    layer_11,
    record_of,
    some_images,
)

from wmlc import records
from wmlc.accuracy import disagreement, relative_error
from wmlc.bench.engines import trt_engine
from wmlc.bench.engines.trt_engine import TrtEngine, check_batch, computing_layers, main_precision
from wmlc.errors import EngineFailed, InputError
from wmlc.export.layer_by_layer import compare_layers
from wmlc.export.to_tensorrt import extract_plan
from wmlc.plan_record import read_record, record_path

Open = Callable[..., Any]

REFORMAT = layer("Row major linear FP32", kind="Reformat", Name="Reformatting CopyNode for Input Tensor 0 to conv")
UNTOLD = "N/A due to dynamic shapes"
INT8_KERNEL = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32"


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
def open_fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[TrtEngine, FakeGpu, np.ndarray]]:
    """Opens a `TrtEngine` on a fake; returns it, the fake and the weights [C * H * W, classes]."""

    def open_engine(cuda_graph: bool = True, record: dict[str, Any] | None = None, **wrong: Any) -> Any:
        gpu, plan = FakeGpu(**wrong), tmp_path / "peer.plan"
        weights = np.random.default_rng(1).standard_normal((3 * 32 * 32, 10), dtype=np.float32)
        plan.write_bytes(weights.tobytes())
        records.write(record_path(plan), record_of(plan, **(record or {})))
        event = SimpleNamespace(record=lambda s: None, synchronize=lambda: None, elapsed_time=lambda other: 1.5)
        for name, fake in {
            "Stream": lambda: SimpleNamespace(cuda_stream=7, synchronize=lambda: None), "CUDAGraph": FakeGraph,
            "stream": lambda s: contextlib.nullcontext(), "Event": lambda enable_timing: event, "graph": gpu.record,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, fake)
        for name in ("zeros", "empty"):
            monkeypatch.setattr(torch, name, functools.partial(in_main_memory, getattr(torch, name)))
        monkeypatch.setattr(trt_engine, "load_tensorrt", lambda purpose, instead: gpu)
        monkeypatch.setattr(trt_engine, "this_machine", lambda: HERE)
        return TrtEngine(plan, 1, "cuda", cuda_graph=cuda_graph), gpu, weights

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


# On a GPU

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
@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2", "resnet50"])
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-gpu"])
def test_a_gpu_answers_as_onnx_runtime_does(exported: Export, tmp_path: Path, arch: str, form: str) -> None:
    source, plan = exported(arch, form), tmp_path / "peer.plan"
    extract_plan(source, plan, batch_range=RANGE)
    assert list((tmp_path / "cache").iterdir())
    replayed, launched = TrtEngine(plan, 1, "cuda"), TrtEngine(plan, 1, "cuda", cuda_graph=False)
    precision = form.removesuffix("-gpu")
    assert replayed.precision == precision
    images = some_images(32)
    for batch in (1, 8, 32, 8):
        expected = as_written(source, images[:batch])
        for engine in (replayed, launched):
            difference = relative_error(engine.infer(images[:batch]), expected, precision)
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
    extract_plan(exported("resnet20", "fp16"), plan, batch_range=RANGE, **{option: True})
    engine = TrtEngine(plan, 1, "cuda")
    assert engine.infer(some_images(2)).shape == (2, 10)
    engine.close()


@marked
def test_a_gpu_loads_no_plan_of_another(exported: Export, tmp_path: Path) -> None:
    plan = tmp_path / "peer.plan"
    extract_plan(exported("resnet20", "fp32"), plan, batch_range=RANGE)
    records.write(record_path(plan), replace(read_record(plan), gpu="another GPU", tensorrt="10.0.0"))
    with pytest.raises(InputError, match=r"was built with TensorRT 10\.0\.0, another GPU .*; here are TensorRT"):
        TrtEngine(plan, 1, "cuda")


@marked
def test_a_gpu_compares_layer_by_layer(exported: Export) -> None:
    pytest.importorskip("polygraphy", reason="needs polygraphy: pip install 'wmlc[trt]'")
    for form, allowed in (("fp32", 1e-4), ("fp16", 0.02)):
        rows = compare_layers(exported("resnet20", form), some_images(2))
        assert len(rows) >= 50 and rows[-1][0] == "logits" and max(far for _, far in rows) < allowed
