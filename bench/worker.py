"""An engine in a process of its own: loaded, pinned and timed there, so that no engine disturbs another.

The clock runs inside the process, around `infer`; what goes through the pipe is never timed.

N images, C channels or classes, H height, W width
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from wmlc.bench import measure
from wmlc.bench.engines import Engine, one_line
from wmlc.errors import EngineFailed, InputError

TIMEOUT_S = 600.0  # for one answer; the longest are a batch of logits, and a burst of at least one call


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What an engine's process is given: the network, and its place on the machine."""

    opener: Callable[[Path, int, str], Engine]
    path: Path
    mean: Sequence[float]  # per channel, of pixels in 0..1
    std: Sequence[float]
    threads: int = 1
    device: str = "cpu"
    cpus: Sequence[int] | None = None  # to pin to; None where the system cannot
    libraries: Sequence[str] = ()  # to import before that


class Worker:
    """The parent's end of one engine's process; a context manager that ends it.

    All methods raise `EngineFailed` where the process crashed, gave no answer in time or its engine
    raised, and `InputError` where its file is at fault.
    """

    def __init__(self, seat: Seat, timeout_s: float = TIMEOUT_S) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take over this process's torch
        self._timeout_s = timeout_s
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, seat), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def ready(self) -> tuple[str, str]:
        """Wait until the engine is loaded, once: (provider, precision)."""
        return self._receive()

    def warm_up(self, pixels_NHWC: np.ndarray, most_s: float) -> measure.WarmUp:
        """Take uint8 [N, H, W, C] as the images to be timed on, and run them until the times settle."""
        return self._ask("warm_up", pixels_NHWC, most_s)

    def burst(self, calls: int) -> np.ndarray:
        """The milliseconds of each of `calls` calls, after one that is not timed; `warm_up` comes first."""
        return self._ask("burst", calls)

    def compute_times(self, calls: int) -> np.ndarray | None:
        """The milliseconds of each of `calls` calls without its transfers; None if the engine cannot tell."""
        return self._ask("compute_times", calls)

    def logits(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, C]."""
        return self._ask("logits", pixels_NHWC)

    def _ask(self, *command: Any) -> Any:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_receive` tells why
            self._pipe.send(command)
        return self._receive()

    def _receive(self) -> Any:
        if not wait([self._pipe, self._process.sentinel], self._timeout_s):
            self._process.kill()
            raise EngineFailed(f"its engine gave no answer in {self._timeout_s:g} s and was ended")
        try:
            answer = self._pipe.recv() if self._pipe.poll() else None
        except (EOFError, ConnectionResetError):
            answer = None
        if answer is None:
            self._process.join()
            raise EngineFailed(f"its engine's process ended ({_end(self._process.exitcode)})")
        error, value = answer
        if error is not None:
            raise error
        return value


def _serve(pipe: Connection, seat: Seat) -> None:
    """The life of an engine's process: load, then answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    os.environ["OMP_WAIT_POLICY"] = "passive"  # see engines.py; read once, when torch is imported
    try:
        for library in seat.libraries:  # on any CPU, so that all engines' processes do it at once
            importlib.import_module(library)
        if seat.cpus is not None:
            os.sched_setaffinity(0, seat.cpus)  # before the engine starts its threads, which inherit it
        engine = seat.opener(seat.path, seat.threads, seat.device)
    except Exception as error:
        pipe.send((_portable(error), None))
        return
    pipe.send((None, (engine.provider, engine.precision)))
    bench = _Bench(engine, seat)
    with contextlib.suppress(EOFError), contextlib.closing(engine):
        while True:
            name, *args = pipe.recv()
            try:
                pipe.send((None, getattr(bench, name)(*args)))
            except Exception as error:  # whatever it is, the parent shall say it in one line
                pipe.send((_portable(error), None))


class _Bench:
    """What a process answers: the methods of `Worker`, on this side of the pipe."""

    def __init__(self, engine: Engine, seat: Seat) -> None:
        self.engine, self.mean, self.std = engine, seat.mean, seat.std
        self.images_NCHW: np.ndarray | None = None

    def warm_up(self, pixels_NHWC: np.ndarray, most_s: float) -> measure.WarmUp:
        self.images_NCHW = normalise(pixels_NHWC, self.mean, self.std)
        return measure.warm_up(self.engine, self.images_NCHW, most_s)

    def burst(self, calls: int) -> np.ndarray:
        assert self.images_NCHW is not None, "warm up first"
        self.engine.infer(self.images_NCHW)  # another engine ran since, and the caches are its own
        return measure.time_calls(self.engine, self.images_NCHW, calls)

    def compute_times(self, calls: int) -> np.ndarray | None:
        assert self.images_NCHW is not None, "warm up first"
        time_compute = getattr(self.engine, "time_compute", None)
        return np.array([time_compute(self.images_NCHW) for _ in range(calls)]) if time_compute else None

    def logits(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        return np.asarray(self.engine.infer(normalise(pixels_NHWC, self.mean, self.std)), dtype=np.float32)


def normalise(pixels_NHWC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [N, H, W, C] -> contiguous float32 [N, C, H, W]: (x / 255 - mean) / std, as `wmlc.data.normalise`."""
    mean_C, std_C = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
    images_NHWC = pixels_NHWC.astype(np.float32) * (1 / (255 * std_C)) - mean_C / std_C
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2), dtype=np.float32)


def _portable(error: Exception) -> Exception:
    """The error as one of the two that the parent knows; others may not survive pickling."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return EngineFailed(f"its engine raised: {one_line(error)}")


def _end(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
