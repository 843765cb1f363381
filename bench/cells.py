"""One cell of a bench: an engine, a number of threads and a batch size, for all networks side by side.

First each engine is checked against its reference, for one that disagrees gets no numbers, and asked whatever is not
a matter of rounds. Then all networks are timed by turns, in processes that are launched several times anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from wmlc.accuracy import disagreement, images_a_call, parity, top1_percent
from wmlc.bench import measure
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import PLAN, Engine, engine_class
from wmlc.bench.engines.machine import pinned_cpus
from wmlc.bench.engines.worker import Memory, Opened, Seat, Worker, in_calls
from wmlc.bench.profile import merge, profile_record
from wmlc.bench.scenarios import measure_scenario
from wmlc.bench.subjects import Key, Subject
from wmlc.console import progress
from wmlc.data import Data, normalise
from wmlc.errors import EngineFailed, InputError
from wmlc.forms import open_as_written
from wmlc.records import WarmUp

WARM_UP = 4  # times as long as a launch is timed: the most that its warm-up takes
PROFILE_ROUNDS, PROFILE_MS = 8, 100.0  # rounds, and about as long a network in each

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What all networks of a comparison have in common."""

    engine: str
    device: str
    threads: int
    batch: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.engine}, batch {self.batch}" + (f", {threads}" if self.device == "cpu" else "")


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is shown to the networks: pixels for the times, and a data set for the accuracy, where there is one."""

    pixels_NHWC: np.ndarray
    data: Data | None


@dataclass
class Found:
    """What was found in a cell so far, by network; filled in place."""

    opened: dict[Key, list[Opened]] = field(default_factory=dict)  # a launch each
    first_ms: dict[Key, list[float]] = field(default_factory=dict)
    memory: dict[Key, Memory] = field(default_factory=dict)
    parity: dict[Key, float] = field(default_factory=dict)  # `wmlc.accuracy.parity` with the reference
    top1: dict[Key, float] = field(default_factory=dict)  # percent
    warm_ups: dict[Key, list[WarmUp]] = field(default_factory=dict)
    bursts: dict[Key, list[list[np.ndarray]]] = field(default_factory=dict)  # milliseconds [L][R][calls]
    compute: dict[Key, np.ndarray] = field(default_factory=dict)  # milliseconds [calls], no transfers
    scenarios: dict[Key, dict[str, Any]] = field(default_factory=dict)
    lacking: dict[Key, list[str]] = field(default_factory=dict)  # what else could not be measured, and why
    failures: dict[Key, str] = field(default_factory=dict)
    refuses: bool = True  # a file at fault ends the bench; False: it costs the cell, as others were measured before

    @contextmanager
    def failing(self, key: Key) -> Iterator[None]:
        """An engine that fails in the block has no numbers in this cell, but its reason."""
        try:
            yield
        except EngineFailed as error:
            self.failures[key] = str(error)
        except InputError as error:
            if self.refuses:
                raise
            self.failures[key] = str(error)

    def live(self, things: Mapping[Key, Value]) -> dict[Key, Value]:
        """Those of `things` that did not fail."""
        return {key: thing for key, thing in things.items() if key not in self.failures}


def measure_cell(
    cell: Cell, subjects: Sequence[Subject], config: BenchConfig, images: Images, *, top1_of: Set[Key], refuses: bool
) -> Found:
    """Everything that is measured in a cell; `InputError` where a file is at fault, if it `refuses` such.

    Args: the networks whose top-1 shall be measured too.
    """
    found = Found(refuses=refuses)
    for subject in subjects:
        if subject.batch not in (None, cell.batch):
            found.failures[subject.key] = f"the file takes batches of {subject.batch} only"
    _ask(cell, subjects, config, images, found, top1_of)
    with progress(f"timing {cell}", config.launches, "launches") as advance:
        for launch in range(config.launches):
            _launch(cell, subjects, config, images, found, launch)
            advance(1)
    return found


def profile_cell(
    cell: Cell, subjects: Sequence[Subject], config: BenchConfig, images: Images, found: Found
) -> dict[Key, dict[str, Any]]:
    """Each network's time a layer, of those whose engine can tell; one that fails here keeps its other numbers.

    All are profiled by turns too, as a network profiled in a slow minute would seem to have slow layers.
    """
    records: dict[Key, list[dict[str, Any]]] = {}
    p50_ms = {key: float(np.median(np.concatenate(bursts))) for key, bursts in _calls(found).items()}
    by_key = {subject.key: subject for subject in subjects if subject.key in p50_ms}
    again = Found(failures=dict(found.failures), refuses=False)
    with (
        _open(cell, list(by_key.values()), config, images, again) as workers,
        progress(f"profiling {cell}", PROFILE_ROUNDS, "rounds") as advance,
    ):
        for _ in range(PROFILE_ROUNDS):
            for key, worker in workers.items():
                nodes = None
                if key not in again.failures:
                    with again.failing(key):
                        nodes = worker.profile(min(50, max(5, round(PROFILE_MS / p50_ms[key]))))
                if nodes is not None:
                    subject = by_key[key]
                    records.setdefault(key, []).append(
                        profile_record(
                            name=subject.name, peer=subject.peer, precision=subject.precision, engine=cell.engine,
                            threads=cell.threads, batch=cell.batch, onnx_file=subject.onnx_file, nodes=nodes,
                            p50_ms=p50_ms[key],
                        )
                    )  # fmt: skip
            advance(1)
    for key in again.failures.keys() - found.failures.keys():
        found.lacking.setdefault(key, []).append(f"time a layer not measured: {again.failures[key]}")
    return {key: merge(each) for key, each in records.items() if key not in again.failures}


def _calls(found: Found) -> dict[Key, list[np.ndarray]]:
    """Each network's bursts of all launches."""
    return {
        key: [burst for launch in launches for burst in launch] for key, launches in found.live(found.bursts).items()
    }


