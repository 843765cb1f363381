"""What a TensorRT plan belongs to: the record beside it, this machine, and whether the two go together.

Neither torch nor tensorrt is imported with this file, and tensorrt never before torch has seen a GPU and its driver:
without them its native code ends the process instead of raising.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import new_file, read_json, sha256

OLDEST = (10, 3)  # whose interface has all that is used here; pyproject.toml says the same
NEXT_MAJOR = {8: 10, 10: 11}  # whose version-compatible plans a major version loads besides its own
AMPERE = (8, 0)  # the oldest compute capability of hardware-compatible plans
USUAL_LARGEST = 32
AGAIN = "build it again with 'wmlc extract … --force'"

MOST_MESSAGES, LONGEST_MESSAGE = 6, 400  # of TensorRT's, in an error that has to fit into one line

_MACHINE = ("tensorrt", "cuda", "driver", "gpu", "compute_capability")
_FIELDS = {
    *_MACHINE, "batch_range", "precision", "network", "onnx_sha256", "version_compatible", "hardware_compatible",
    "plan_sha256", "plan_bytes",
}  # fmt: skip
_PROC_VERSION = Path("/proc/driver/nvidia/version")
_ABOUT_LOGGERS = "logger passed into createInfer"  # a warning about the process, not about a network
_DIGEST_BYTES = 32  # before kept timings, so that TensorRT never sees damaged ones


def require_gpu(purpose: str, instead: str = "") -> None:
    """Raise `InputError` where torch sees no GPU. Args: what to do `instead`, where there is something."""
    import torch

    if not torch.cuda.is_available():
        _refuse(purpose, "an NVIDIA GPU and its driver, and torch sees none", "use a GPU machine", instead)


def require_tensorrt(purpose: str, instead: str = "") -> None:
    """Raise `InputError` naming the first that `purpose` lacks: a GPU with its driver, then the package tensorrt.

    Args: what to do `instead`, where there is something ("--engine ort").
    """
    require_gpu(purpose, instead)
    if importlib.util.find_spec("tensorrt") is None:
        lacks = "the package tensorrt, which is not installed (pip install 'wmlc[trt]')"
        _refuse(purpose, lacks, "install it", instead)


def _refuse(purpose: str, lacks: str, remedy: str, instead: str) -> None:
    raise InputError(f"{purpose} needs {lacks}; {remedy}" + (f", or use {instead}" if instead else ""))


def load_tensorrt(purpose: str, instead: str = "") -> Any:
    """The module tensorrt, after `require_tensorrt`; `InputError` where it cannot be loaded or is too old."""
    require_tensorrt(purpose, instead)
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{purpose} needs tensorrt, which is installed but does not load ({said}); pip install 'wmlc[trt]' again"
        ) from None
    if version_numbers(trt.__version__)[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"{purpose} needs TensorRT {oldest} or newer, here is {trt.__version__}; upgrade tensorrt")
    return trt


def this_machine() -> dict[str, str | None]:
    """Versions of TensorRT, CUDA (torch's) and driver, name and compute capability of the GPU; needs all of them."""
    trt = load_tensorrt("a TensorRT plan")
    import torch

    return {
        "tensorrt": trt.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "gpu": torch.cuda.get_device_name(0),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
    }


def record_path(plan: Path) -> Path:
    """Where a plan's record lies: r50_p05.plan → r50_p05.plan.json."""
    return plan.with_name(plan.name + ".json")


def read_record(plan: Path) -> dict[str, Any]:
    """The record of a plan that is whole; `InputError` where either is missing, damaged or not the other's."""
    if not plan.is_file():
        raise InputError(f"{plan} is not a file; build it with 'wmlc extract … --out {plan}'")
    beside = record_path(plan)
    record = read_json(beside, "record of a plan", AGAIN)
    if missing := _FIELDS - record.keys():
        raise InputError(f"{beside} is not a record of a plan: it lacks {', '.join(sorted(missing))}; {AGAIN}")
    size = plan.stat().st_size
    if size < record["plan_bytes"]:
        raise InputError(f"{plan} is truncated: {size:,} of {record['plan_bytes']:,} bytes; {AGAIN}")
    if sha256(plan) != record["plan_sha256"]:
        raise InputError(f"{plan} is not the plan that {beside.name} describes (their hashes differ); {AGAIN}")
    return record


def check_record(record: Mapping[str, Any], machine: Mapping[str, Any], plan: Path | str = "the plan") -> None:
    """Raise one `InputError` that lists all that differs, where a plan does not belong to this `machine`.

    A plan belongs to one TensorRT version and one model of GPU, and to no older driver than it was built with. If
    built version-compatible, later versions of the same major and the next one load it (8 → 10, 10 → 11); if
    hardware-compatible, every GPU from Ampere (compute capability 8.0) on. Another CUDA alone is no obstacle.
    """
    if (
        _version_fits(record["tensorrt"], machine["tensorrt"], record["version_compatible"])
        and _gpu_fits(record, machine, record["hardware_compatible"])
        and not _is_older(machine["driver"], record["driver"])
    ):
        return
    built, here = _described(record), _described(machine)
    differing = [name for name in built if built[name] != here[name]]
    were, are = (", ".join(facts[name] for name in differing) for facts in (built, here))
    raise InputError(f"{plan} was built with {were}; here {'are' if len(differing) > 1 else 'is'} {are}; {AGAIN}")


def is_current(plan: Path, onnx_sha256: str, batches: Sequence[int], machine: Mapping[str, Any]) -> bool:
    """Whether `plan` is whole, made of that ONNX file, for this `machine` and these batches, tuned for the first."""
    try:
        record = read_record(plan)
        check_record(record, machine)
    except InputError:
        return False
    smallest, usual, largest = record["batch_range"]
    fits = smallest <= min(batches) and max(batches) <= largest and usual == batches[0]
    return fits and record["onnx_sha256"] == onnx_sha256


def range_for(batches: Sequence[int]) -> tuple[int, int, int]:
    """The batch range of a plan that is to be timed at `batches`, the first of them the usual one."""
    return 1, batches[0], max(*batches, USUAL_LARGEST)


def timings_file(machine: Mapping[str, Any], directory: Path | None = None) -> Path:
    """Where builds on this `machine` keep the timings of kernels, one file a TensorRT version and model of GPU.

    In `directory`, by default `wmlc` in $XDG_CACHE_HOME or ~/.cache.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    directory = directory or (base if base.is_absolute() else Path.home() / ".cache") / "wmlc"
    parts = ("tensorrt", machine["tensorrt"], machine["gpu"], machine["compute_capability"])
    return directory / (re.sub(r"[^\w.-]+", "-", "-".join(map(str, parts))) + ".timings")


def read_timings(file: Path) -> bytes:
    """The timings kept in `file`; none where there is no such file and, with a word, where it is damaged."""
    if not file.is_file():
        return b""
    content = file.read_bytes()
    digest, timings = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(timings).digest() == digest:
        return timings
    note(f"the kept timings {file} are damaged; starting anew")
    return b""


def keep_timings(file: Path, timings: bytes) -> None:
    """Write `timings` to `file` for the next build; where that fails, a word: the plan is none the worse."""
    try:
        with new_file(file) as aside:
            aside.write_bytes(hashlib.sha256(timings).digest() + timings)
    except (InputError, OSError) as error:
        note(f"timings are not kept for the next build: {error}")


def make_logger(trt: Any) -> Any:
    """A logger for `trt`, the module tensorrt, that prints nothing and keeps what is at least a warning."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: list[tuple[int, str]] = []  # severity (0 is the worst) and text

        def log(self, severity: Any, text: str) -> None:
            message = (int(severity), short(text))
            worth = message[0] <= int(trt.ILogger.Severity.WARNING) and _ABOUT_LOGGERS not in text
            if worth and message not in self.kept:
                self.kept.append(message)

        def words(self) -> str:
            """What was said, errors first."""
            worst_first = sorted(self.kept, key=lambda message: message[0])
            return "; ".join(text for _, text in worst_first[:MOST_MESSAGES]) or "it gave no reason"

    return Messages()


def short(text: str) -> str:
    """`text` in one line of at most 400 characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def version_numbers(version: str | None) -> tuple[int, ...]:
    """The numbers in a version, for comparing: "10.16.1.11" → (10, 16, 1, 11); none for None."""
    return tuple(map(int, re.findall(r"\d+", version or "")))


def _version_fits(built: str, here: str, compatible: bool) -> bool:
    if built == here:
        return True
    was, now = version_numbers(built), version_numbers(here)
    return compatible and (now > was if now[0] == was[0] else NEXT_MAJOR.get(was[0]) == now[0])


def _gpu_fits(record: Mapping[str, Any], machine: Mapping[str, Any], compatible: bool) -> bool:
    if all(record[name] == machine[name] for name in ("gpu", "compute_capability")):
        return True
    return compatible and all(version_numbers(facts["compute_capability"]) >= AMPERE for facts in (record, machine))


def _is_older(here: str | None, built: str | None) -> bool:
    """Of drivers; where one is not known, it is not."""
    return bool(here and built) and version_numbers(here) < version_numbers(built)


def _described(facts: Mapping[str, Any]) -> dict[str, str]:
    return {
        "tensorrt": f"TensorRT {facts['tensorrt']}",
        "gpu": f"{facts['gpu']} ({facts['compute_capability']})",
        "cuda": f"CUDA {facts['cuda']}",
        "driver": f"driver {facts['driver']}",
    }


def _driver() -> str | None:
    """The NVIDIA driver's version, as nvidia-smi or the kernel module tells it; None where neither does."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        said = _PROC_VERSION.read_text(encoding="utf-8") if _PROC_VERSION.exists() else ""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", said)
    return found.group() if found else None
