"""The engines: what each opens and computes, what its class says it can do, and what is refused in words."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import classifier, flatten_file
from packaging.requirements import Requirement
from torch import nn

from wmlc.bench import measure
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import ENGINES, engine_class, tells_layers
from wmlc.bench.engines.machine import choose_torch_device
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.torch_engine import CompiledEngine, TorchEngine
from wmlc.bench.latency.config import LatencyConfig
from wmlc.compiler import require_compiler
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_network
from wmlc.run import Run


def test_onnx_runtime_reads_precision_and_runs_any_batch(tmp_path):
    engine = OrtEngine(flatten_file(tmp_path / "small.onnx"), threads=2, device="cpu")
    assert (engine.provider, engine.precision) == ("CPUExecutionProvider", "fp16")
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(engine.infer(images), images.reshape(3, 64))
    engine.close()


@pytest.mark.parametrize("damage", [b"", b"not an ONNX file", None])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "damaged.onnx"
    whole = classifier(path, 8).read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(InputError) as raised:
        OrtEngine(path, threads=1, device="cpu")
    assert str(raised.value).startswith(f"{path} is not an ONNX file that onnxruntime can load (")
    assert str(raised.value).endswith("; extract it again")
    assert "\n" not in str(raised.value)


def test_torch_runs_the_network_of_a_directory(run: Run):
    engine = TorchEngine(run.network(1), threads=torch.get_num_threads(), device="cpu")
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        expected = load_network(run.network(1))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(engine.infer(images), expected, atol=1e-5)
    assert engine.time_call is None and engine.time_compute is None
    engine.close()


@pytest.mark.parametrize(
    ("name", "abilities"),
    [
        ("torch", {"time_call", "profile"}), ("torch-compile", {"time_call", "profile"}), ("ort", {"profile"}),
        ("ort-trt", {"profile"}), ("openvino", {"profile"}), ("trt", {"time_call", "time_compute", "profile"}),
    ],
)  # fmt: skip
def test_an_engine_says_by_its_class_what_it_can_do(name: str, abilities: set[str]):
    """A method, or None; torch's clock is that of a GPU, so there it is a property."""
    kind = engine_class(name)
    assert {can for can in ("time_call", "time_compute", "profile") if vars_of(kind)[can] is not None} == abilities
    assert set(ENGINES) == {"torch", "torch-compile", "ort", "ort-trt", "openvino", "trt"}


def vars_of(kind: type) -> dict[str, object]:
    """A class's attributes, inherited ones too."""
    return {name: value for each in reversed(kind.__mro__) for name, value in vars(each).items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engines": ("tvm",)},
            "--engine must name some of torch, torch-compile, ort, ort-trt, openvino, trt, each once; got tvm",
        ),
        (
            {"engines": ("ort", "ort")},
            "--engine must name some of torch, torch-compile, ort, ort-trt, openvino, trt, each once; got ort,ort",
        ),
        (
            {"scenarios": ("offline", "rush")},
            "--scenario must name some of single-stream, multi-stream, offline, server, each once; got offline,rush",
        ),
        (
            {"scenarios": ("server",)},
            "the scenario server and --latency-bound go together: the highest rate whose 99th percentile stays under it; give both, such as --scenario server --latency-bound 20",
        ),
        ({"launches": 0}, "--launches must be at least 1, got 0"),
        (
            {"engines": ("ort", "torch"), "precisions": ("int8",)},
            "the engine torch runs a peer as it was trained, in fp32; use --engine ort for others",
        ),
        ({"device": "tpu"}, "--device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"batches": (1, 0)}, "--batch must be from 1 to 65,536 images, got 1,0"),
        ({"batches": ()}, "--batch must be from 1 to 65,536 images, got none"),
        ({"batches": (10**14,)}, f"--batch must be from 1 to 65,536 images, got {10**14}"),
        ({"batches": (2, 2)}, "--batch must name each size once, got 2,2"),
        ({"seconds": 0.0}, "--seconds must be above 0, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"min_speedup": 0.0}, "--min-speedup must be above 0, got 0"),
        ({"max_drop": float("nan")}, "--max-drop must be a number of top-1 points, got nan"),
    ],
)
def test_a_bad_config_is_refused(options, message):
    with pytest.raises(InputError) as raised:
        BenchConfig(**options)
    assert str(raised.value) == message


def test_more_threads_than_cpus_are_refused():
    for threads in (0, 10**6):
        with pytest.raises(InputError, match=f"^--threads must be from 1 to the [0-9]+ CPUs there are, got {threads}$"):
            BenchConfig(threads=(threads,))


