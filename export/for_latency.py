"""A network that is not trained yet, as the file that would be served: only its times are looked at."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from wmlc.export.precision import to_fp16, to_int8
from wmlc.export.to_onnx import write_unchecked
from wmlc.models.resizable import Resizable, untrained_spec

IMAGES = 8  # made up, that an int8 file's ranges are read off


def onnx_writer(precision: str, target: str) -> Callable[[nn.Module, Resizable, Path], None]:
    """`write_for_latency` of files in that precision for that `target`."""
    return functools.partial(write_for_latency, precision=precision, target=target)


def write_for_latency(network: nn.Module, kind: Resizable, path: Path, *, precision: str, target: str) -> None:
    """Write `network`, of this `kind`, to the ONNX file `path` in a precision (fp32, fp16, int8 for the `target`)."""
    spec = untrained_spec(kind.arch, kind.arch_args, kind.classes, kind.input_shape)
    if precision == "fp32":
        write_unchecked(network, spec, path)
        return
    images = np.random.default_rng(0).standard_normal((IMAGES, *kind.input_shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as work:
        fp32 = Path(work) / "fp32.onnx"
        write_unchecked(network, spec, fp32)
        if precision == "fp16":
            to_fp16(fp32, path, images)
        else:
            to_int8(fp32, path, images, target=target, calibrator="minmax")
