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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from wmlc.bench import measure
from wmlc.bench.engines import LONGEST_SAID, Engine, Nodes
from wmlc.bench.scenarios import Load
from wmlc.bench.scenarios.loadgen import LONGEST_TEST, run_load
from wmlc.errors import EngineFailed, InputError, one_line, plain
from wmlc.records import Scenario, WarmUp

FOREIGN_S = 60.0  # to open a file of unknown origin, and for its first call: a loop in it may never end
TIMEOUT_S = 600.0  # for one answer; the longest are a batch of logits, and a burst of at least one call


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How pixels become what a network takes; without `mean` and `std` it takes them as they are."""

    mean: Sequence[float] | None = None  # per channel, of pixels in 0..1
    std: Sequence[float] | None = None
    dtype: str = "float32"
    channels_last: bool = False

    def images(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> [N, C, H, W] (or [N, H, W, C]), contiguous, of the network's type."""
        if self.mean is None or self.std is None:
            images = pixels_NHWC if self.channels_last else pixels_NHWC.transpose(0, 3, 1, 2)
        else:
            images = normalise(pixels_NHWC, self.mean, self.std)
            images = images.transpose(0, 2, 3, 1) if self.channels_last else images
        return np.ascontiguousarray(images, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What an engine's process is given: the network, and its place on the machine."""

    opener: Callable[[Path, int, str], Engine]
    path: Path
    feed: Feed
    threads: int = 1
    device: str = "cpu"
    cpus: Sequence[int] | None = None  # to pin to; None where the system cannot
    libraries: Sequence[str] = ()  # to import before that
    batch: int | None = None  # the only size of a call that it shall run; None: any
    limit_s: float | None = None  # to open it and for its first call; None: as for any answer


@dataclass(frozen=True)
class Opened:
    """What an engine says of itself when it is loaded, and how long that took, its libraries not counted."""

    provider: str
    precision: str
    load_ms: float


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory that a process held before its engine was opened, and at most since it started."""

    before: int
    peak: int


class Worker:
    """The parent's end of one engine's process; a context manager that ends it.

    All methods raise `EngineFailed` where the process crashed, gave no answer in time or its engine
    raised, and `InputError` where its file is at fault.
    """

    def __init__(self, seat: Seat, timeout_s: float = TIMEOUT_S) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would take over this process's torch
        self._timeout_s, self._limit_s = timeout_s, seat.limit_s or timeout_s
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, seat), daemon=True)
        resource_tracker.ensure_running()  # which lets SIGINT through again where it is started
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a process inherits: see `_serve`
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the pipe ends when the process does

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def ready(self) -> Opened:
        """Have the engine loaded, once: processes start side by side, but engines are opened one after the other."""
        return self._ask("open", timeout_s=self._limit_s)

    def reopen(self, path: Path) -> None:
        """Close what is open and open the network at `path` in the same process, once the engine is `ready`."""
        self._ask("reopen", path, timeout_s=self._limit_s)

    def first(self, pixels_NHWC: np.ndarray) -> float:
        """Take uint8 [N, H, W, C] as the images to be timed on; the milliseconds of a first inference of them."""
        return self._ask("first", pixels_NHWC, timeout_s=self._limit_s)

    def warm_up(self, most_s: float) -> WarmUp:
        """Run the images given to `first` until the times settle."""
        return self._ask("warm_up", most_s, timeout_s=max(self._timeout_s, 2 * most_s))

    def burst(self, calls: int) -> np.ndarray:
        """The milliseconds of each of `calls` calls, after one that is not timed; `warm_up` comes first."""
        return self._ask("burst", calls)

    def compute_times(self, calls: int) -> np.ndarray | None:
        """The milliseconds of each of `calls` calls without its transfers; None if the engine cannot tell."""
        return self._ask("compute_times", calls)

    def memory(self) -> Memory | None:
        """What the process holds of main memory; None where the system does not tell."""
        return self._ask("memory")

    def load(self, load: Load) -> Scenario:
        """The result of one of LoadGen's tests on the images given to `first`."""
        return self._ask("load", load, timeout_s=max(self._timeout_s, LONGEST_TEST * load.seconds))

    def profile(self, calls: int) -> Nodes | None:
        """(node, operator, median milliseconds) of each node on those images; None if the engine cannot tell."""
        return self._ask("profile", calls)

    def logits(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, C] or class ids [N], in one call, or in calls of the seat's `batch`.

        A network that fails at that but not at the size that it was given `first` is called so from then on.
        """
        return self._ask("logits", pixels_NHWC)

    def call_size(self) -> int | None:
        """The only size of a call that the engine turned out to take; None: any."""
        return self._ask("call_size")

    def _ask(self, *command: Any, timeout_s: float | None = None) -> Any:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_receive` tells why
            self._pipe.send(command)
        return self._receive(timeout_s or self._timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        if not wait([self._pipe, self._process.sentinel], timeout_s):
            self._process.kill()
            raise EngineFailed(f"its engine gave no answer in {timeout_s:g} s and was ended")
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
    os.environ["OMP_WAIT_POLICY"] = "passive"  # see engines/__init__.py; read once, when torch is imported
    os.dup2(2, 1)  # what a library prints must not come between the lines of a table or of JSON
    try:
        for library in seat.libraries:  # on any CPU, so that all engines' processes do it at once
            importlib.import_module(library)
        pipe.recv()  # the word to open
        if seat.cpus is not None:
            os.sched_setaffinity(0, seat.cpus)  # before the engine starts its threads, which inherit it
        before, start = _memory_bytes("VmRSS"), time.perf_counter()
        engine = seat.opener(seat.path, seat.threads, seat.device)
    except EOFError:  # the parent needs no engine any more
        return
    except Exception as error:
        pipe.send((_portable(error), None))
        return
    load_ms = 1e3 * (time.perf_counter() - start)
    pipe.send((None, Opened(engine.provider, engine.precision, load_ms)))
    bench = _Bench(engine, seat, before)
    with contextlib.suppress(EOFError, ConnectionError), contextlib.closing(bench):  # the parent is gone
        while True:
            name, *args = pipe.recv()
            answer: tuple[Exception | None, Any]
            try:
                answer = None, getattr(bench, name)(*args)
            except Exception as error:  # whatever it is, the parent shall say it in one line
                answer = _portable(error), None
            pipe.send(answer)


class _Bench:
    """What a process answers: the methods of `Worker`, on this side of the pipe."""

    def __init__(self, engine: Engine, seat: Seat, before_bytes: int | None) -> None:
        self.engine, self.seat, self.before_bytes = engine, seat, before_bytes
        self.feed, self.batch = seat.feed, seat.batch
        self.images: np.ndarray | None = None

    def reopen(self, path: Path) -> None:
        self.close()
        self.engine = self.seat.opener(path, self.seat.threads, self.seat.device)

    def close(self) -> None:
        self.engine.close()

    def first(self, pixels_NHWC: np.ndarray) -> float:
        self.images = self.feed.images(pixels_NHWC)
        start = time.perf_counter()
        answer = self.engine.infer(self.images)
        took_ms = 1e3 * (time.perf_counter() - start)
        scores(answer, len(self.images))
        return took_ms

    def warm_up(self, most_s: float) -> WarmUp:
        return measure.warm_up(self.engine, self._taken(), most_s)

    def burst(self, calls: int) -> np.ndarray:
        self.engine.infer(self._taken())  # another engine ran since, and the caches are its own
        return measure.time_calls(self.engine, self._taken(), calls)

    def compute_times(self, calls: int) -> np.ndarray | None:
        time_compute = self.engine.time_compute
        return np.array([time_compute(self._taken()) for _ in range(calls)]) if time_compute else None

    def memory(self) -> Memory | None:
        peak = _memory_bytes("VmHWM")
        return None if peak is None or self.before_bytes is None else Memory(self.before_bytes, peak)

    def load(self, load: Load) -> Scenario:
        return run_load(self.engine, self._taken(), load)

    def profile(self, calls: int) -> Nodes | None:
        return self.engine.profile(self._taken(), calls) if self.engine.profile else None

    def logits(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        images = self.feed.images(pixels_NHWC)
        try:
            return in_calls(self.engine.infer, images, self.batch)
        except Exception:  # as where a Reshape inside has the batch that it was exported with
            if self.batch is not None or self.images is None or len(self.images) == len(images):
                raise
            answer = in_calls(self.engine.infer, images, len(self.images))
        self.batch = len(self.images)
        return answer

    def call_size(self) -> int | None:
        return self.batch

    def _taken(self) -> np.ndarray:
        assert self.images is not None, "give it images first"
        return self.images


def _memory_bytes(field: str) -> int | None:
    """VmRSS (now) or VmHWM (at most) of this process as Linux tells it: getrusage's would count the parent's too."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


def in_calls(infer: Callable[[np.ndarray], np.ndarray], images: np.ndarray, size: int | None) -> np.ndarray:
    """The answers for images [N, …], in calls of `size` images (None: in one), the last one filled up; see `scores`."""
    size = size or len(images)
    calls = [np.take(images, range(i, i + size), axis=0, mode="wrap") for i in range(0, len(images), size)]
    return np.concatenate([scores(infer(call), size) for call in calls])[: len(images)]


def scores(answer: np.ndarray, count: int) -> np.ndarray:
    """What a network gave for `count` images as float32 logits [count, C], or as class ids [count] where they are ids.

    Axes of one beside the classes are left out. Raises `EngineFailed` where the first axis is not the images', and
    `InputError` for what names no class.
    """
    answer = np.asarray(answer)
    if answer.dtype.kind not in "fiu":
        raise InputError(f"its output is no array of numbers ({answer.dtype}); bench needs scores [N, classes]")
    if answer.ndim == 0 or len(answer) != count:
        raise EngineFailed(
            f"its output is {list(answer.shape)} for {count} images: the batch is fixed inside of it, as by a "
            "Reshape; export it with an open batch, or bench it with --batch 1"
        )
    sides = tuple(side for side in answer.shape[1:] if side != 1)
    if answer.dtype.kind in "iu" and not sides:
        return answer.reshape(count).astype(np.float32)
    if answer.ndim == 1:
        raise InputError("its output is one number an image ([N]), which names no class; bench needs [N, classes]")
    if len(sides) > 1:
        raise InputError(f"its output is {list(answer.shape)}; bench needs scores [N, classes]")
    return answer.reshape(count, -1).astype(np.float32)


def normalise(pixels_NHWC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [N, H, W, C] -> contiguous float32 [N, C, H, W]: (x / 255 - mean) / std, as `wmlc.data.normalise`."""
    mean_C, std_C = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
    images_NHWC = pixels_NHWC.astype(np.float32) * (1 / (255 * std_C)) - mean_C / std_C
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2), dtype=np.float32)


def _portable(error: Exception) -> Exception:
    """The error as one of the two that the parent knows; others may not survive pickling."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return EngineFailed(f"its engine raised: {plain(one_line(error, LONGEST_SAID))}")


def _end(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
