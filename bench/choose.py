"""Which network to ship, from what was measured: the Pareto front, and the best within bounds."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wmlc import records
from wmlc.console import ms_text, say, say_exactly
from wmlc.errors import GateError, InputError
from wmlc.files import sha256
from wmlc.forms import SHIPPED_ENGINES
from wmlc.records import Bench, Front, FrontPoint, Latency, Row
from wmlc.run import BASELINE, Run
from wmlc.settings import option_of, setting
from wmlc.stats import pareto_front


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a network must keep to; None: whatever it is."""

    max_latency_ms: float | None = setting(None, "Most milliseconds of a call, at the 99th percentile.", metavar="X")
    max_bytes: int | None = setting(None, "Largest file.", metavar="N")
    max_macs: float | None = setting(None, "Most multiply-accumulates an image, such as 5e8.", metavar="N")
    min_top1: float | None = setting(None, "Least top-1 in percent.", metavar="X")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{option_of(self, name)} must be above 0, got {value:g}")
        if self.min_top1 is not None and self.min_top1 < 1:
            raise InputError(f"--min-top1 is in percent, got {self.min_top1:g}; did you mean {100 * self.min_top1:g}?")
        if all(value is None for value in vars(self).values()):
            raise InputError("name at least one bound: --max-latency-ms, --max-bytes, --max-macs or --min-top1")

    def misses(self, row: Row) -> list[tuple[float, str]]:
        """Each bound that a network misses: by which share of it, and in words."""
        measured = (
            (self.max_latency_ms, times(row).p99, "takes {} ms (p99)", ms_text),
            (self.max_bytes, row.file_bytes, "has {} bytes", "{:,.0f}".format),
            (self.max_macs, row.macs, "has {} MACs", "{:,.0f}".format),
        )
        missed = [
            (got / most - 1, f"{words.format(shown(got))}, {shown(got - most)} above {shown(most)}")
            for most, got, words, shown in measured
            if most is not None and got is not None and got > most
        ]
        if self.max_macs is not None and row.macs is None:
            missed.append((math.inf, "has MACs that cannot be told, which no bound can be held against"))
        least, top1 = self.min_top1, row.top1 or 0.0
        if least is not None and top1 < least:
            missed.append((1 - top1 / least, f"has top-1 {top1:.2f}, {least - top1:.2g} points below {least:g}"))
        return missed


@dataclass(frozen=True, kw_only=True)
class Among:
    """Which rows a network is chosen among; None: the bench's first, and of precisions any."""

    engine: str | None = setting(None, "As measured with.", metavar="E", shown="the bench's first")
    precision: str | None = setting(None, "In this precision only.", metavar="P")
    threads: int | None = setting(None, "With so many threads.", metavar="T", shown="the bench's first")
    batch: int | None = setting(None, "At this batch size.", metavar="B", shown="the bench's first")


ANY = Among()
NOT_MEASURED = " not measured: "  # between what is null in a row and why, in its notes


def times(row: Row) -> Latency:
    """The times of a row that has some."""
    assert row.latency_ms is not None, f"{row.name} was not timed"
    return row.latency_ms


def pareto(rows: Sequence[Row]) -> tuple[list[Row], list[Front]]:
    """The rows, those that compete marked with `on_front`, and the front over (p50, top-1) of each cell.

    A network is on the front where no other is at least as fast and as accurate, and better in one of the two.
    """
    points: dict[tuple[str, int, int], list[FrontPoint]] = {}
    for row in rows:
        if (point := _point(row)) is not None:
            points.setdefault((row.engine, row.threads, row.batch), []).append(point)
    fronts = {cell: pareto_front(inside, lambda p: p.p50_ms, lambda p: p.top1) for cell, inside in points.items()}
    marked = [
        row if _point(row) is None else replace(row, on_front=_point(row) in fronts[row.engine, row.threads, row.batch])
        for row in rows
    ]
    return marked, [
        Front(engine=engine, threads=threads, batch=batch, points=front)
        for (engine, threads, batch), front in fronts.items()
    ]


def _point(row: Row) -> FrontPoint | None:
    """Where a row stands among those that compete for the front; None where a number is missing."""
    if row.latency_ms is None or row.top1 is None:
        return None
    return FrontPoint(
        name=row.name, peer=row.peer, precision=row.precision, p50_ms=row.latency_ms.p50, top1=row.top1
    )  # fmt: skip


def choose(rows: Sequence[Row], bounds: Bounds, among: Among = ANY) -> Row:
    """The row of the peer to ship: of those within the bounds the most accurate, of as accurate ones the fastest.

    With a bound on top-1 alone it is the fastest. Raises `InputError` where no such peer was measured, and `GateError`
    where none fits, naming the nearest and by how much it misses.
    """
    there = [row for row in narrow(rows, among) if row.peer != BASELINE]
    peers = [row for row in there if row.latency_ms and (bounds.min_top1 is None or row.top1 is not None)]
    if not peers:
        why = f" ({reasons})" if (reasons := reasons_in(there)) else ""
        raise InputError(f"this bench has no peer whose numbers the bounds could be held against{why}; bench it again")
    fitting = [row for row in peers if not bounds.misses(row)]
    if not fitting:
        nearest = min(peers, key=lambda row: max(share for share, _ in bounds.misses(row)))
        words = " and ".join(words for _, words in bounds.misses(nearest))
        raise GateError(f"none of {len(peers)} networks fits; the nearest, {nearest.name}, {words}")
    top1_alone = bounds.min_top1 is not None and bounds == Bounds(min_top1=bounds.min_top1)
    return min(fitting, key=_by_speed if top1_alone else _by_accuracy)


