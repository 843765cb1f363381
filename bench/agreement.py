"""Whether an engine gives the logits that it should: those of torch, or of its own file as that is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmlc.accuracy import disagreement, moved_by_int8, relative_error, reordered
from wmlc.bench.engines import Engine
from wmlc.bench.engines.machine import allowed_cpus
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.worker import FOREIGN_S, Seat, Worker
from wmlc.bench.subjects import Subject
from wmlc.data import normalise


@dataclass(frozen=True)
class Agreement:
    """How far an engine's logits are `apart` from their reference's, and why that is a `failure`, if it is one."""

    apart: float  # `wmlc.accuracy.relative_error`
    failure: str | None = None
    notes: tuple[str, ...] = ()


class References:
    """The logits that networks should give for some pixels, uint8 [N, H, W, C]; each is computed once in a bench."""

    def __init__(self, pixels_NHWC: np.ndarray) -> None:
        self._pixels_NHWC = pixels_NHWC
        self._known: dict[tuple[Path, int], np.ndarray] = {}

    def by_torch(self, subject: Subject) -> np.ndarray:
        """Those of a run's network; [N, classes]."""
        assert subject.directory is not None
        key = subject.directory, 0
        if key not in self._known:
            self._known[key] = _by_torch(subject.directory, self._pixels_NHWC)
        return self._known[key]

    def as_written(self, subject: Subject, batch: int) -> np.ndarray:
        """Those that a file means, which is asked first for the images of a `batch`; [N, classes]."""
        key = subject.onnx_file, subject.batch or batch
        if key not in self._known:
            self._known[key] = _as_written(subject, self._pixels_NHWC, key[1])
        return self._known[key]


def held_against_reference(
    subject: Subject, logits_BC: np.ndarray, references: References, precision: str, batch: int
) -> Agreement:
    """Hold an engine's logits [B, classes] against torch's, or of a plan or another's file ONNX Runtime's.

    An int8 file that is further from torch than that may be is no engine's fault where the file says so itself: then
    that is a note, and its top-1 says what it costs. Args: the `references` for the same pixels; the `batch` of the
    cell.
    """
    of_network = subject.directory is not None and subject.source.suffix != ".plan"
    expected_BC = references.by_torch(subject) if of_network else references.as_written(subject, batch)
    apart = relative_error(logits_BC, expected_BC, precision)
    other = "torch" if of_network else "ONNX Runtime"
    failure = disagreement(apart, precision, other, reordered(logits_BC, expected_BC), ids=logits_BC.ndim == 1)
    if failure and of_network and precision == "int8":
        meant_BC = references.as_written(subject, batch)
        if not disagreement(relative_error(logits_BC, meant_BC, precision), precision):
            return Agreement(apart, notes=(moved_by_int8(apart),))
    return Agreement(apart, failure)


def _by_torch(directory: Path, pixels_NHWC: np.ndarray) -> np.ndarray:
    """The logits that a network of a run gives, in float32 and in torch."""
    import torch

    from wmlc.models.checkpoint import load_network, read_spec

    spec = read_spec(directory)
    with torch.inference_mode():
        images_NCHW = normalise(torch.from_numpy(pixels_NHWC), spec.mean, spec.std)
        return load_network(directory)(images_NCHW).numpy()


def _as_written(subject: Subject, pixels_NHWC: np.ndarray, batch: int) -> np.ndarray:
    """The logits that a file means, by ONNX Runtime, in a process of its own: a file may crash it or never end."""
    opener: Callable[..., Engine] = OrtEngine
    seat = Seat(
        opener=functools.partial(opener, output=subject.output, as_written=True), path=subject.onnx_file,
        feed=subject.feed, threads=len(allowed_cpus()), libraries=OrtEngine.libraries, batch=subject.batch,
        limit_s=FOREIGN_S,
    )  # fmt: skip
    with Worker(seat) as worker:
        worker.ready()
        worker.first(np.take(pixels_NHWC, range(batch), axis=0, mode="wrap"))
        return worker.logits(pixels_NHWC)
