"""All that a bench depends on; defaults live only here. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wmlc.bench.machine import allowed_cpus
from wmlc.errors import InputError

ENGINE_NAMES = ("torch", "ort", "trt")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The settings of one bench, as `bench.json` records them."""

    engine: str = "ort"
    batches: tuple[int, ...] = (1,)  # images a call
    threads: int = 1  # CPU threads of each engine
    device: str = "auto"
    seconds: float = 3.0  # timed per network and batch, and longer where that gives fewer than 100 calls
    seed: int = 0  # of the order of the bursts and of the bootstrap
    max_drop: float | None = None  # gate: top-1 points below the baseline
    min_speedup: float | None = None  # gate: times as fast as the baseline
    accuracy: bool = True  # top-1 on the whole test set through the engine

    def __post_init__(self) -> None:
        if self.engine not in ENGINE_NAMES:
            raise InputError(f"there is no engine {self.engine!r}; choose one of {', '.join(ENGINE_NAMES)}")
        if self.device not in DEVICES:
            raise InputError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
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
