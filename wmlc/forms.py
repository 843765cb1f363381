"""The forms in which one network leaves a run: a precision and, for int8, what it shall run on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wmlc import records
from wmlc.records import FileAbout

INPUT, OUTPUT = "input", "logits"  # of every exported file
PRECISIONS = ("fp32", "fp16", "int8")
MOST_BATCH = 65_536  # images of one call, of a bench, a plan or a server
SHIPPED_ENGINES = ("ort", "trt")  # whose files `wmlc ship` takes
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


def about_of(metadata: Iterable[Any], where: Path | str, what: str) -> FileAbout:
    """What an ONNX file's metadata says under the names that are ours; each value of its entries is JSON.

    Raises `InputError`, which calls the file `where` and what it should be `what`, where that is not all of it.
    """
    known = FileAbout.__dataclass_fields__
    said = ", ".join(f"{json.dumps(entry.key)}: {entry.value}" for entry in metadata if entry.key in known)
    return records.parse(f"{{{said}}}", FileAbout, where, what, "extract it again")


def file_name_of(arch: str) -> str:
    """An architecture's name as a part of a file's: `timm:resnet18` is timm-resnet18, `net.py:make_net` make_net."""
    place, _, name = arch.rpartition(":")
    kept = f"{place}-{name}" if place in ("torchvision", "timm") else name
    return re.sub(r"[^0-9A-Za-z._-]+", "_", kept)
