"""What a latency table may be asked for. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wmlc.bench.config import DEVICES, check_sizes
from wmlc.bench.engines import ENGINES, NETWORK, engine_class, on_gpu
from wmlc.bench.engines.machine import allowed_cpus
from wmlc.errors import InputError
from wmlc.forms import MOST_BATCH, PRECISIONS
from wmlc.settings import option_of, setting

MEASURED, MEASURED_OF = "Where it is measured", "The network"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network that a table is of."""

    arch: str = setting(
        "resnet20", "As in 'wmlc train': built in, torchvision:NAME, timm:NAME, FILE.py:FACTORY.", group=MEASURED_OF
    )
    arch_args: str = setting(
        "", "Arguments for its constructor, if it is not built in.", group=MEASURED_OF, metavar="KEY=V,KEY=V"
    )
    image_size: int = setting(224, "Image side in pixels.", group=MEASURED_OF)
    classes: int = setting(1000, "Outputs of its last layer.", group=MEASURED_OF)
    divisor: int = setting(8, "Widths are multiples of this.", group=MEASURED_OF)

    def __post_init__(self) -> None:
        for name in ("image_size", "classes", "divisor"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{option_of(self, name)} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """The engine that a latency belongs to, and how it is asked; `InputError` for what cannot be on this machine."""

    engine: str = setting(
        "ort", "What shall run the networks: ort, openvino, torch, torch-compile, ort-trt, trt.", group=MEASURED
    )
    precision: str = setting("fp32", "Arithmetic in the files: fp32, fp16 or int8.", group=MEASURED)
    threads: int = setting(1, "CPU threads of the engine, pinned.", group=MEASURED, metavar="T")
    batch: int = setting(1, "Images a call.", group=MEASURED, metavar="B")
    device: str = setting("auto", "Where the engine runs.", group=MEASURED, metavar="auto|cpu|cuda")
    seconds: float = setting(
        120.0, "Stop after so many, though intervals are not narrow yet; all widths are measured three times at least.",
        group=MEASURED, metavar="S",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("engine", self.engine, tuple(ENGINES)), ("precision", self.precision, PRECISIONS),
            ("device", self.device, DEVICES),
        ):  # fmt: skip
            if value not in allowed:
                raise InputError(f"--{name} must be one of {', '.join(allowed)}, got {value!r}")
        if engine_class(self.engine).takes == NETWORK and self.precision != "fp32":
            raise InputError(
                f"the engine {self.engine} runs networks as they are trained, in fp32, and not in {self.precision}"
            )
        cpus = len(allowed_cpus())
        check_sizes("--threads", [self.threads], cpus, f"the {cpus} CPUs there are")
        check_sizes("--batch", [self.batch], MOST_BATCH, f"{MOST_BATCH:,} images")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"--seconds must be above 0, got {self.seconds:g}")

    @property
    def int8_target(self) -> str:
        """What int8 files are made for. Raises `InputError` where the engine cannot run here."""
        return "gpu" if on_gpu([self.engine], self.device) else "cpu"
