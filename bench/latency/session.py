"""Latency tables made, kept and gone on with; and whole networks timed at the widths that were chosen from them."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wmlc import records
from wmlc.bench.engines import PACKAGES, PLAN, engine_class, tells_layers
from wmlc.bench.engines.machine import busy, measuring_alone, read_environment
from wmlc.bench.engines.worker import Seat
from wmlc.bench.intervals import times_interval
from wmlc.bench.latency.config import LatencyConfig
from wmlc.bench.latency.design import design
from wmlc.bench.latency.files import NetworkFiles, Writers
from wmlc.bench.latency.shapes import Shapes
from wmlc.bench.latency.table import widest_interval, with_points
from wmlc.bench.latency.visits import seat_for, time_by_turns, visitor
from wmlc.bench.pictures import made_up_pixels
from wmlc.console import note, progress
from wmlc.errors import EngineFailed, InputError, Stopped
from wmlc.files import short_name, user_cache
from wmlc.models.operations import operations_digest
from wmlc.models.resizable import Resizable
from wmlc.records import EngineAt, LatencyTable, ShapeTimes, Visit, WholeTime
from wmlc.run import provenance

ROUNDS, MOST_ROUNDS = 3, 8  # that all widths are measured in
NARROW = 0.02  # half of an interval over what it is of, that needs no more rounds
SCALE_NETWORKS = 12  # of the design, that are measured even where all shapes are known
LAUNCHES = 6  # of whole networks
MOST_WHOLE = 200  # kept in a table
SAVED = 10.0  # seconds between two writes of what is measured
LONGEST_NAME = 180  # bytes of a table's name; what is written beside it needs room under 255
REMEDY = "delete it, and it is measured anew"


class EngineClock:
    """Measures networks in one engine on this machine, and keeps what it measured in a directory of tables.

    A context manager, as exported files are kept while it lives. Args: how a network becomes what shall be
    served; the `directory`, by default in the user's cache; the `command` that tables name; whether to measure again
    what is kept (`force`).
    """

    def __init__(
        self, config: LatencyConfig, writers: Writers, directory: Path | None = None, *, command: str = "",
        force: bool = False,
    ) -> None:  # fmt: skip
        self.config, self._writers, self._command, self._force = config, writers, command, force
        self._directory = directory or user_cache() / "latency"
        self._files: dict[str, NetworkFiles] = {}
        self._stack = contextlib.ExitStack()
        device = engine_class(config.engine).choose_device(config.device)
        here = read_environment({config.engine: device}, [config.threads])
        self._busy = busy(here)
        versions = [here.versions[name] for name in PACKAGES[config.engine] if name in here.versions]
        self.at = EngineAt(
            engine=config.engine, version=versions[0] if versions else "unknown", precision=config.precision,
            threads=config.threads, batch=config.batch, device=device, cpu=here.cpu, gpu=here.gpu,
        )  # fmt: skip

    def __enter__(self) -> EngineClock:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def file_of(self, network: Resizable) -> Path:
        """Where the table of a network is kept."""
        at = self.at
        machine = f"{at.gpu or ''} {at.cpu}"  # a GPU waits for the CPU where little is to do
        where = [at.engine, at.version, at.precision, f"{at.threads}t", f"b{at.batch}", machine]
        arch = network.arch + (f" {network.arch_args}" if network.arch_args else "")
        sides = "x".join(map(str, network.input_shape))
        name = f"{arch} {sides} {network.classes} classes multiples of {network.divisor}"
        return self._directory / _as_name(" ".join(where)) / f"{_as_name(name)}.json"

    def table(self, network: Resizable) -> LatencyTable:
        """The table of a network: kept from before, or measured now, or gone on with where that was stopped."""
        with measuring_alone():  # so that no other writes to the table, either
            return self._table(network, self.file_of(network))

    def _table(self, network: Resizable, file: Path) -> LatencyTable:
        if not network.groups:
            raise InputError(f"no channel of {network.arch} can be cut, so there are no widths to measure")
        does = operations_digest(network.build(network.full), network.input_shape)
        kept = None if self._force or not file.exists() else self._read(file)
        if kept is None:
            self._say_elsewhere(file)
        if kept is not None and (kept.levels, kept.layers) != (_levels(network), list(network.layers)):
            note(f"{file} is of other widths; measuring anew")
            kept = None
        if kept is not None and kept.operations != does:
            note(f"{file} is of a network of that name that does something else; measuring anew")
            kept = None
        return kept if kept is not None and kept.finished else self._measure(network, kept, file, does)

    def time(self, network: Resizable, counts: Sequence[np.ndarray]) -> list[WholeTime]:
        """Whole networks at these counts, each beside the full one; what the table has of them is not timed again."""
        with measuring_alone():
            return self._time_missing(network, self.file_of(network), counts)

    def _time_missing(self, network: Resizable, file: Path, counts: Sequence[np.ndarray]) -> list[WholeTime]:
        table, whole = self._read(file), _key(network.full)
        known = {tuple(own.counts): own for own in table.whole}
        if whole not in known:  # its milliseconds are measured once, and others' are shares of them
            known = {}
        missing = {key: own for own in counts if (key := _key(own)) not in known}
        if missing:
            timed = self._time(network, list(missing.values()), known[whole].ms if known else None)
            known |= {tuple(own.counts): own for own in timed}
            first, *others = sorted(known.values(), key=lambda own: tuple(own.counts) != whole)  # the full one stays
            records.write(file, replace(table, whole=[first, *others[-MOST_WHOLE:]]))
        return [known[_key(own)] for own in counts]

    def forget(self, network: Resizable) -> None:
        """Have whole networks timed again."""
        file = self.file_of(network)
        records.write(file, replace(self._read(file), whole=[]))

    def _read(self, file: Path) -> LatencyTable:
        """A table of this machine and engine; `InputError` for one of another."""
        table = records.read(file, LatencyTable, "latency table", REMEDY)
        if apart := self._apart(table.at):
            raise InputError(f"{file} was measured elsewhere: {'; '.join(apart.values())}; {REMEDY}")
        return table

    def _say_elsewhere(self, file: Path) -> None:
        """A note where the directory has the table that is wanted of another machine or another version."""
        for other in sorted(self._directory.glob(f"*/{file.name}")):
            with contextlib.suppress(InputError):
                apart = self._apart(records.read(other, LatencyTable, "latency table", REMEDY).at)
                if apart and apart.keys() <= {"version", "cpu", "gpu"}:
                    note(f"{other} was measured elsewhere: {'; '.join(apart.values())}; measuring anew")

    def _apart(self, at: EngineAt) -> dict[str, str]:
        """What differs between a table's conditions and these, by field, in words."""
        mine, theirs = vars(self.at), vars(at)
        return {
            name: f"{name} {theirs[name]!r} there, {mine[name]!r} here" for name in mine if mine[name] != theirs[name]
        }

    def _network_files(self, network: Resizable) -> NetworkFiles:
        """The files of a network, exported once."""
        key = str(self.file_of(network))
        if key not in self._files:
            work = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            takes = engine_class(self.config.engine).takes
            self._files[key] = NetworkFiles(network, takes, self._writers, self.config.batch, work)
        return self._files[key]

    def _measure(self, network: Resizable, kept: LatencyTable | None, file: Path, does: str) -> LatencyTable:
        """Round after round over the design's widths until intervals are narrow; what is measured is kept meanwhile."""
        files, designs_DG = self._network_files(network), design(network)
        shapes, known = Shapes(files.full), self._known(file)
        layers = [layer for layer in network.layers if layer in shapes.of]
        if not layers:
            raise InputError(f"no layer of {network.arch} goes by its name in the exported file, so none can be timed")
        table = kept or LatencyTable(
            command=self._command, at=self.at, arch=network.arch, arch_args=network.arch_args,
            classes=network.classes, input_shape=network.input_shape, divisor=network.divisor,
            levels=_levels(network), layers=list(network.layers), operations=does, **vars(provenance()),
        )  # fmt: skip
        note(f"measuring {network.arch} at {len(designs_DG)} widths in {self.at.engine} {self.at.precision}: {file}")
        if self._busy:
            note(f"the machine is busy ({self._busy}), so layers may seem slower than they are; close other programs")
        wanted, before, start = _wanted(network, designs_DG, shapes, known), table.seconds, time.monotonic()
        written = start
        try:
            with progress(f"measuring {network.arch}", ROUNDS * len(wanted), "networks") as advance:
                for number in range(1, MOST_ROUNDS + 1):
                    visited = [visit.design for visit in table.visits]
                    left = [one for one in wanted if visited.count(one) < number]
                    advance(len(wanted) - len(left))
                    round_ = [(one, designs_DG[one]) for one in left]
                    for visit in self._round(network, files, shapes, round_, number) if round_ else ():
                        table = replace(table, visits=[*table.visits, visit], seconds=before + time.monotonic() - start)
                        advance(1)
                        if time.monotonic() - written > SAVED:  # so that a kill loses no more
                            records.write(file, table)
                            written = time.monotonic()
                    table = with_points(table, network, designs_DG, shapes.of, known)
                    records.write(file, table)
                    narrow = widest_interval(table) <= NARROW or table.seconds >= self.config.seconds
                    if number >= ROUNDS and narrow:
                        break
        except KeyboardInterrupt:
            records.write(file, table)
            raise Stopped(f"stopped; the same command goes on ({file} has what was measured)") from None
        except EngineFailed as error:
            records.write(file, table)
            raise InputError(f"{self._failed(error)}; the same command goes on where it was") from None
        table = replace(table, finished=True)
        records.write(file, table)
        return table

    def _round(
        self, network: Resizable, files: NetworkFiles, shapes: Shapes, designs: Sequence[tuple[int, np.ndarray]],
        number: int,
    ) -> Iterator[Visit]:  # fmt: skip
        """A visit to each of the networks, in an order drawn anew, in a fresh process."""
        pixels_NHWC = made_up_pixels(network.input_shape, self.config.batch)
        first = files.write(network.full, "first")
        told = shapes if tells_layers(self.at.engine, self.at.device) else None
        builds = engine_class(self.at.engine).takes == PLAN  # which takes seconds, so the next round finds it
        with visitor(self._seat(first, network), pixels_NHWC, told, network.layers) as one:
            for place in np.random.default_rng(number).permutation(len(designs)):
                index, counts_G = designs[place]
                yield one.visit(index, files.write(counts_G, f"visited{index}" if builds else "visited"))

    def _time(self, network: Resizable, counts: Sequence[np.ndarray], full_ms: float | None) -> list[WholeTime]:
        """Networks at these counts by turns with the full one, in milliseconds of a full one that takes `full_ms`."""
        files, paths = self._network_files(network), []
        with progress("writing whole networks", 1 + len(counts), "files") as advance:
            for number, own in enumerate([network.full, *counts]):
                paths.append(files.write(own, f"whole{number}"))
                advance(1)
        with progress("timing whole networks", LAUNCHES, "launches") as advance:
            try:
                full_LR, ratios_NLR = time_by_turns(
                    paths, self._seat(paths[0], network), made_up_pixels(network.input_shape, self.config.batch),
                    launches=LAUNCHES, advance=advance,
                )  # fmt: skip
            except EngineFailed as error:
                raise InputError(f"{self._failed(error)}; try again, or choose another --engine") from None
        full_ms = full_ms or float(np.median(np.concatenate(full_LR)))
        return [_whole_time(own, full_ms, ratios_LR) for own, ratios_LR in zip(counts, ratios_NLR, strict=True)]

    def _failed(self, error: EngineFailed) -> str:
        return f"{self.at.engine} failed: {error}"

    def _seat(self, path: Path, network: Resizable) -> Seat:
        at = self.at
        return seat_for(at.engine, path, network.input_shape[0], threads=at.threads, device=at.device, batch=at.batch)

    def _known(self, file: Path) -> list[ShapeTimes]:
        """What the other tables beside `file` say of shapes."""
        found: list[ShapeTimes] = []
        for other in sorted(file.parent.glob("*.json")):
            if other == file:
                continue
            try:
                table = self._read(other)
            except InputError as error:  # it is not the one that was asked for
                note(f"going without another table: {error}")
                continue
            found += table.shapes if table.finished and table.operations else []
        return found


