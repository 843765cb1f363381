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
from typing import TypeVar

import numpy as np

from wmlc.accuracy import images_a_call, picked, top1_percent
from wmlc.bench import measure
from wmlc.bench.agreement import References, held_against_reference
from wmlc.bench.attribution import FileLayers, attribute
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import PLAN, Engine, engine_class
from wmlc.bench.engines.machine import pinned_cpus
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.worker import FOREIGN_S, Memory, Opened, Seat, Worker
from wmlc.bench.layout import with_layout
from wmlc.bench.pictures import TestImages
from wmlc.bench.profile import merge
from wmlc.bench.scenarios import measure_scenario
from wmlc.bench.subjects import Key, Subject
from wmlc.console import progress
from wmlc.errors import EngineFailed, InputError
from wmlc.records import LayerTime, Profile, Scenario, WarmUp
from wmlc.settings import BenchSettings

Value = TypeVar("Value")

WARM_UP = 4  # times as long as a launch is timed: the most that its warm-up takes
PROFILE_ROUNDS, PROFILE_MS = 8, 100.0  # rounds, and about as long a network in each


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


def bench_cells(settings: BenchSettings, devices: Mapping[str, str]) -> list[Cell]:
    """The cells of a bench, in order; threads are those of a CPU. Args: the device of each engine."""
    return [
        Cell(engine=engine, device=devices[engine], threads=threads, batch=batch)
        for engine in settings.engines
        for threads in (settings.threads if devices[engine] == "cpu" else settings.threads[:1])
        for batch in settings.batches
    ]


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is shown to the networks: pixels for the times, and a data set for the accuracy, where there is one."""

    pixels_NHWC: np.ndarray
    data: TestImages | None
    classes: int = 0  # of the data set

    @functools.cached_property
    def asked(self) -> np.ndarray:
        """The pixels by which engines are held against their references: as many as one call takes."""
        return self.pixels_NHWC[: images_a_call(*self.pixels_NHWC.shape[1:3])]

    @functools.cached_property
    def references(self) -> References:
        """What the networks should answer for those."""
        return References(self.asked)


@dataclass
class Measurement:
    """What was measured of one network in one cell, filled in as the bench goes on; no numbers where it failed."""

    subject: Subject
    opened: list[Opened] = field(default_factory=list)  # a launch each
    first_ms: list[float] = field(default_factory=list)
    memory: Memory | None = None
    apart: float | None = None  # `wmlc.accuracy.relative_error` with the reference
    top1: float | None = None  # percent
    warm_ups: list[WarmUp] = field(default_factory=list)
    bursts: list[list[np.ndarray]] = field(default_factory=list)  # milliseconds [L][R][calls]
    compute_ms: np.ndarray | None = None  # [calls], no transfers
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)  # what else could not be measured, and why
    failure: str | None = None
    refuses: bool = True  # a file at fault ends the bench; False: it costs the cell, as others were measured before

    @contextmanager
    def failing(self) -> Iterator[None]:
        """An engine that fails in the block has no numbers in this cell, but its reason."""
        try:
            yield
        except EngineFailed as error:
            self.failure = str(error)
        except InputError as error:
            if self.refuses:
                raise
            self.failure = str(error)

    @property
    def times_ms(self) -> np.ndarray | None:
        """The milliseconds of every timed call, of all launches together; None where it failed."""
        return None if self.failure else np.concatenate([burst for launch in self.bursts for burst in launch])


Measured = Mapping[Key, Measurement]


def measure_cell(
    cell: Cell, subjects: Sequence[Subject], config: BenchConfig, images: Images, *, top1_of: Set[Key], refuses: bool
) -> dict[Key, Measurement]:
    """Everything that is measured in a cell; `InputError` where a file is at fault, if it `refuses` such.

    Args: the networks whose top-1 shall be measured too.
    """
    first = subjects[0].precision  # of a run; another that an engine cannot take costs its cell alone
    measured = {
        own.key: Measurement(own, refuses=refuses and (own.directory is None or own.precision == first))
        for own in subjects
    }
    for own in measured.values():
        if own.subject.no_file is not None:
            own.failure = own.subject.no_file
        elif own.subject.batch not in (None, cell.batch):
            own.failure = f"the file takes batches of {own.subject.batch} only; pass --batch {own.subject.batch}"
    _ask(cell, measured, config, images, top1_of)
    with progress(f"timing {cell}", config.launches, "launches") as advance:
        for launch in range(config.launches):
            _launch(cell, measured, config, images, launch)
            advance(1)
    return measured


def profile_cell(
    cell: Cell, measured: Sequence[Measurement], config: BenchConfig, images: Images
) -> tuple[dict[Key, Profile], dict[Key, str]]:
    """Each network's time a layer, of those whose engine can tell, and the reasons of those that failed here.

    All are profiled by turns too, as a network profiled in a slow minute would seem to have slow layers.
    """
    times_ms = {own.subject.key: times for own in measured if (times := own.times_ms) is not None}
    p50_ms = {key: float(np.median(times)) for key, times in times_ms.items()}
    again = {own.subject.key: Measurement(own.subject, refuses=False) for own in measured if not own.failure}
    rounds, files = dict[Key, list[list[LayerTime]]](), dict[Key, FileLayers]()
    for key, own in again.items():
        with own.failing():  # as where a shape inside of a file is open
            files[key] = FileLayers(own.subject.onnx_file)
    with (
        _open(cell, again, config, images) as workers,
        progress(f"profiling {cell}", PROFILE_ROUNDS, "rounds") as advance,
    ):
        for _ in range(PROFILE_ROUNDS):
            for key, worker in _live(workers, again).items():
                nodes = None
                with again[key].failing():
                    nodes = worker.profile(min(50, max(5, round(PROFILE_MS / p50_ms[key]))))
                if nodes is not None:
                    rounds.setdefault(key, []).append(attribute(files[key], nodes, cell.batch))
            advance(1)
    layers_of = {key: merge(each) for key, each in _live(rounds, again).items()}
    if engine_class(cell.engine) is OrtEngine and cell.device == "cpu":
        layers_of = {key: with_layout(again[key].subject.onnx_file, layers) for key, layers in layers_of.items()}
    profiles = {key: _profile(cell, again[key].subject, layers, p50_ms[key]) for key, layers in layers_of.items()}
    return profiles, {key: own.failure for key, own in again.items() if own.failure}


def _profile(cell: Cell, subject: Subject, layers: list[LayerTime], p50_ms: float) -> Profile:
    """Profilers add some microseconds a node, so `profiled_ms` may be above `p50_ms`, but what a call costs outside of
    the nodes is not in it."""
    return Profile(
        engine=cell.engine, threads=cell.threads, batch=cell.batch, peer=subject.peer, precision=subject.precision,
        name=subject.name, profiled_ms=sum(layer.ms for layer in layers), p50_ms=p50_ms, layers=layers,
    )  # fmt: skip


def _live(things: Mapping[Key, Value], measured: Measured) -> dict[Key, Value]:
    """The things of those networks that have not failed."""
    return {key: thing for key, thing in things.items() if not measured[key].failure}


@contextmanager
def _open(cell: Cell, measured: Measured, config: BenchConfig, images: Images) -> Iterator[dict[Key, Worker]]:
    """A process for each network that has not failed, after its first inference."""
    pixels_NHWC = np.take(images.pixels_NHWC, range(cell.batch), axis=0, mode="wrap")
    with ExitStack() as stack:
        workers = {
            key: stack.enter_context(Worker(_seat(own.subject, cell, config)))
            for key, own in _live(measured, measured).items()
        }
        for key, worker in workers.items():
            with measured[key].failing():
                measured[key].opened.append(worker.ready())
        for key, worker in _live(workers, measured).items():
            with measured[key].failing():
                measured[key].first_ms.append(worker.first(pixels_NHWC))
        yield _live(workers, measured)


def _seat(subject: Subject, cell: Cell, config: BenchConfig) -> Seat:
    kind = engine_class(cell.engine)
    opener: Callable[..., Engine] = kind
    if not config.cuda_graph and kind.takes == PLAN:
        opener = functools.partial(opener, cuda_graph=False)
    if subject.output is not None:
        opener = functools.partial(opener, output=subject.output)
    return Seat(
        opener=opener,
        path=subject.source,
        feed=subject.feed,
        threads=cell.threads,
        device=cell.device,
        cpus=pinned_cpus(cell.threads),
        libraries=kind.libraries,
        batch=subject.batch if kind.any_batch else cell.batch,
        # TensorRT's provider builds its engine at the first call, which takes minutes of itself
        limit_s=FOREIGN_S if subject.output is not None and kind.any_batch else None,
    )


def _ask(cell: Cell, measured: Measured, config: BenchConfig, images: Images, top1_of: Set[Key]) -> None:
    """Whether each engine agrees with its reference; then its accuracy, and what it does in the scenarios."""
    with _open(cell, measured, config, images) as workers:
        for key, worker in workers.items():
            with measured[key].failing():
                _check_agreement(measured[key], worker, images, cell.batch)
        asked = {
            key: _Renumbered(worker, measured[key].subject.order) for key, worker in _live(workers, measured).items()
            if key in top1_of and not measured[key].subject.unmatched
        }  # fmt: skip
        if asked and images.data is not None:
            _, height, width = next(iter(measured.values())).subject.input_shape
            batches = images.data.test_pixels(images_a_call(height, width))
            top1, failures = top1_percent(asked, batches, images.data.test_count())
            for key in asked:
                measured[key].top1, measured[key].failure = top1.get(key), failures.get(key)
        if config.scenarios:
            _ask_scenarios(cell, _live(workers, measured), measured, config)
    for own in measured.values():  # those of the timed launches count
        own.opened.clear()
        own.first_ms.clear()


@dataclass(frozen=True)
class _Renumbered:
    """A network whose class ids are given as the data set numbers them: `order[its id]`; None: as they are."""

    worker: Worker
    order: tuple[int, ...] | None

    def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        answers = self.worker.logits(pixels_BHWC)
        return answers if self.order is None else np.asarray(self.order, dtype=np.float32)[picked(answers)]


def _ask_scenarios(cell: Cell, workers: Mapping[Key, Worker], measured: Measured, config: BenchConfig) -> None:
    with progress(f"scenarios, {cell}", len(workers) * len(config.scenarios), "scenarios") as advance:
        for key, worker in workers.items():
            own = measured[key]
            with own.failing():
                p50_ms = worker.warm_up(config.seconds).median_ms / cell.batch
            for scenario in () if own.failure else config.scenarios:
                try:
                    own.scenarios[scenario] = measure_scenario(
                        worker, scenario, batch=cell.batch, seconds=config.seconds, seed=config.seed, p50_ms=p50_ms,
                        latency_bound_ms=config.latency_bound_ms or math.inf, cpus=pinned_cpus(cell.threads),
                    )  # fmt: skip
                except (EngineFailed, InputError) as error:
                    own.lacking.append(f"scenario {scenario} not measured: {error}")
                advance(1)


def _check_agreement(own: Measurement, worker: Worker, images: Images, batch: int = 1) -> None:
    """Engines that disagree with their reference get no numbers. Args: the `batch` of the cell."""
    logits_BC = worker.logits(images.asked)
    precision = own.opened[0].precision or own.subject.precision
    found = held_against_reference(own.subject, logits_BC, images.references, precision, batch)
    own.apart = found.apart
    if found.failure:
        raise EngineFailed(found.failure)
    own.lacking += found.notes
    if own.subject.batch is None and own.subject.output is not None and (size := worker.call_size()) is not None:
        own.lacking.append(f"asked about {size} image{'s' * (size > 1)} a call, as the file fails at more")
    if images.data is not None:
        _check_classes(own.subject, logits_BC, images.classes)


def _check_classes(subject: Subject, answers: np.ndarray, classes: int) -> None:
    """Raise `InputError` where a network's classes are not as many as the data set's."""
    told = int(answers.max()) + 1 if answers.ndim == 1 else answers.shape[1]
    if told > classes if answers.ndim == 1 else told != classes:
        what = f"names class {told - 1}" if answers.ndim == 1 else f"gives {told} scores"
        raise InputError(
            f"{subject.source} {what} and the data set has {classes} classes; name the set that it was trained on, or "
            "leave --data out"
        )


def _launch(cell: Cell, measured: Measured, config: BenchConfig, images: Images, launch: int) -> None:
    """Open every engine anew, warm it up, and time them all by turns."""
    last = launch == config.launches - 1
    with _open(cell, measured, config, images) as workers:
        calls = {}
        for key, worker in workers.items():
            with measured[key].failing():
                warm = worker.warm_up(WARM_UP * config.seconds / config.launches)
                measured[key].warm_ups.append(warm)
                calls[key] = measure.burst_calls(warm.median_ms)
        warmed = {key: workers[key] for key in calls}
        least = -(-measure.MIN_CALLS // config.launches)
        bursts, failures = measure.interleave(
            warmed, calls, config.seconds / config.launches, config.seed + launch, least_calls=least
        )
        for key, reason in failures.items():
            measured[key].failure = reason
        for key, times in bursts.items():
            own = measured[key]
            own.bursts.append(times)
            with own.failing():
                own.memory = workers[key].memory() or own.memory
                if last:
                    own.compute_ms = workers[key].compute_times(measure.MIN_CALLS)