@contextmanager
def _open(
    cell: Cell, subjects: Sequence[Subject], config: BenchConfig, images: Images, found: Found
) -> Iterator[dict[Key, Worker]]:
    """A process for each network that has not failed, after its first inference."""
    pixels_NHWC = np.take(images.pixels_NHWC, range(cell.batch), axis=0, mode="wrap")
    with ExitStack() as stack:
        live = found.live({subject.key: subject for subject in subjects})
        workers = {key: stack.enter_context(Worker(_seat(subject, cell, config))) for key, subject in live.items()}
        for key, worker in workers.items():
            with found.failing(key):
                found.opened.setdefault(key, []).append(worker.ready())
        for key, worker in found.live(workers).items():
            with found.failing(key):
                found.first_ms.setdefault(key, []).append(worker.first(pixels_NHWC))
        yield found.live(workers)


def _seat(subject: Subject, cell: Cell, config: BenchConfig) -> Seat:
    kind = engine_class(cell.engine)
    opener: Callable[..., Engine] = kind
    return Seat(
        opener=opener if config.cuda_graph or kind.takes != PLAN else functools.partial(opener, cuda_graph=False),
        path=subject.source,
        feed=subject.feed,
        threads=cell.threads,
        device=cell.device,
        cpus=pinned_cpus(cell.threads),
        libraries=kind.libraries,
        batch=subject.batch if kind.any_batch else cell.batch,
    )


def _ask(
    cell: Cell, subjects: Sequence[Subject], config: BenchConfig, images: Images, found: Found, top1_of: Set[Key]
) -> None:
    """Whether each engine agrees with its reference; then its accuracy, and what it does in the scenarios."""
    with _open(cell, subjects, config, images, found) as workers:
        by_key = {subject.key: subject for subject in subjects}
        for key, worker in workers.items():
            with found.failing(key):
                _check_agreement(by_key[key], worker, images, found)
        asked = {key: worker for key, worker in found.live(workers).items() if key in top1_of}
        if asked and images.data is not None:
            _, height, width = subjects[0].input_shape
            batches = images.data.test_pixels(images_a_call(height, width))
            found.top1, failures = top1_percent(asked, batches, images.data.test_count())
            found.failures |= failures
        if config.scenarios:
            _ask_scenarios(cell, found.live(workers), config, found)
    found.opened, found.first_ms = {}, {}  # those of the timed launches count


