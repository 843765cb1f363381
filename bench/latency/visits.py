"""Whole networks of a design, launched one after another: how long each layer of each took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from wmlc.bench.engines import engine_class
from wmlc.bench.engines.machine import pinned_cpus
from wmlc.bench.engines.ort_engine import OrtEngine
from wmlc.bench.engines.worker import Feed, Seat, Worker
from wmlc.bench.latency.shapes import Shapes
from wmlc.bench.layout import has_blocks
from wmlc.bench.measure import burst_calls
from wmlc.records import Visit

VISIT_MS = 60.0  # of calls without the profiler, and as long with it
ROUGHLY = 2  # calls that tell how many a visit has
FEWEST, MOST = 5, 400  # calls of a visit; a burst has no fewer
TURNS_MS = 1000.0  # of two networks in a launch, a turn being a burst of each
FEWEST_TURNS = 3


def feed_of(channels: int) -> Feed:
    """How made-up pixels of so many channels are normalised: as images mostly are."""
    return Feed(mean=(0.5,) * channels, std=(0.25,) * channels)


def seat_for(engine: str, path: Path, channels: int, *, threads: int, device: str, batch: int) -> Seat:
    """The place of a network at `path` in a process of its own."""
    kind = engine_class(engine)
    return Seat(
        opener=kind, path=path, feed=feed_of(channels), threads=threads, device=device, cpus=pinned_cpus(threads),
        libraries=kind.libraries, batch=None if kind.any_batch else batch,
    )  # fmt: skip


class Visitor:
    """A process that opens one network after another and times it; without `shapes`, as a whole only."""

    def __init__(
        self, worker: Worker, pixels_NHWC: np.ndarray, shapes: Shapes | None, layers: Sequence[str], blocks: bool
    ) -> None:
        self._worker, self._pixels, self._shapes, self._layers = worker, pixels_NHWC, shapes, layers
        self._blocks = blocks  # whether layers can leave a blocked layout

    def visit(self, design: int, path: Path) -> Visit:
        """Open the network at `path`, of that number in the design, and time it."""
        self._worker.reopen(path)
        ms = _warmed(self._worker, self._pixels)
        nodes = self._worker.profile(calls_in(ms)) if self._shapes else None
        if nodes is None or self._shapes is None:  # what the layers take has to be told from many whole networks
            return Visit(design, ms, [], 0.0)
        spent, other_ms = self._shapes.spent(nodes)
        layers = [spent.get(layer, 0.0) for layer in self._layers]
        told = self._shapes.blocked(nodes) if self._blocks else {}
        blocked = [told.get(layer) for layer in self._layers] if told else []
        return Visit(design, ms, layers, other_ms, blocked)


def calls_in(ms: float) -> int:
    """How many calls of so many milliseconds a visit makes."""
    return min(MOST, max(FEWEST, round(VISIT_MS / max(ms, 1e-3))))


@contextmanager
def visitor(seat: Seat, pixels_NHWC: np.ndarray, shapes: Shapes | None, layers: Sequence[str]) -> Iterator[Visitor]:
    """A `Visitor` in a fresh process."""
    with Worker(seat) as worker:
        worker.ready()
        blocks = seat.opener is OrtEngine and seat.device == "cpu" and has_blocks()
        yield Visitor(worker, pixels_NHWC, shapes, layers, blocks)


def time_by_turns(
    paths: Sequence[Path], seat: Seat, pixels_NHWC: np.ndarray, *, launches: int, advance: Callable[[int], None]
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Whole networks, each by turns with the first: that one's bursts [L][R] in ms, and the others' over it [N][L][R].

    What slows the machine slows both halves of a turn, which is short for that reason: in as many seconds, turns of
    2 × 20 ms leave half the spread between launches that turns of 2 × 60 ms do. Args: where they run, but for their
    paths; what to call after a launch.
    """
    first_LR, ratios = list[np.ndarray](), [list[np.ndarray]() for _ in paths[1:]]
    for launch in range(launches):
        draw, first_R = np.random.default_rng(launch), list[float]()
        with Worker(replace(seat, path=paths[0])) as first, Worker(replace(seat, path=paths[0])) as other:
            for worker in (first, other):
                worker.ready()
            first_ms = _warmed(first, pixels_NHWC)
            calls = max(FEWEST, burst_calls(first_ms))
            found: dict[int, np.ndarray] = {}
            for index in draw.permutation(len(paths) - 1):
                other.reopen(paths[1 + index])
                own_ms = _warmed(other, pixels_NHWC)
                own_calls = max(FEWEST, burst_calls(own_ms))
                turns = [
                    (float(np.median(first.burst(calls))), float(np.median(other.burst(own_calls))))
                    for _ in range(max(FEWEST_TURNS, round(TURNS_MS / (calls * first_ms + own_calls * own_ms))))
                ]
                first_R += [ms for ms, _ in turns]
                found[int(index)] = np.array([own_ms / ms for ms, own_ms in turns])
        first_LR.append(np.array(first_R))
        for index, ratio_R in found.items():
            ratios[index].append(ratio_R)
        advance(1)
    return first_LR, ratios


def _warmed(worker: Worker, pixels_NHWC: np.ndarray) -> float:
    """The milliseconds of a call, by as many as a visit has."""
    worker.first(pixels_NHWC)  # which may look for the best kernels, or compile
    return float(np.median(worker.burst(calls_in(float(np.min(worker.burst(ROUGHLY)))))))
