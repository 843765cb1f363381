"""What a file shall be; defaults live only here. Free of torch, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wmlc.errors import InputError
from wmlc.forms import MOST_BATCH, PRECISIONS, SHIPPED_ENGINES, TARGETS, form_name
from wmlc.settings import option_of, setting

CALIBRATORS = ("minmax", "entropy", "percentile")
PLAN_SUFFIXES = (".plan", ".engine")
SERVERS = ("triton", "kserve", "ovms", "mlserver")
SHIP_DEVICES = ("auto", "cpu", "cuda")
UNKNOWN_TO = {"ovms": ("device", "instances", "max_batch", "queue_delay_us"), "mlserver": ("device", "instances")}
CPU_ONLY = ("ovms", "mlserver")  # whose layouts run a model on the CPU


def changed(config: ExportConfig | ShipConfig, names: Iterable[str]) -> list[str]:
    """Those of the settings `names` that are not at their default."""
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def _check_choices(config: ExportConfig | ShipConfig, allowed: Mapping[str, Sequence[str]]) -> None:
    """Each setting is one of the allowed values, and the target is only chosen for int8."""
    for name, values in (*allowed.items(), ("precision", PRECISIONS), ("target", TARGETS)):
        value = getattr(config, name)
        if value not in values and not (name == "target" and value is None):
            raise InputError(f"{option_of(config, name)} must be one of {', '.join(values)}, got {value!r}")
    if config.target and config.precision != "int8":
        raise InputError(f"--target is a choice of int8; {config.precision} files are the same for cpu and gpu")


INT8, PLANS, GATE = "int8", "TensorRT plans", "Gates"  # headings of the options


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The form in which a network leaves a run."""

    precision: str = setting("fp32", "Arithmetic inside the file; inputs stay float32.", metavar="|".join(PRECISIONS))
    with_preprocess: bool = setting(
        False, "Take uint8 pixels [N, H, W, C]; scaling and normalisation go into the file."
    )
    data_root: str | None = setting(None, "Where the run's data set lies now, if it has moved.", metavar="DIR")
    target: str | None = setting(
        None,
        "What an int8 file shall run on.",
        group=INT8,
        metavar="|".join(TARGETS),
        shown="gpu for TensorRT, else cpu",
    )
    calibration: int = setting(
        256, "Training images that tell the ranges of int8 activations.", group=INT8, metavar="N"
    )
    calibrator: str = setting("minmax", "How a range is read off them.", group=INT8, metavar="|".join(CALIBRATORS))
    max_drop: float | None = setting(  # below the same network in fp32
        None, "Write no fp16 or int8 file that loses more top-1 points; exit with 3.", group=GATE, metavar="X"
    )
    batch_range: tuple[int, int, int] = setting(
        (1, 8, 32), "Batch sizes that a plan is built for: smallest, most usual, largest.",
        group=PLANS, metavar="MIN,OPT,MAX",
    )  # fmt: skip
    version_compatible: bool = setting(False, "A plan that later TensorRT versions load too.", group=PLANS)
    hardware_compatible: bool = setting(False, "A plan that other GPUs load too (Ampere and newer).", group=PLANS)
    compare: bool = setting(
        False, "Hold the plan's layers one by one against ONNX Runtime's (polygraphy).", group=PLANS
    )

    def __post_init__(self) -> None:
        _check_choices(self, {"calibrator": CALIBRATORS})
        if self.calibration < 1:
            raise InputError(f"--calibration must be at least 1 image, got {self.calibration}")
        if self.precision != "int8" and (asked := changed(self, ("calibration", "calibrator"))):
            raise InputError(f"{option_of(self, asked[0])} is for --precision int8; {self.precision} needs no ranges")
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError(f"--max-drop must be a number of top-1 points, got {self.max_drop:g}")
        if self.max_drop is not None and self.precision == "fp32":
            raise InputError("--max-drop compares with the same network in fp32; give it with --precision fp16 or int8")
        smallest, usual, largest = self.batch_range
        if not 1 <= smallest <= usual <= largest <= MOST_BATCH:
            shown = ",".join(map(str, self.batch_range))
            raise InputError(
                f"--batch-range must be three batch sizes from 1 to {MOST_BATCH:,}, ascending, like 1,8,32; got {shown}"
            )

    @property
    def form(self) -> str:
        """Precision and, for int8, its target: fp32, fp16, int8-cpu, int8-gpu."""
        return form_name(self.precision, self.target)


