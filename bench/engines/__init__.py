"""The engines there are, one file each, behind two methods: `infer` and `close`.

To add one, write its file and its line in `ENGINES`. What an engine can do beyond the two methods stands in its class,
as a method or as None. An engine's libraries are imported when it is opened, so that ONNX Runtime is timed without
torch beside it; this file is free of them all, so that `--help` is quick. Threads never spin while they wait, as an
idle engine's would take the CPU of the one that is timed.

N images, C channels or classes, H height, W width
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from wmlc.errors import InputError

if TYPE_CHECKING:
    import numpy as np

ENGINES = {  # name → file in this room and class
    "torch": "torch_engine.TorchEngine",
    "torch-compile": "torch_engine.CompiledEngine",
    "ort": "ort_engine.OrtEngine",
    "ort-trt": "ort_engine.OrtTensorRtEngine",
    "openvino": "openvino_engine.OpenVinoEngine",
    "trt": "trt_engine.TrtEngine",
}
PACKAGES = {  # whose version an engine's times belong to, the first that is installed
    "torch": ("torch",),
    "torch-compile": ("torch",),
    "ort": ("onnxruntime-gpu", "onnxruntime"),
    "ort-trt": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "trt": ("tensorrt",),
}
Nodes = list[tuple[str, str, float]]  # (node, operator, milliseconds), in order of execution
NETWORK, ONNX, PLAN = "network", "onnx", "plan"  # what an engine opens: a network's directory, an ONNX file, a plan


CALLS_BEFORE = 10  # a profile, whose first calls are slow
LONGEST_SAID = 300  # letters of what a library says that stand in a message


class Engine(Protocol):
    """A loaded network; `provider` is what really computes, `precision` what it computes in ("" if it can't tell)."""

    takes: ClassVar[str]  # NETWORK, ONNX or PLAN
    libraries: ClassVar[tuple[str, ...]]  # what opening it imports; a process may import them sooner
    any_batch: ClassVar[bool]  # that it runs one batch size after another without building something anew
    layers_on: ClassVar[tuple[str, ...]]  # devices on which it has times of its layers
    provider: str
    precision: str

    def __init__(self, path: Path, threads: int, device: str) -> None:
        """Open what is at `path`; `device` is "cpu" or "cuda"."""

    @staticmethod
    def choose_device(device: str) -> str:
        """ "cpu" or "cuda" for "auto", "cpu" or "cuda"; `InputError` naming what is missing, and nothing instead."""

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        """Images [N, C, H, W], as the network takes them -> float32 logits [N, C], in host memory on return."""

    def close(self) -> None:
        """Free what the engine holds."""

    @property
    def time_call(self) -> Callable[[np.ndarray], float] | None:
        """The milliseconds of one `infer` by a clock of the engine's own (CUDA events); None: it has none."""

    @property
    def time_compute(self) -> Callable[[np.ndarray], float] | None:
        """The same without the transfers; None: it cannot tell them apart."""

    @property
    def profile(self) -> Callable[[np.ndarray, int], Nodes] | None:
        """The milliseconds of each node over so many calls; None: it cannot tell."""


def engine_class(name: str) -> type[Engine]:
    """The class of the engine called `name` in `ENGINES`."""
    module, kind = ENGINES[name].split(".")
    found: type[Engine] = getattr(importlib.import_module(f"wmlc.bench.engines.{module}"), kind)
    return found


def tells_layers(engine: str, device: str) -> bool:
    """Whether an engine has times of its layers: ONNX Runtime has none on a GPU, and what compiles none at all."""
    return device in engine_class(engine).layers_on


def on_gpu(engines: Sequence[str], device: str) -> bool:
    """Whether one of these engines will run on a GPU. Raises `InputError` for one that cannot run here at all."""
    return any(engine_class(name).choose_device(device) == "cuda" for name in engines)


def check_one_input(count: int, path: Path) -> None:
    """Raise `InputError` where a file does not take images and nothing else."""
    if count != 1:
        raise InputError(f"{path} takes {count} inputs; bench needs a classifier with one, its images")
