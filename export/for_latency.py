"""A network that is not trained yet, as the file that would be served: only its times are looked at."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
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
    spec, network = untrained_spec(kind.arch, kind.arch_args, kind.classes, kind.input_shape), _told_apart(network)
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


def _told_apart(network: nn.Module) -> nn.Module:
    """A copy of `network` in which no two parameters are constant alike, as new biases and norms are.

    The exporter keeps one tensor for all that hold the same, which are others at other widths.
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for place, parameter in enumerate(network.parameters(), 1):
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.linspace(0, 1e-6 * place, parameter.numel()).view(parameter.shape).to(parameter))
    return network