def _ask_scenarios(cell: Cell, workers: Mapping[Key, Worker], config: BenchConfig, found: Found) -> None:
    with progress(f"scenarios, {cell}", len(workers) * len(config.scenarios), "scenarios") as advance:
        for key, worker in workers.items():
            with found.failing(key):
                p50_ms = worker.warm_up(config.seconds).median_ms / cell.batch
            for scenario in config.scenarios if key not in found.failures else ():
                try:
                    found.scenarios.setdefault(key, {})[scenario] = measure_scenario(
                        worker, scenario, batch=cell.batch, seconds=config.seconds, seed=config.seed, p50_ms=p50_ms,
                        latency_bound_ms=config.latency_bound_ms or math.inf, cpus=pinned_cpus(cell.threads),
                    )  # fmt: skip
                except (EngineFailed, InputError) as error:
                    found.lacking.setdefault(key, []).append(f"scenario {scenario} not measured: {error}")
                advance(1)


def _check_agreement(subject: Subject, worker: Worker, images: Images, found: Found) -> None:
    """Engines that disagree with their reference get no numbers."""
    _, height, width = subject.input_shape
    pixels_NHWC = images.pixels_NHWC[: images_a_call(height, width)]
    logits_BC = worker.logits(pixels_NHWC)
    precision = found.opened[subject.key][0].precision or subject.precision
    expected_BC, other = _reference(subject, pixels_NHWC)
    found.parity[subject.key] = difference = parity(logits_BC, expected_BC, precision)
    if reason := disagreement(difference, precision, other):
        raise EngineFailed(reason)
    classes = len(images.data.record.class_names) if images.data else logits_BC.shape[1]
    if logits_BC.shape[1] != classes:
        raise InputError(
            f"{subject.source} gives {logits_BC.shape[1]} scores and the data set has {classes} classes; name the "
            "set that it was trained on, or leave --data out"
        )


def _reference(subject: Subject, pixels_NHWC: np.ndarray) -> tuple[np.ndarray, str]:
    """The logits that an engine has to agree with, and whose: torch's, or of plans and others' files ONNX Runtime's."""
    if subject.directory is not None and subject.source.suffix != ".plan":
        import torch

        from wmlc.models.checkpoint import load_network, read_spec

        spec = read_spec(subject.directory)
        with torch.inference_mode():
            images_NCHW = normalise(torch.from_numpy(pixels_NHWC), spec.mean, spec.std)
            return load_network(subject.directory)(images_NCHW).numpy(), "torch"
    session, images = open_as_written(subject.onnx_file), subject.feed.images(pixels_NHWC)
    name = session.get_inputs()[0].name
    return in_calls(lambda call: session.run(None, {name: call})[0], images, subject.batch), "ONNX Runtime"


def _launch(
    cell: Cell, subjects: Sequence[Subject], config: BenchConfig, images: Images, found: Found, launch: int
) -> None:
    """Open every engine anew, warm it up, and time them all by turns."""
    last = launch == config.launches - 1
    with _open(cell, subjects, config, images, found) as workers:
        calls = {}
        for key, worker in workers.items():
            with found.failing(key):
                warm = worker.warm_up(WARM_UP * config.seconds / config.launches)
                found.warm_ups.setdefault(key, []).append(warm)
                calls[key] = measure.burst_calls(warm.median_ms)
        warmed = {key: workers[key] for key in calls}
        least = -(-measure.MIN_CALLS // config.launches)
        bursts, failures = measure.interleave(
            warmed, calls, config.seconds / config.launches, config.seed + launch, least_calls=least
        )
        found.failures |= failures
        for key, times in bursts.items():
            found.bursts.setdefault(key, []).append(times)
            with found.failing(key):
                if memory := workers[key].memory():
                    found.memory[key] = memory
                compute_ms = workers[key].compute_times(measure.MIN_CALLS) if last else None
                if compute_ms is not None:
                    found.compute[key] = compute_ms
