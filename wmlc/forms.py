"""The forms in which one network leaves a run: a precision and, for int8, what it shall run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INPUT, OUTPUT = "input", "logits"  # of every exported file
PRECISIONS = ("fp32", "fp16", "int8")
MOST_BATCH = 65_536  # images of one call, of a bench, a plan or a server
TARGETS = ("cpu", "gpu")  # of int8 only, as the two want different Q/DQ


def form_name(precision: str, target: str | None) -> str:
    """As file names carry it: fp32, fp16, int8-cpu, int8-gpu."""
    return f"int8-{target or 'cpu'}" if precision == "int8" else precision


def open_as_written(onnx_file: Path) -> Any:
    """An ONNX Runtime session on the CPU that runs every node as it stands: Q/DQ in float, nothing fused.

    That is what an int8 file means; the CPU's fused int8 kernels clip 8-bit weights where a GPU's do not.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
