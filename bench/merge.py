"""A second bench beside the first: its rows replace those of the same cells, and the others stay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from wmlc import records
from wmlc.bench.choose import measured_files, pareto
from wmlc.bench.engines import ONNX, PACKAGES, engine_class
from wmlc.bench.rows import ACCURACY_OFF
from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import sha256
from wmlc.records import Bench, Profile, Row, TestData
from wmlc.run import Run

Item = TypeVar("Item")


def with_former(new: Bench, path: Path, run: Run) -> Bench:
    """The record to be written at `path`: `new`, and of the one that is there the rows of other cells.

    A row stays only while the file that it was measured of does. A bench whose rows are nothing to compare with, as it
    is of another machine, of other test images or by another version of an engine, is moved beside.
    """
    try:
        old = records.read(path, Bench, "bench", "bench again")
    except InputError:  # none, or one that nobody can read
        return new
    if apart := _apart(old, new):
        beside = path.with_name(f"{path.stem}-{old.environment.time.replace(':', '')}{path.suffix}")
        path.replace(beside)
        note(f"the former bench is of {apart}, so nothing to compare with; it is {beside} now")
        return new
    again = {_cell(row) for row in new.rows}
    new = replace(new, rows=_with_what_stays(new.rows, old))
    others = [row for row in old.rows if _cell(row) not in again]
    there = {sha256(file) for file in measured_files(run)} if others else set()
    kept = [replace(row, time=row.time or old.environment.time) for row in others if row.file_sha256 in there]
    if not kept:
        rows, fronts = pareto(new.rows)
        return replace(new, rows=rows, pareto=fronts)
    rows, fronts = pareto([*new.rows, *kept])
    cells = {_profiled(row) for row in kept}
    profiles = [each for each in old.profiles if _profiled(each) in cells]
    settings = replace(
        new.settings,
        engines=_union(new.settings.engines, old.settings.engines),
        precisions=_union(new.settings.precisions, old.settings.precisions),
        batches=_union(new.settings.batches, old.settings.batches),
        threads=_union(new.settings.threads, old.settings.threads),
        target=new.settings.target or old.settings.target,
    )
    environment = replace(
        new.environment,
        devices=old.environment.devices | new.environment.devices,
        gpu=new.environment.gpu or old.environment.gpu,
        plan_machine=new.environment.plan_machine or old.environment.plan_machine,
    )
    note(f"{len(kept)} rows of other cells, measured at {old.environment.time}, stay in {path}")
    of = f"of {old.environment.time}: "
    former = [each if each.startswith("of ") else of + each for each in old.notes]
    return replace(
        new, rows=rows, pareto=fronts, profiles=[*new.profiles, *profiles], settings=settings, environment=environment,
        notes=[*new.notes, *(each for each in former if each not in new.notes)],
    )  # fmt: skip


def _with_what_stays(rows: Sequence[Row], old: Bench) -> list[Row]:
    """The rows with the top-1 and the scenarios of a former bench that did not have to be measured again.

    Of the same files, all of them, as a drop is over the baseline's top-1.
    """
    former = {_cell(row): row for row in old.rows}
    beside = [(row, former.get(_cell(row))) for row in rows]
    if any(own and own.file_sha256 != row.file_sha256 for row, own in beside):
        return list(rows)
    return [_and_former(row, own, own.time or old.environment.time) if own else row for row, own in beside]


def _and_former(row: Row, own: Row, when: str) -> Row:
    accuracy = ACCURACY_OFF in row.notes and own.top1 is not None
    scenarios = {name: scenario for name, scenario in own.scenarios.items() if name not in row.scenarios}
    stays = [*(["top-1"] if accuracy else []), *scenarios]
    if not stays:
        return row
    if accuracy:
        notes = [words for words in row.notes if words != ACCURACY_OFF]
        row = replace(row, top1=own.top1, top1_drop=own.top1_drop, notes=notes)
    words = f"of {when}: {', '.join(stays)}"
    return replace(row, scenarios=scenarios | row.scenarios, notes=[*row.notes, words])


def _apart(old: Bench, new: Bench) -> str | None:
    """Why rows of one are nothing to compare with the other's; a GPU is named only where something ran on it."""
    then, now = old.environment, new.environment
    if then.cpu != now.cpu or (then.gpu != now.gpu and None not in (then.gpu, now.gpu)):
        return "another machine"
    if _are_other(old.data, new.data):
        return "other test images"
    packages = dict.fromkeys(itertools.chain.from_iterable(PACKAGES.values()))
    if changed := [name for name in packages if then.versions.get(name) != now.versions.get(name)]:
        return f"another version of {', '.join(changed)}"
    if moved := [name for name, device in now.devices.items() if then.devices.get(name, device) != device]:
        return f"another device of {', '.join(moved)}"
    first, mine = (own.settings.precisions[0] for own in (old, new))
    if first != mine:  # of the baseline that speed-ups and drops are over
        return f"another baseline, in {first} (--precision {first},{mine} measures both against that one)"
    targets = {_int8_target(own) for own in (old, new)} - {None}
    return "int8 for another target" if len(targets) > 1 else None


def _int8_target(bench: Bench) -> str | None:
    """What the int8 ONNX files of a bench are made for; None where it has none (all plans are a GPU's)."""
    of_onnx = any(engine_class(name).takes == ONNX for name in bench.settings.engines)
    return (bench.settings.target or "cpu") if of_onnx and "int8" in bench.settings.precisions else None


def _are_other(old: TestData | None, new: TestData | None) -> bool:
    """Whether test images are others; a bench from before digests were noted is told by name and number alone."""
    if old is None or new is None:
        return old is not new
    return new != (replace(old, digest=new.digest) if None in (old.digest, new.digest) else old)


def _cell(row: Row) -> tuple[str, str, int, int, str, int]:
    return row.engine, row.precision, row.threads, row.batch, row.device, row.peer


def _profiled(each: Row | Profile) -> tuple[str, int, int, int, str]:
    return each.engine, each.threads, each.batch, each.peer, each.precision


def _union(first: tuple[Item, ...], second: tuple[Item, ...]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys((*first, *second)))
