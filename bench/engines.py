"""What runs a network: one class an engine, behind one blocking call.

An engine's libraries are imported when it is opened, so that ONNX Runtime is timed without torch beside it.
Threads never spin while they wait, as an idle engine's would take the CPU of the one that is timed.

N images, C channels or classes, H height, W width
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wmlc.errors import InputError
from wmlc.forms import INPUT, OUTPUT


class Engine(Protocol):
    """A loaded network; `provider` is what really computes, `precision` what it computes in."""

    provider: str
    precision: str
    # An engine with a clock of its own (CUDA events) also has `time_call(images_NCHW) -> milliseconds`, and where
    # it can tell them apart `time_compute`, the same without the transfers.

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        """float32 [N, C, H, W] -> float32 logits [N, C], in host memory on return."""

    def close(self) -> None:
        """Free what the engine holds."""


class TorchEngine:
    """The network in a directory, in eager PyTorch.

    Contiguous NCHW, the memory format that torch gives a loaded network; in full fp32 on a GPU too
    (no TF32). `infer` returns after the copy to host memory, which waits for the GPU.
    """

    precision = "fp32"

    def __init__(self, directory: Path, threads: int, device: str) -> None:
        import torch

        from wmlc.models.checkpoint import load_network

        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._torch = torch
        self._network = load_network(directory).eval().to(device)
        self._device = device
        self.provider = f"torch {device}"
        if device == "cuda":
            self.time_call = self._time_by_events

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            images = self._torch.from_numpy(images_NCHW).to(self._device)
            return self._network(images).cpu().numpy()

    def _time_by_events(self, images_NCHW: np.ndarray) -> float:
        """The milliseconds of one `infer` by the GPU's own clock, both copies included."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.infer(images_NCHW)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def close(self) -> None:
        del self._network


class OrtEngine:
    """An ONNX file in ONNX Runtime, on the CPU or through the CUDA provider with I/O binding.

    Raises `InputError` for a file that cannot be loaded or is not called as `wmlc extract` calls it,
    and where the provider did not load: never another provider in its place.
    """

    def __init__(self, path: Path, threads: int, device: str) -> None:
        import onnxruntime as ort

        if not path.is_file():
            raise InputError(f"{path} is not a file; extract it again")
        ort.set_default_logger_severity(4)  # what goes wrong is raised, in one line
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise InputError(f"this onnxruntime has no {provider}; install onnxruntime-gpu, or use --device cpu")
        if device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # the CUDA libraries that pip installed, which the loader does not look for
        self._ort = ort
        self._session = _open_session(ort, path, threads, provider)
        self.provider = self._session.get_providers()[0]
        if self.provider != provider:
            raise InputError(
                f"{provider} was asked for and did not load ({self.provider} did): CUDA or cuDNN of the version "
                "that onnxruntime needs is missing; install them, or use --device cpu"
            )
        _check_signature(self._session, path)
        self.precision = _read_precision(self._session)
        self._binding: Any = self._session.io_binding() if device == "cuda" else None
        self._bound: Any = None  # the input on the GPU, of the shape last used

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        if self._binding is None:
            return self._session.run([OUTPUT], {INPUT: images_NCHW})[0]
        return self._infer_bound(images_NCHW)

    def _infer_bound(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Copy into a buffer that stays on the GPU, run, copy the logits back."""
        if self._bound is None or self._bound.shape() != list(images_NCHW.shape):
            self._bound = self._ort.OrtValue.ortvalue_from_numpy(images_NCHW, "cuda", 0)
            self._binding.bind_ortvalue_input(INPUT, self._bound)
            self._binding.bind_output(OUTPUT, "cuda", 0)
        self._bound.update_inplace(np.ascontiguousarray(images_NCHW))
        self._session.run_with_iobinding(self._binding)
        return self._binding.copy_outputs_to_cpu()[0]

    def close(self) -> None:
        self._binding = self._bound = None
        del self._session


def _open_session(ort: Any, path: Path, threads: int, provider: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # TF32 is not fp32: the file says what precision it is in.
    settings = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}
    try:
        return ort.InferenceSession(str(path), options, providers=[(provider, settings)])
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise InputError(
            f"{path} is not an ONNX file that onnxruntime can load ({one_line(error)}); extract it again"
        ) from None


def _check_signature(session: Any, path: Path) -> None:
    inputs = [(value.name, value.type) for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    if inputs != [(INPUT, "tensor(float)")] or outputs != [OUTPUT]:
        found = ", ".join(f"{name} of {kind}" for name, kind in inputs)
        raise InputError(
            f"{path} takes {found} and returns {', '.join(outputs)}; bench needs an input {INPUT!r} of tensor(float) "
            f"and an output {OUTPUT!r}: extract it again, without preprocessing in it"
        )


def _read_precision(session: Any) -> str:
    """What the file's metadata says, as JSON; fp32 if nothing."""
    said = session.get_modelmeta().custom_metadata_map.get("precision", '"fp32"')
    try:
        return str(json.loads(said))
    except json.JSONDecodeError:
        return said


def one_line(error: Exception, most: int = 300) -> str:
    """An error's message without line breaks, cut to `most` characters; its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


def open_plan(path: Path, threads: int, device: str, *, cuda_graph: bool = True) -> Engine:
    """A TensorRT plan, see `wmlc.bench.trt_engine`."""
    from wmlc.bench.trt_engine import TrtEngine

    return TrtEngine(path, threads, device, cuda_graph=cuda_graph)


ENGINES: dict[str, Callable[[Path, int, str], Engine]] = {"torch": TorchEngine, "ort": OrtEngine, "trt": open_plan}

# What an engine imports when it is opened; a process may import it sooner.
LIBRARIES = {"torch": ("torch", "wmlc.models.checkpoint"), "ort": ("onnxruntime",), "trt": ("torch",)}
