"""What it takes to run TensorRT here, and which machine this is: versions, driver and GPU.

Neither torch nor tensorrt is imported with this file, and tensorrt never before torch has seen a GPU and its driver:
without them its native code ends the process instead of raising.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

from wmlc.errors import InputError, one_line
from wmlc.records import Machine

OLDEST = (10, 3)  # whose interface has all that is used here; pyproject.toml says the same
AMPERE = (8, 0)  # the oldest compute capability of hardware-compatible plans
MOST_MESSAGES = 6  # of TensorRT's, in an error that has to fit into one line

_PROC_VERSION = Path("/proc/driver/nvidia/version")
_ABOUT_LOGGERS = "logger passed into createInfer"  # a warning about the process, not about a network


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
        said = one_line(error, None)
        raise InputError(
            f"{purpose} needs tensorrt, which is installed but does not load ({said}); pip install 'wmlc[trt]' again"
        ) from None
    if version_numbers(trt.__version__)[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"{purpose} needs TensorRT {oldest} or newer, here is {trt.__version__}; upgrade tensorrt")
    return trt


def this_machine() -> Machine:
    """Versions of TensorRT, CUDA (torch's) and driver, name and compute capability of the GPU; needs all of them."""
    trt = load_tensorrt("a TensorRT plan")
    import torch

    return Machine(
        tensorrt=trt.__version__,
        cuda=torch.version.cuda,
        driver=_driver(),
        gpu=torch.cuda.get_device_name(0),
        compute_capability=".".join(map(str, torch.cuda.get_device_capability(0))),
    )


def make_logger(trt: Any) -> Any:
    """A logger for `trt`, the module tensorrt, that prints nothing and keeps what is at least a warning."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: list[tuple[int, str]] = []  # severity (0 is the worst) and text

        def log(self, severity: Any, text: str) -> None:
            message = (int(severity), one_line(text))
            worth = message[0] <= int(trt.ILogger.Severity.WARNING) and _ABOUT_LOGGERS not in text
            if worth and message not in self.kept:
                self.kept.append(message)

        def words(self) -> str:
            """What was said, errors first."""
            worst_first = sorted(self.kept, key=lambda message: message[0])
            return "; ".join(text for _, text in worst_first[:MOST_MESSAGES]) or "it gave no reason"

    return Messages()


def version_numbers(version: str | None) -> tuple[int, ...]:
    """The numbers in a version, for comparing: "10.16.1.11" → (10, 16, 1, 11); none for None."""
    return tuple(map(int, re.findall(r"\d+", version or "")))


def _driver() -> str | None:
    """The NVIDIA driver's version, as the kernel module or nvidia-smi tells it; None where neither does."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        if _PROC_VERSION.exists():
            said = _PROC_VERSION.read_text(encoding="utf-8")
        else:
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", said)
    return found.group() if found else None