def test_tensorrt_says_what_is_missing_and_loads_nothing(monkeypatch):
    find, said = importlib.util.find_spec, []
    loaded = "tensorrt" in sys.modules
    for gpu, package in ((False, True), (True, None), (True, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, p=package: p if name == "tensorrt" else find(name)
        )
        try:
            assert engine_class("trt").choose_device("auto") == "cuda"
        except InputError as error:
            said.append(str(error))
    assert ("tensorrt" in sys.modules) == loaded
    assert said == [
        "--engine trt needs an NVIDIA GPU and its driver, and torch sees none; use a GPU machine, or use --engine ort or torch",
        "--engine trt needs the package tensorrt, which is not installed (pip install 'wmlc[trt]'); install it, or use "
        "--engine ort or torch",
    ]


def test_cuda_is_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_torch_device("auto") == choose_torch_device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"^cuda was asked for, but torch sees no CUDA GPU"):
        choose_torch_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (choose_torch_device("auto"), choose_torch_device("cpu")) == ("cuda", "cpu")


def test_a_provider_that_does_not_load_is_an_error(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here the CUDA provider loads")
    with pytest.raises(InputError, match="CUDAExecutionProvider"):
        OrtEngine(flatten_file(tmp_path / "small.onnx"), threads=1, device="cuda")


def test_what_onnx_runtime_needs_on_a_gpu_is_installed():
    """Without one of these libraries its CUDA provider does not load, and torch brings most of them, but not all."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("onnxruntime-gpu") or []]
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnxruntime-gpu is for Linux on x86_64")
    if sys.version_info < (3, 11):
        pytest.skip("for Python 3.10 it is of another CUDA than torch")
    needed = [
        each for each in wanted for extra in ("cuda", "cudnn") if each.marker and each.marker.evaluate({"extra": extra})
    ]
    assert len(needed) > 3
    assert all(each.specifier.contains(importlib.metadata.version(each.name)) for each in needed)


def test_each_network_of_a_process_is_compiled(monkeypatch):
    """And not the first eight alone, which is as many as torch compiles of a class."""
    compiled = []
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend=lambda graph, _: compiled.append(graph) or graph)
    )
    monkeypatch.setattr(
        "wmlc.models.checkpoint.load_network", lambda path: nn.Sequential(nn.Flatten(), nn.Linear(4, int(path.name)))
    )
    for classes in range(2, 12):
        engine = CompiledEngine(Path(str(classes)), torch.get_num_threads(), "cpu")
        assert engine.infer(np.ones((1, 1, 2, 2), dtype=np.float32)).shape == (1, classes)
        engine.close()
    assert len(compiled) == 10


def test_who_has_times_of_layers():
    told = {name for name in ENGINES for device in ("cpu", "cuda") if tells_layers(name, device)}
    assert told == {"torch", "ort", "openvino", "trt"}
    assert not tells_layers("ort", "cuda"), "its profiler times launches"


@pytest.mark.parametrize(
    ("device", "word", "said"),
    [
        ("cpu", "CXX", "--compile needs a C++ compiler (g++ or clang++) for the CPU; install one, or leave it out"),
        ("cuda", "CC", "--compile needs a C compiler (gcc or clang) for what starts kernels on a GPU; install one, or leave it out"),
    ],
)  # fmt: skip
def test_a_compiler_that_is_not_there_is_missed_before_anything_runs(monkeypatch, device, word, said):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(word, raising=False)
    with pytest.raises(InputError) as raised:
        require_compiler("--compile", device, "leave it out")
    assert str(raised.value) == said
    monkeypatch.setenv(word, "/opt/cc")
    require_compiler("--compile", device, "leave it out")


def test_int8_is_made_for_where_it_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert BenchConfig(engines=("ort",)).int8_target == LatencyConfig(engine="ort").int8_target == "gpu"
    assert BenchConfig(engines=("ort",), precisions=("int8",), target="cpu").int8_target == "cpu"
    assert BenchConfig(engines=("ort",), device="cpu").int8_target is None
    assert LatencyConfig(engine="ort", device="cpu").int8_target == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("engine", ["ort", "torch"])
def test_a_gpu_computes_what_the_cpu_does(run: Run, tmp_path, engine):
    if engine == "ort" and OrtEngine.on_gpu not in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu")
    source = classifier(tmp_path / "a.onnx", 8) if engine == "ort" else run.network(1)
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    on_cpu, on_gpu = (engine_class(engine)(source, 1, device) for device in ("cpu", "cuda"))
    for batch in (5, 2):
        np.testing.assert_allclose(on_gpu.infer(images[:batch]), on_cpu.infer(images[:batch]), atol=1e-3)
    assert (measure.time_calls(on_gpu, images, 3) > 0).all()