def _wanted(network: Resizable, designs_DG: np.ndarray, shapes: Shapes, known: Sequence[ShapeTimes]) -> list[int]:
    """The networks of the design that show anything new beside what is `known`, and a few more to see whole ones."""
    if not known:
        return list(range(len(designs_DG)))
    points = {(own.shape, p.channels_in, p.channels_out) for own in known for p in own.points}
    found = []
    for index, counts_G in enumerate(designs_DG):
        channels_L2 = network.channels(counts_G)
        seen = {
            (shapes.of[layer], int(pair[0]), int(pair[1]))
            for layer, pair in zip(network.layers, channels_L2, strict=True)
            if layer in shapes.of
        }
        if index < SCALE_NETWORKS or seen - points:
            found.append(index)
            points |= seen
    return found


def _whole_time(counts_G: np.ndarray, full_ms: float, ratios_LR: Sequence[np.ndarray]) -> WholeTime:
    low, high = times_interval(ratios_LR, 0)
    return WholeTime(
        counts=list(_key(counts_G)), ms=full_ms * float(np.median(np.concatenate(ratios_LR))), low=full_ms * low,
        high=full_ms * high, full_ms=full_ms, launches=len(ratios_LR),
    )  # fmt: skip


def _levels(network: Resizable) -> dict[str, list[int]]:
    return {name: list(own) for name, own in zip(network.groups, network.levels, strict=True)}


def _key(counts_G: np.ndarray) -> tuple[int, ...]:
    return tuple(int(count) for count in counts_G)


def _as_name(words: str) -> str:
    """As a file may be called; what is long ends in a hash of all of it."""
    return short_name(re.sub(r"[^\w.-]+", "-", words).strip("-"), LONGEST_NAME, words)
