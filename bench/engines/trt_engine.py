"""A TensorRT plan on a GPU: torch tensors as its buffers, a CUDA graph a batch size, its precision as it says itself.

Nothing of TensorRT is imported before torch has seen a GPU and its driver.

N images, C channels or classes, H height, W width
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wmlc.bench.engines import CALLS_BEFORE, PLAN, Nodes
from wmlc.errors import EngineFailed, InputError
from wmlc.forms import INPUT, OUTPUT
from wmlc.plan_record import AGAIN, check_record, read_record
from wmlc.trt_machine import load_tensorrt, make_logger, require_tensorrt, this_machine

# In what a layer is, its parameters or its kernel's name: that it computes, and that it only moves or converts.
COMPUTING = ("conv", "gemm", "matmul", "matrixmultiply", "fprop")
MOVING = ("reformat", "noop", "constant", "shuffle", "quantize", "cast")
# How a type is called in "Weights", and in "Format/Datatype" (TensorRT 10) or "Datatype" (11) of an input.
TYPES = {
    "int8": "int8", "fp8": "fp8", "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "half": "fp16", "fp32": "fp32",
    "float": "fp32",
}  # fmt: skip
# How a kernel's name tells, the first that fits: sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_…
KERNELS = {"int8": "_i8|int8|imma", "fp16": "f16f16|hmma|_h16|fp16", "tf32": "tf32", "fp32": "f32f32|scudnn|sgemm|ffma"}
NARROWEST_FIRST = ("int8", "fp8", "fp16", "bf16", "tf32", "fp32")


@dataclass
class _Batch:
    """What one batch size needs, at addresses that stay: a CUDA graph records them."""

    context: Any
    host_in: Any  # pinned, as is host_out
    device_in: Any
    device_out: Any
    host_out: Any
    run: Callable[[], None]  # enqueues the network on the engine's stream


class TrtEngine:
    """A plan that `wmlc extract` built, in TensorRT on the first GPU.

    Raises `InputError` where GPU, driver or package are missing, before anything native is touched; where the plan is
    damaged or belongs to another machine (its record says so); where it is not called as `wmlc extract` calls it;
    and where it computes in another precision than its ONNX file asked for.
    """

    takes: ClassVar[str] = PLAN
    libraries: ClassVar[tuple[str, ...]] = ("torch", "tensorrt")  # once `choose_device` has seen a GPU
    any_batch: ClassVar[bool] = True
    layers_on: ClassVar[tuple[str, ...]] = ("cuda",)

    @staticmethod
    def choose_device(device: str) -> str:
        require_tensorrt("--engine trt", "--engine ort or torch")
        return "cuda"

    def __init__(self, path: Path, threads: int, device: str, *, cuda_graph: bool = True) -> None:
        trt = load_tensorrt("--engine trt", "--engine ort or torch")
        if device != "cuda":
            raise InputError(f"TensorRT runs on a GPU only, got --device {device}; use --device cuda, or --engine ort")
        record = read_record(path)
        check_record(record, this_machine(), path)
        import torch

        torch.set_num_threads(threads)
        self._torch, self._path, self._cuda_graph = torch, path, cuda_graph
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such a plan brings its own runtime, which is code
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise InputError(f"TensorRT {trt.__version__} cannot load {path}: {self._logger.words()}; {AGAIN}")
        _check_signature(trt, self._engine, path)
        shapes = [tuple(shape) for shape in self._engine.get_tensor_profile_shape(INPUT, 0)]
        self._smallest, self._largest = shapes[0][0], shapes[2][0]
        self.layers = computing_layers(_inspect(trt, self._engine, shapes[1]))
        self.precision = main_precision(self.layers)
        if self.precision != record.precision:
            shown = ", ".join(f"{count} in {name}" for name, count in self.layers.most_common()) or "none found"
            raise InputError(
                f"{path} was built from an ONNX file in {record.precision} and computes in {self.precision} "
                f"(convolutions and matrix products: {shown}); {AGAIN}, or report it with {path.name}.json"
            )
        self.provider = "TensorRT " + ".".join(trt.__version__.split(".")[:3])
        self._stream = torch.cuda.Stream()
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._batches: dict[tuple[int, ...], _Batch] = {}

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        """float32 [N, C, H, W] -> float32 logits [N, C]; `InputError` where N is outside the plan's profile."""
        batch = self._load(images_NCHW)
        batch.run()
        with self._torch.cuda.stream(self._stream):
            batch.host_out.copy_(batch.device_out, non_blocking=True)
        self._stream.synchronize()
        return batch.host_out.numpy().copy()

    def time_call(self, images_NCHW: np.ndarray) -> float:
        """The milliseconds of one `infer` by the GPU's own clock, both copies included."""
        self._batch(images_NCHW.shape)  # opened before the clock runs
        self._start.record(self._stream)
        self.infer(images_NCHW)
        self._end.record(self._stream)
        self._end.synchronize()
        return self._start.elapsed_time(self._end)

    def time_compute(self, images_NCHW: np.ndarray) -> float:
        """The milliseconds of the network alone by the GPU's own clock: the images are on the GPU, the logits stay."""
        batch = self._load(images_NCHW)
        self._stream.synchronize()
        self._start.record(self._stream)
        batch.run()
        self._end.record(self._stream)
        self._end.synchronize()
        return self._start.elapsed_time(self._end)

    def profile(self, images_NCHW: np.ndarray, calls: int) -> Nodes:
        """The median milliseconds over `calls` calls of each layer, in order: [(nodes of the file, type, ms)].

        By TensorRT's own profiler, in a context beside the one that is timed and without a CUDA graph, as it waits for
        each layer.
        """
        trt = load_tensorrt("--profile", "--engine ort or torch")
        context, buffers = self._make_context(images_NCHW.shape), self._load(images_NCHW)
        for name, tensor in ((INPUT, buffers.device_in), (OUTPUT, buffers.device_out)):
            context.set_tensor_address(name, tensor.data_ptr())
        context.profiler = profiler = _make_profiler(trt)
        for _ in range(CALLS_BEFORE + calls):
            profiler.calls.append([])
            self._enqueue(context)
            self._stream.synchronize()
        about = layer_labels(_inspect(trt, self._engine, images_NCHW.shape))
        return [(*about.get(name, (name, "")), ms) for name, ms in median_times(profiler.calls[CALLS_BEFORE:])]

    def close(self) -> None:
        """Free what the engine holds, what was made last first."""
        self._stream.synchronize()
        self._batches.clear()
        del self._engine, self._runtime

    def _load(self, images_NCHW: np.ndarray) -> _Batch:
        """Enqueue the copy of the images to where the network reads them."""
        batch = self._batch(images_NCHW.shape)
        np.copyto(batch.host_in.numpy(), images_NCHW)
        with self._torch.cuda.stream(self._stream):
            batch.device_in.copy_(batch.host_in, non_blocking=True)
        return batch

    def _batch(self, shape: tuple[int, ...]) -> _Batch:
        if shape not in self._batches:
            self._batches[shape] = self._open_batch(shape)
        return self._batches[shape]

    def _open_batch(self, shape: tuple[int, ...]) -> _Batch:
        """Buffers, one run, and the graph of a second; a context of its own, as a graph fixes its context too."""
        torch, stream, context = self._torch, self._stream, self._make_context(shape)
        with torch.cuda.stream(stream):
            device_in = torch.zeros(shape, device="cuda")
            device_out = torch.empty(tuple(context.get_tensor_shape(OUTPUT)), device="cuda")
        for name, tensor in ((INPUT, device_in), (OUTPUT, device_out)):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineFailed(f"TensorRT refuses the buffer of {name}: {self._logger.words()}")
        self._enqueue(context)  # the first run sets things up that must not be recorded
        stream.synchronize()
        return _Batch(
            context=context,
            host_in=torch.empty(shape, pin_memory=True),
            device_in=device_in,
            device_out=device_out,
            host_out=torch.empty(device_out.shape, pin_memory=True),
            run=self._record(context, shape[0]) if self._cuda_graph else lambda: self._enqueue(context),
        )

    def _make_context(self, shape: tuple[int, ...]) -> Any:
        """An execution context for input `shape`."""
        check_batch(shape[0], self._smallest, self._largest, self._path)
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineFailed(f"TensorRT made no context for batch {shape[0]}: {self._logger.words()}")
        if not context.set_input_shape(INPUT, shape):
            raise InputError(f"{self._path} does not take images of {list(shape)}: {self._logger.words()}; {AGAIN}")
        if unknown := context.infer_shapes():
            raise EngineFailed(f"TensorRT does not know the shape of {', '.join(unknown)} at batch {shape[0]}")
        return context

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise EngineFailed(f"TensorRT did not run: {self._logger.words()}")

    def _record(self, context: Any, size: int) -> Callable[[], None]:
        """A CUDA graph of one run, and what replays it on the engine's stream."""
        torch, stream = self._torch, self._stream
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._enqueue(context)
        except RuntimeError as error:
            raise EngineFailed(
                f"no CUDA graph could be recorded at batch {size}: {error}; use --no-cuda-graph"
            ) from None

        def replay() -> None:
            with torch.cuda.stream(stream):
                graph.replay()

        return replay