def narrow(rows: Sequence[Row], among: Among) -> list[Row]:
    """The rows that are `among` those: of an engine, threads and batch not named the first that there is."""
    for name, asked in sorted(vars(among).items(), key=lambda item: item[1] is None):  # what is named comes first
        there = list(dict.fromkeys(getattr(row, name) for row in rows))
        value = there[0] if asked is None and there and name != "precision" else asked  # precisions compete
        if value is not None and value not in there:
            known = ", ".join(map(str, there)) or "nothing"
            raise InputError(f"{name} {value} was not benched, {known} was; choose among that, or bench it")
        rows = [row for row in rows if value is None or getattr(row, name) == value]
    return list(rows)


def reasons_in(rows: Sequence[Row]) -> str:
    """Why rows lack numbers, by the first note of each that says so, each reason once."""
    said = (next((note for note in row.notes if NOT_MEASURED in note), None) for row in rows)
    return "; ".join(dict.fromkeys(note.split(NOT_MEASURED)[-1] for note in said if note))


def _by_accuracy(row: Row) -> tuple[float, float]:
    return -(row.top1 or 0.0), times(row).p99


def _by_speed(row: Row) -> tuple[float, float]:
    return times(row).p99, -(row.top1 or 0.0)


def print_choice(run: Run | None, bench: Path | None, bounds: Bounds, among: Among, *, as_json: bool) -> None:
    """Name the peer to ship, what it gives, and how to ship it, where the bench is that of a `run`; see `choose`.

    Args: the `run`, or the record of a `bench`, or both.
    """
    bench = bench or (run.bench if run else None)
    assert bench is not None
    again = f"run 'wmlc bench{f' --run {run.root}' if run else ''}' first"
    record = records.read(bench, Bench, "bench", again)
    if run and bench != run.bench:
        _check_of(run, bench, record)
    row = choose(record.rows, bounds, among)
    command = ship_command(run, record, row) if run and bench == run.bench else None
    unknown = "top-1 was not measured, so this is the fastest" if row.top1 is None else None
    whole = narrow(record.rows, replace(among, precision=None))
    baseline = next((own for own in whole if own.peer == BASELINE), None)
    fits = not bounds.misses(baseline) if baseline and baseline.latency_ms else None
    if as_json:
        more = {"command": command, "note": unknown, "baseline_fits": fits}
        say_exactly(json.dumps({**asdict(row), **more}, indent=2))
        return
    say(f"{row.name}: {described(row)}")
    threads = f"{row.threads} thread{'s' * (row.threads > 1)}"
    say(f"measured with {row.engine}, {threads}, batch {row.batch}, in {bench}")
    if unknown:
        say(unknown)
    if baseline and fits:
        say(f"the unpruned baseline fits too: {described(baseline)}")
    if command:
        say(f"ship it: {command}")


def _check_of(run: Run, bench: Path, record: Bench) -> None:
    """Raise `InputError` where nothing that a bench was measured of is in the `run`."""
    there = {sha256(file) for file in measured_files(run)}
    if not any(row.file_sha256 in there for row in record.rows):
        raise InputError(
            f"{bench} was measured of no file of {run.root}; name the run that it is of, or leave --run or --bench out"
        )


def measured_files(run: Run) -> list[Path]:
    """What rows are measured of: exported files, plans, and the weights of networks."""
    return [
        file
        for file in run.root.rglob("*")
        if file.suffix in (".onnx", ".plan", ".safetensors") and file.is_file() and run.checkpoint not in file.parents
    ]


def ship_command(run: Run, record: Bench, row: Row) -> str | None:
    """The command that ships this very row; None where `wmlc ship` would take another one, or none.

    It goes by the first row of a peer, engine and precision at the smallest batch size.
    """
    file = (row.peer, row.engine, row.precision)
    same = [other for other in record.rows if (other.peer, other.engine, other.precision) == file]
    if row.engine not in SHIPPED_ENGINES or row is not min(same, key=lambda other: other.batch):
        return None
    words = ["wmlc", "ship", "--run", str(run.root), "--peer", str(row.peer), "--engine", row.engine]
    words += ["--precision", row.precision]
    target = record.settings.target
    return shlex.join(words + (["--target", target] if target and row.precision == "int8" else []))


def described(row: Row) -> str:
    """What a network gives, in words."""
    top1 = "top-1 not measured" if row.top1 is None else f"top-1 {row.top1:.2f}"
    gap = row.top1_drop
    drop = "" if gap is None else f" ({abs(gap):.2f} {'above' if gap < 0 else 'below'} the baseline)"
    macs = "an unknown number of" if row.macs is None else f"{row.macs:,}"
    said = f"p50 {ms_text(times(row).p50)} ms, p99 {ms_text(times(row).p99)} ms"
    faster = f", {row.speedup.median:.2f} times as fast" if row.speedup else ""
    return f"{said}{faster}, {top1}{drop}, {row.file_bytes:,} bytes, {macs} MACs"