MODEL, SERVED = "What is shipped", "How it is served"


@dataclass(frozen=True, kw_only=True)
class ShipConfig:
    """What a server is given, and what it must have been measured to be."""

    to: str = setting(
        "triton", "The server whose layout to write; kserve is Triton's with an InferenceService beside it.",
        metavar="|".join(SERVERS),
    )  # fmt: skip
    engine: str = setting(
        "ort", "ort ships the ONNX file, trt the TensorRT plan.", group=MODEL, metavar="|".join(SHIPPED_ENGINES)
    )
    precision: str = setting("fp32", "Which of the benched files.", group=MODEL, metavar="|".join(PRECISIONS))
    target: str | None = setting(
        None,
        "What an int8 file shall run on.",
        group=MODEL,
        metavar="|".join(TARGETS),
        shown="as benched",
    )
    with_preprocess: bool = setting(False, "Take uint8 pixels [N, H, W, C] in.", group=MODEL)
    data_root: str | None = setting(None, "Where the run's data set lies now, if it has moved.", metavar="DIR")
    ensemble: bool = setting(False, "Ship the ω-weighted ensemble of all peers too, as one model.", group=MODEL)
    replace: bool = setting(False, "Overwrite the newest version instead of adding one.", group=MODEL)
    min_top1: float | None = setting(None, "Ship nothing below X percent; exit with 3.", group=GATE, metavar="X")
    max_latency_ms: float | None = setting(
        None, "Ship nothing whose p99 in the bench is above X; exit with 3.", group=GATE, metavar="X"
    )
    device: str = setting(
        "auto", "Where the server runs it; auto: where the bench did.", group=SERVED, metavar="|".join(SHIP_DEVICES)
    )
    instances: int = setting(1, "Copies that run side by side.", group=SERVED)
    max_batch: int = setting(32, "Most images that the server puts together; MLServer counts requests.", group=SERVED)
    queue_delay_us: int = setting(500, "Longest wait for more of them, in microseconds.", group=SERVED)
    license: str | None = setting(None, "The model's license, for its manifest.", group=MODEL, metavar="SPDX")
    storage_uri: str | None = setting(
        None, "Where KServe's cluster finds DIR.", group=SERVED, metavar="URI", shown="pvc://models/NAME"
    )

    def __post_init__(self) -> None:
        _check_choices(self, {"to": SERVERS, "engine": SHIPPED_ENGINES, "device": SHIP_DEVICES})
        if self.engine == "trt" and (self.to not in ("triton", "kserve") or self.with_preprocess or self.ensemble):
            raise InputError(
                "a TensorRT plan ships to triton or kserve, without --with-preprocess and --ensemble; use --engine ort"
            )
        if self.engine == "trt" and "cpu" in (self.device, self.target):
            raise InputError("a TensorRT plan runs on a GPU; use --engine ort for the CPU")
        for name, least, most in (
            ("instances", 1, 1024),
            ("max_batch", 1, MOST_BATCH),
            ("queue_delay_us", 0, 60_000_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{option_of(self, name)} must be from {least} to {most:,}, got {getattr(self, name)}")
        if ignored := [name for name in changed(self, UNKNOWN_TO.get(self.to, ())) if getattr(self, name) != "cpu"]:
            options = ", ".join(option_of(self, name) for name in ignored)
            raise InputError(f"{options} has no place in {self.to}'s layout; leave it out, or ship to triton")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 100:
            raise InputError(f"--min-top1 must be from 0 to 100 percent, got {self.min_top1:g}")
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise InputError(f"--max-latency-ms must be above 0, got {self.max_latency_ms:g}")
        if self.max_latency_ms is not None and (self.ensemble or self.with_preprocess):
            asked = "--ensemble" if self.ensemble else "--with-preprocess"
            raise InputError(
                f"--max-latency-ms cannot hold with {asked}, a file that bench has not timed; leave one out"
            )
        if self.storage_uri and self.to != "kserve":
            raise InputError(f"--storage-uri goes with --to kserve, got --to {self.to}")

    @property
    def form(self) -> str:
        """Precision and, for int8, its target: fp32, fp16, int8-cpu, int8-gpu."""
        return form_name(self.precision, "gpu" if self.engine == "trt" else self.target)

    @property
    def suffix(self) -> str:
        return ".plan" if self.engine == "trt" else ".onnx"