def check_batch(batch: int, smallest: int, largest: int, plan: Path) -> None:
    """Raise `InputError` where `batch` is outside the range that `plan` was built for."""
    if not smallest <= batch <= largest:
        needed = f"{min(batch, smallest)},{batch},{max(batch, largest)}"
        raise InputError(
            f"{plan} takes batches of {smallest} to {largest}, got {batch}; build it again with 'wmlc extract … "
            f"--batch-range {needed} --force'"
        )


def _check_signature(trt: Any, engine: Any, path: Path) -> None:
    """Raise `InputError` where the plan does not take and return what bench needs."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) for name in names}
    kind = trt.DataType.FLOAT
    if found != {INPUT: (trt.TensorIOMode.INPUT, kind), OUTPUT: (trt.TensorIOMode.OUTPUT, kind)}:
        shown = ", ".join(f"{name} of {dtype.name}" for name, (_, dtype) in found.items())
        raise InputError(
            f"{path} has {shown}; bench needs an input {INPUT!r} and an output {OUTPUT!r} of FLOAT: extract it again, "
            "without preprocessing in it"
        )


def _inspect(trt: Any, engine: Any, shape: tuple[int, ...]) -> str:
    """What the inspector says, in JSON, of the engine at this input shape: without one it tells no types."""
    inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
    if context is not None and context.set_input_shape(INPUT, shape):
        inspector.execution_context = context
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def _make_profiler(trt: Any) -> Any:
    """A profiler that adds (layer, milliseconds) to the last of its `calls`."""

    class LayerTimes(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.calls: list[list[tuple[str, float]]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.calls[-1].append((layer_name, ms))

    return LayerTimes()


def median_times(calls: list[list[tuple[str, float]]]) -> list[tuple[str, float]]:
    """The median milliseconds of each layer in the order of the first call; one that is told twice, summed."""
    took_ms: dict[str, list[float]] = {name: [0.0] * len(calls) for name, _ in calls[0]}
    for place, call in enumerate(calls):
        for name, ms in call:
            took_ms.setdefault(name, [0.0] * len(calls))[place] += ms
    return [(name, float(np.median(times))) for name, times in took_ms.items()]


def layer_labels(inspector_json: str) -> dict[str, tuple[str, str]]:
    """Layer → (the nodes of the ONNX file that it computes, its type), as `get_engine_information` tells them.

    "node_Conv_306 + node_relu" of the metadata "[ONNX Layer: node_Conv_306]…[ONNX Layer: node_relu]"; the layer's own
    name where there are none, and for one that only moves or converts.
    """
    found = {}
    for layer in json.loads(inspector_json).get("Layers", []):
        if isinstance(layer, dict):
            name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
            nodes = re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))
            moves = _named(layer, MOVING, "LayerType")
            found[name] = (name if moves or not nodes else " + ".join(nodes), kind)
    return found


def computing_layers(inspector_json: str) -> Counter[str]:
    """How many convolutions and matrix products of an engine run in which type: {"int8": 20, "fp32": 1}.

    Args: `get_engine_information` in JSON of an engine built with detailed profiling verbosity, as TensorRT 10 or 11
    writes it. A layer's type is that of its weights where it is told, else the narrowest that it reads, else what its
    kernel's name says; fp32 in a TF32 kernel is tf32. Where no layer has a telling name, as after fusion into few,
    every layer that does not only move data counts.
    """
    layers = [layer for layer in json.loads(inspector_json).get("Layers", []) if isinstance(layer, dict)]
    working = [layer for layer in layers if not _named(layer, MOVING, "LayerType")]
    telling = [layer for layer in working if _named(layer, COMPUTING, "LayerType", "ParameterType", "TacticName")]
    return Counter(kind for kind in map(_layer_type, telling or working) if kind is not None)


def main_precision(layers: Counter[str]) -> str:
    """What most of them run in, of as many the widest; "unknown" where there are none."""
    return max(layers, key=lambda kind: (layers[kind], NARROWEST_FIRST.index(kind)), default="unknown")


def _named(layer: dict[str, Any], words: tuple[str, ...], *keys: str) -> bool:
    said = " ".join(str(layer.get(key, "")) for key in keys).lower()
    return any(word in said for word in words)


def _layer_type(layer: dict[str, Any]) -> str | None:
    weights, kernel = layer.get("Weights"), str(layer.get("TacticName", "")).lower()
    read = [str(value.get("Format/Datatype") or value.get("Datatype")) for value in layer.get("Inputs", [])]
    told = _types_in([str(weights.get("Type"))] if isinstance(weights, dict) else []) or _types_in(read)
    told = told or [kind for kind, pattern in KERNELS.items() if re.search(pattern, kernel)][:1]
    narrowest = min(told, key=NARROWEST_FIRST.index, default=None)
    return "tf32" if narrowest == "fp32" and "tf32" in kernel else narrowest


def _types_in(texts: list[str]) -> list[str]:
    """[fp16] of ["Channel major FP16 format where channel % 8 == 0"], and of ["Half"]; none of what is no such type."""
    return [TYPES[word] for text in texts for word in re.findall(r"\w+", text.lower()) if word in TYPES]
