"""All that a bench depends on; defaults live only here. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wmlc.bench.machine import allowed_cpus
from wmlc.errors import InputError
from wmlc.forms import PRECISIONS, TARGETS

ENGINE_NAMES = ("torch", "ort", "trt")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The settings of one bench, as `bench.json` records them."""

    engine: str = "ort"
    precisions: tuple[str, ...] = ("fp32",)  # all are compared with the baseline in the first of them
    target: str | None = None  # of int8; None: gpu where the bench runs on one through TensorRT, else cpu
    batches: tuple[int, ...] = (1,)  # images a call
    threads: int = 1  # CPU threads of each engine
    device: str = "auto"
    seconds: float = 3.0  # timed per network and batch, and longer where that gives fewer than 100 calls
    seed: int = 0  # of the order of the bursts and of the bootstrap
    max_drop: float | None = None  # gate: top-1 points below the baseline
    min_speedup: float | None = None  # gate: times as fast as the baseline
    accuracy: bool = True  # top-1 on the whole test set through the engine
    cuda_graph: bool = True  # TensorRT replays one recorded graph a batch size

    def __post_init__(self) -> None:
        if self.engine not in ENGINE_NAMES:
            raise InputError(f"there is no engine {self.engine!r}; choose one of {', '.join(ENGINE_NAMES)}")
        if self.device not in DEVICES:
            raise InputError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown or not self.precisions or len(set(self.precisions)) < len(self.precisions):
            got = ",".join(self.precisions) or "none"
            raise InputError(f"precision must name some of {', '.join(PRECISIONS)}, each once; got {got}")
        if self.engine == "torch" and self.precisions != ("fp32",):
            raise InputError("the engine torch runs a peer as it was trained, in fp32; use --engine ort for others")
        if self.target is not None and (self.target not in TARGETS or "int8" not in self.precisions):
            raise InputError(f"target is {' or '.join(TARGETS)}, and only of precision int8; got {self.target!r}")
        if not self.cuda_graph and self.engine != "trt":
            raise InputError(f"cuda_graph is a choice of the engine trt, got no graph for {self.engine}; leave it out")
        if self.engine == "trt" and "cpu" in (self.device, self.target):
            raise InputError("the engine trt runs on a GPU; leave --device and --target out, or use --engine ort")
        if not self.batches or min(self.batches) < 1:
            raise InputError(f"batch must be at least 1, got {','.join(map(str, self.batches)) or 'none'}")
        if len(set(self.batches)) < len(self.batches):
            raise InputError(f"batch must name each size once, got {','.join(map(str, self.batches))}")
        most = len(allowed_cpus())
        if not 1 <= self.threads <= most:
            raise InputError(f"threads must be from 1 to the {most} CPUs there are, got {self.threads}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"seconds must be above 0, got {self.seconds:g}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError(f"max_drop must be a number of top-1 points, got {self.max_drop:g}")
        if self.min_speedup is not None and not (math.isfinite(self.min_speedup) and self.min_speedup > 0):
            raise InputError(f"min_speedup must be above 0, got {self.min_speedup:g}")
