"""An ONNX file in OpenVINO on the CPU, the first choice on Intel's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

import numpy as np

from wmlc.bench.engines import CALLS_BEFORE, LONGEST_SAID, ONNX, Nodes
from wmlc.errors import InputError, one_line


class OpenVinoEngine:
    """An ONNX file, one inference at a time; float networks are computed in fp32, as their files say, never in bf16.

    Raises `InputError` for a file that OpenVINO cannot load.
    """

    takes: ClassVar[str] = ONNX
    libraries: ClassVar[tuple[str, ...]] = ("openvino",)
    any_batch: ClassVar[bool] = True
    layers_on: ClassVar[tuple[str, ...]] = ("cpu",)
    precision = ""
    time_call = time_compute = None

    @staticmethod
    def choose_device(device: str) -> str:
        if device == "cuda":
            raise InputError("--engine openvino runs on the CPU; leave --device out, or use --engine ort")
        if importlib.util.find_spec("openvino") is None:
            raise InputError(
                "--engine openvino needs the package openvino, which is not installed (pip install 'wmlc[openvino]'); "
                "install it, or use --engine ort"
            )
        return "cpu"

    def __init__(self, path: Path, threads: int, device: str, *, output: str | None = None) -> None:
        """Args: the name of the output that counts, of a file of unknown origin."""
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": "NO",  # this process is pinned already
        }  # fmt: skip
        self._openvino, self._path, self._settings = openvino, path, settings
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise InputError(f"{path} is not a file that OpenVINO can load ({one_line(error, LONGEST_SAID)})") from None
        self._request = self._compiled.create_infer_request()
        self._output = self._compiled.output(output) if output else 0
        self.provider = f"OpenVINO {openvino.__version__.split('-')[0]} CPU"

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        return self._request.infer([images_NCHW], share_inputs=True)[self._output]

    def profile(self, images_NCHW: np.ndarray, calls: int) -> Nodes:
        """The mean milliseconds over `calls` calls of each node that runs, in order: [(file's nodes, operator, ms)].

        OpenVINO's counters tell no more than the mean of all calls so far, in whole microseconds: that of the first
        calls is taken off. A node is called by all of the file's that were fused into it.
        """
        core = self._openvino.Core()
        compiled = core.compile_model(str(self._path), "CPU", {**self._settings, "PERF_COUNT": "YES"})
        request, means_us = compiled.create_infer_request(), list[dict[str, float]]()
        for more in (CALLS_BEFORE, calls):
            for _ in range(more):
                request.infer([images_NCHW], share_inputs=True)
            ran = [node for node in request.profiling_info if node.status == node.Status.EXECUTED]
            means_us.append({node.node_name: 1e6 * node.real_time.total_seconds() for node in ran})
        # by name: one that took less than a microsecond so far counts as not executed
        first_us, all_us = (np.array([each.get(node.node_name, 0.0) for node in ran]) for each in means_us)
        took_ms = np.maximum((CALLS_BEFORE + calls) * all_us - CALLS_BEFORE * first_us, 0) / calls / 1e3
        origins = {
            node.get_friendly_name(): str(node.get_rt_info()["originalLayersNames"].astype(str))
            for node in compiled.get_runtime_model().get_ordered_ops()
        }
        return [
            (origins.get(node.node_name) or node.node_name, node.node_type, float(ms))
            for node, ms in zip(ran, took_ms, strict=True)
        ]

    def close(self) -> None:
        del self._request, self._compiled
