"""An ONNX file in ONNX Runtime: on the CPU, or on a GPU through its CUDA or its TensorRT provider."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wmlc.bench.engines import CALLS_BEFORE, LONGEST_SAID, ONNX, Nodes, check_one_input
from wmlc.bench.engines.machine import choose_torch_device
from wmlc.bench.layers import file_precision
from wmlc.errors import InputError, one_line
from wmlc.files import user_cache
from wmlc.trt_machine import require_gpu

KERNEL = "_kernel_time"  # how the name of a node's event ends


class OrtEngine:
    """An ONNX file on the CPU, or through the CUDA provider with I/O binding.

    Raises `InputError` for a file that cannot be loaded or has not one input,
    and where the provider did not load: never another provider in its place.
    """

    takes: ClassVar[str] = ONNX
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    any_batch: ClassVar[bool] = True
    layers_on: ClassVar[tuple[str, ...]] = ("cpu",)
    on_gpu: ClassVar[str] = "CUDAExecutionProvider"
    time_call = time_compute = None

    @staticmethod
    def choose_device(device: str) -> str:
        return choose_torch_device(device)

    def __init__(
        self, path: Path, threads: int, device: str, *, output: str | None = None, as_written: bool = False
    ) -> None:
        """Args: the name of the output that counts, of a file of unknown origin; `as_written` fuses nothing."""
        import onnxruntime as ort

        if not path.is_file():
            raise InputError(f"{path} is not a file; extract it again")
        ort.set_default_logger_severity(4)  # what goes wrong is raised, in one line
        provider = self.on_gpu if device == "cuda" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise InputError(f"this onnxruntime has no {provider}; install onnxruntime-gpu, or use --device cpu")
        if device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # the CUDA libraries that pip installed, which the loader does not look for
        self._ort, self._path, self._threads, self._as_written = ort, path, threads, as_written
        self._session = self._open(provider)
        self.provider = self._session.get_providers()[0]
        if self.provider != provider:
            raise InputError(
                f"{provider} was asked for and did not load ({self.provider} did): CUDA, cuDNN or TensorRT of the "
                "version that onnxruntime needs is missing; pip install 'onnxruntime-gpu[cuda,cudnn]', or --device cpu"
            )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_one_input(len(inputs), path)
        self._input, self._output = inputs[0].name, output or outputs[0].name
        self.precision = "" if output else _read_precision(self._session)  # others' metadata means something else
        self._binding: Any = self._session.io_binding() if device == "cuda" else None
        self._bound: Any = None  # the input on the GPU, of the shape last used

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        if self._binding is None:
            return self._session.run([self._output], {self._input: images_NCHW})[0]
        return self._infer_bound(images_NCHW)

    def _infer_bound(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Copy into a buffer that stays on the GPU, run, copy the logits back."""
        if self._bound is None or self._bound.shape() != list(images_NCHW.shape):
            self._bound = self._ort.OrtValue.ortvalue_from_numpy(images_NCHW, "cuda", 0)
            self._binding.bind_ortvalue_input(self._input, self._bound)
            self._binding.bind_output(self._output, "cuda", 0)
        self._bound.update_inplace(np.ascontiguousarray(images_NCHW))
        self._session.run_with_iobinding(self._binding)
        return self._binding.copy_outputs_to_cpu()[0]

    def profile(self, images_NCHW: np.ndarray, calls: int) -> Nodes:
        """The median milliseconds over `calls` calls of each node that runs, in order: [(node, operator, ms)].

        By ONNX Runtime's own profiler, in whole microseconds and in a session beside the one that is timed, as it adds
        to each node. Raises `InputError` on a GPU, where it times how long work takes to launch.
        """
        if self._binding is not None:
            raise InputError("ONNX Runtime's profiler times a GPU's launches, not its work; use --engine torch or trt")
        with tempfile.TemporaryDirectory() as directory:
            session = self._open(self.provider, Path(directory) / "nodes")
            for _ in range(CALLS_BEFORE + calls):
                session.run([self._output], {self._input: images_NCHW})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return node_times(events, calls)

    def close(self) -> None:
        self._binding = self._bound = None
        del self._session

    def _settings(self, provider: str) -> dict[str, str]:
        """TF32 is not fp32: the file says what precision it is in."""
        return {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}

    def _open(self, provider: str, profile_to: Path | None = None) -> Any:
        """A session; with `profile_to` one that writes its node times to files whose names begin so."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        level = self._ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if self._as_written else level.ORT_ENABLE_ALL
        if self._threads > 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile_to is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
        try:
            return self._ort.InferenceSession(
                str(self._path), options, providers=[(provider, self._settings(provider))]
            )
        except Exception as error:  # onnxruntime's errors have no common class of their own
            said = one_line(error, LONGEST_SAID)
            raise InputError(
                f"{self._path} is not an ONNX file that onnxruntime can load ({said}); extract it again"
            ) from None


def node_times(events: Sequence[dict[str, Any]], calls: int) -> Nodes:
    """The median milliseconds of each node over the last `calls` calls: [(node, operator, ms)], in order of execution.

    Args: what ONNX Runtime's profiler wrote; a call is an event too, and holds those of its nodes.
    """
    runs = [event for event in events if event["name"] == "model_run"][-calls:]
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]
    nodes.sort(key=lambda event: event["ts"])
    starts = np.array([run["ts"] for run in runs])
    took_us: dict[tuple[str, str, str], np.ndarray] = {}  # a name may stand twice, its index does not
    for event in nodes:
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if run >= 0:
            about = event["args"]
            key = event["name"].removesuffix(KERNEL), about["op_name"], about.get("node_index", "")
            took_us.setdefault(key, np.zeros(len(runs)))[run] += event["dur"]
    return [(name, op, float(np.median(each_us)) / 1e3) for (name, op, _), each_us in took_us.items()]


class OrtTensorRtEngine(OrtEngine):
    """The same through the TensorRT provider, which builds its engine for a shape at the first inference of it."""

    any_batch: ClassVar[bool] = False
    layers_on: ClassVar[tuple[str, ...]] = ()
    on_gpu: ClassVar[str] = "TensorrtExecutionProvider"

    @staticmethod
    def choose_device(device: str) -> str:
        require_gpu("--engine ort-trt", "--engine ort")
        if device == "cpu":
            raise InputError("--engine ort-trt runs on a GPU; leave --device out, or use --engine ort")
        return "cuda"

    def _settings(self, provider: str) -> dict[str, str]:
        """The file's precision and no other: this provider has to be told of fp16 and int8, and the driver of TF32."""
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        precision, timings = file_precision(self._path), user_cache() / "ort-tensorrt"
        settings = {f"trt_{precision}_enable": "True"} if precision != "fp32" else {}  # it takes no "1"
        with contextlib.suppress(OSError):  # what its kernels took is kept for the next engine, where that can be
            timings.mkdir(parents=True, exist_ok=True)
            settings |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(timings)}
        return settings

    def profile(self, images_NCHW: np.ndarray, calls: int) -> Nodes:
        raise InputError(
            "--engine ort-trt runs the network as one node and has no times of its layers; use --engine trt"
        )


def _read_precision(session: Any) -> str:
    """What the file's metadata says, as JSON; nothing if it does not."""
    said = session.get_modelmeta().custom_metadata_map.get("precision", '""')
    try:
        return str(json.loads(said))
    except (ValueError, RecursionError):  # of a file from elsewhere
        return said
