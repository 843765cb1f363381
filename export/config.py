"""What a file shall be; defaults live only here. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wmlc.errors import InputError
from wmlc.forms import PRECISIONS, TARGETS, form_name

CALIBRATORS = ("minmax", "entropy", "percentile")
PLAN_SUFFIXES = (".plan", ".engine")
SERVERS = ("triton", "kserve", "ovms", "mlserver")
SHIPPED_ENGINES = ("ort", "trt")
SHIP_DEVICES = ("auto", "cpu", "cuda")
UNKNOWN_TO = {"ovms": ("device", "instances", "queue_delay_us"), "mlserver": ("device", "instances")}


def changed(config: ExportConfig | ShipConfig, names: Iterable[str]) -> list[str]:
    """Those of the settings `names` that are not at their default."""
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def _check_choices(config: ExportConfig | ShipConfig, allowed: Mapping[str, Sequence[str]]) -> None:
    """Each setting is one of the allowed values, and the target is only chosen for int8."""
    for name, values in (*allowed.items(), ("precision", PRECISIONS), ("target", TARGETS)):
        value = getattr(config, name)
        if value not in values and not (name == "target" and value is None):
            raise InputError(f"{name} must be one of {', '.join(values)}, got {value!r}")
    if config.target and config.precision != "int8":
        raise InputError(f"target is a choice of int8; {config.precision} files are the same for cpu and gpu")


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
    compare: bool = False  # a plan's layers against ONNX Runtime's, one by one

    def __post_init__(self) -> None:
        _check_choices(self, {"calibrator": CALIBRATORS})
        if self.calibration < 1:
            raise InputError(f"calibration must be at least 1 image, got {self.calibration}")
        if self.precision != "int8" and changed(self, ("calibration", "calibrator")):
            raise InputError(f"calibration is a part of int8; {self.precision} needs none, so leave it out")
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


@dataclass(frozen=True, kw_only=True)
class ShipConfig:
    """What a server is given, and what it must have been measured to be."""

    to: str = "triton"
    engine: str = "ort"  # ort ships the ONNX file, trt the TensorRT plan
    precision: str = "fp32"
    target: str | None = None  # of int8
    with_preprocess: bool = False  # uint8 [N, H, W, C] pixels in
    ensemble: bool = False  # the ω-weighted ensemble of all peers too
    replace: bool = False  # overwrite the newest version instead of adding one
    min_top1: float | None = None  # gate: percent
    max_latency_ms: float | None = None  # gate: p99 of the bench at its smallest batch
    device: str = "auto"  # where the server runs it; auto: where the bench did
    instances: int = 1  # copies that the server runs side by side
    max_batch: int = 32  # most images that the server puts together
    queue_delay_us: int = 500  # longest wait for more of them
    license: str | None = None  # SPDX name, for the manifest
    storage_uri: str | None = None  # kserve only: where the cluster finds the repository

    def __post_init__(self) -> None:
        _check_choices(self, {"to": SERVERS, "engine": SHIPPED_ENGINES, "device": SHIP_DEVICES})
        if self.engine == "trt" and (self.to not in ("triton", "kserve") or self.with_preprocess or self.ensemble):
            raise InputError(
                "a TensorRT plan ships to triton or kserve, without --with-preprocess and --ensemble; use --engine ort"
            )
        if self.engine == "trt" and "cpu" in (self.device, self.target):
            raise InputError("a TensorRT plan runs on a GPU; use --engine ort for the CPU")
        for name, least, most in (("instances", 1, 1024), ("max_batch", 1, 65536), ("queue_delay_us", 0, 60_000_000)):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} must be from {least} to {most:,}, got {getattr(self, name)}")
        if ignored := [name for name in changed(self, UNKNOWN_TO.get(self.to, ())) if getattr(self, name) != "cpu"]:
            raise InputError(
                f"{', '.join(ignored)} has no place in {self.to}'s layout; leave it out, or ship to triton"
            )
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 100:
            raise InputError(f"min_top1 must be from 0 to 100 percent, got {self.min_top1:g}")
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise InputError(f"max_latency_ms must be above 0, got {self.max_latency_ms:g}")
        if self.max_latency_ms is not None and (self.ensemble or self.with_preprocess):
            asked = "ensemble" if self.ensemble else "with_preprocess"
            raise InputError(f"max_latency_ms cannot hold with {asked}, a file that bench has not timed; leave one out")
        if self.storage_uri and self.to != "kserve":
            raise InputError(f"storage_uri goes with --to kserve, got --to {self.to}")

    @property
    def form(self) -> str:
        """Precision and, for int8, its target: fp32, fp16, int8-cpu, int8-gpu."""
        return form_name(self.precision, "gpu" if self.engine == "trt" else self.target)

    @property
    def suffix(self) -> str:
        return ".plan" if self.engine == "trt" else ".onnx"
