"""What a file shall be; defaults live only here. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wmlc.errors import InputError
from wmlc.forms import PRECISIONS, TARGETS, form_name

CALIBRATORS = ("minmax", "entropy", "percentile")
PLAN_SUFFIXES = (".plan", ".engine")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The form in which a network leaves a run."""

    precision: str = "fp32"
    target: str | None = None  # of int8; None: gpu for a TensorRT plan, else cpu
    calibration: int = 256  # training images that tell the ranges of activations in int8
    calibrator: str = "minmax"  # how a range is read off them
    with_preprocess: bool = False  # uint8 [N, H, W, C] pixels in, scaled and normalised inside the file
    max_drop: float | None = None  # gate: top-1 points below the same network in fp32
    batch_range: tuple[int, int, int] = (1, 8, 32)  # smallest, most usual and largest batch of a plan
    version_compatible: bool = False  # a plan that later TensorRT versions load too
    hardware_compatible: bool = False  # a plan that other GPUs (Ampere and newer) load too

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("precision", self.precision, PRECISIONS),
            ("target", self.target or TARGETS[0], TARGETS),
            ("calibrator", self.calibrator, CALIBRATORS),
        ):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.target and self.precision != "int8":
            raise InputError(f"target is a choice of int8; {self.precision} files are the same for cpu and gpu")
        if self.calibration < 1:
            raise InputError(f"calibration must be at least 1 image, got {self.calibration}")
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError(f"max_drop must be a number of top-1 points, got {self.max_drop:g}")
        if self.max_drop is not None and self.precision == "fp32":
            raise InputError("max_drop compares with the same network in fp32; give it with precision fp16 or int8")
        smallest, usual, largest = self.batch_range
        if not 1 <= smallest <= usual <= largest:
            shown = ",".join(map(str, self.batch_range))
            raise InputError(
                f"batch_range must be three batch sizes of at least 1, ascending, like 1,8,32; got {shown}"
            )

    @property
    def form(self) -> str:
        """Precision and, for int8, its target: fp32, fp16, int8-cpu, int8-gpu."""
        return form_name(self.precision, self.target)
