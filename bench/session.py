"""A whole bench: cell after cell, then the rows, the profiles and the record of it all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wmlc import records
from wmlc.bench.budgets import planned_notes
from wmlc.bench.cells import Cell, Images, Measured, bench_cells, measure_cell, profile_cell
from wmlc.bench.choose import pareto
from wmlc.bench.config import UNSAID, BenchConfig, FileSettings
from wmlc.bench.engines import NETWORK, ONNX, engine_class, tells_layers
from wmlc.bench.engines.machine import measuring_alone, read_environment
from wmlc.bench.foreign import read_file
from wmlc.bench.gates import unfinished
from wmlc.bench.merge import with_former
from wmlc.bench.pictures import TestImages
from wmlc.bench.profile import PAID_OUT, left_layout, where_lost
from wmlc.bench.rows import bench_notes, indistinct_notes, make_rows
from wmlc.bench.scenarios import require_loadgen
from wmlc.bench.subjects import (
    Files,
    Key,
    Subject,
    file_subjects,
    first_pixels,
    fit_to_files,
    read_networks,
    run_subjects,
)
from wmlc.console import note
from wmlc.data import Data, DataConfig, open_data
from wmlc.data.sources import kind_and_place
from wmlc.errors import InputError
from wmlc.files import check_writable
from wmlc.records import Bench, LatencyPlan, Profile, Row, TestData
from wmlc.run import BASELINE, Run, read_family
from wmlc.settings import BenchSettings

MOST_LIKELY_BYTES = 1 << 16  # of a bench's record


class Unwritten(InputError):
    """The record of a bench could not be written; here it is."""

    def __init__(self, message: str, record: Bench) -> None:
        super().__init__(message)
        self.record = record


def bench_run(
    run: Run, config: BenchConfig, files: Files, data: Data, out: Path, *, command: str = "", keep: bool = False
) -> Bench:
    """Measure every peer of `run` and its baseline, write the record to `out` and return it.

    Args: whether to `keep` what is at `out` of other cells; the files of each network by what an engine takes and by
    (peer number, precision), or why there is none, which costs its cells; `data` on the CPU; the `command` that the
    record shall name. Raises `InputError` for what the caller can fix, before anything is written, and `Unwritten` with
    what was measured where it cannot be. `wmlc.bench.gates.enforce` is what has to follow, once the record was shown.
    """
    devices = choose_devices(config)
    _check_out(out)
    networks = read_networks(run)
    subjects = {engine: run_subjects(networks, config, files, engine) for engine in config.engines}
    for engine in config.engines:
        if engine_class(engine).takes == NETWORK and config.precisions != ("fp32",):
            note(f"{engine} runs the networks as they were trained, in fp32 only")
    plan = read_family(run).latency
    with measuring_alone():
        record = _bench(subjects, devices, config, data, len(data.test_classes()), command, str(run.root), plan)
    _write(out, record, run if keep else None)
    return record


def bench_files(
    paths: Sequence[Path], config: BenchConfig, data: TestImages | None, out: Path,
    said: FileSettings = UNSAID, *, command: str = "",
) -> Bench:  # fmt: skip
    """Measure ONNX classifiers of any origin, the first being the baseline; else as `bench_run`.

    Without `data` the accuracy is not measured, and the images are made up. Args: what the caller has `said` of files.
    """
    devices = choose_devices(config)
    _check_out(out)
    if unfit := [engine for engine in config.engines if engine_class(engine).takes != ONNX]:
        raise InputError(
            f"the engine {unfit[0]} does not run ONNX files; use --engine ort, ort-trt or openvino for them"
        )
    files = [read_file(path) for path in paths]  # one at fault is said before images are read
    fitted = fit_to_files(files, data) if data else None
    subjects = dict.fromkeys(config.engines, file_subjects(files, fitted, said))
    shown, classes = (fitted.images, len(fitted.class_names)) if fitted else (None, 0)
    with measuring_alone():
        record = _bench(subjects, devices, config, shown, classes, command, f"{len(paths)} files")
    _write(out, record)
    return record


def open_test_images(name: str | None, root: str | None) -> TestImages | None:
    """The data set that files are to be benched on; None where none is named."""
    if name is None and root is not None:
        raise InputError("--data-root says where a data set lies; name the set too, as with --data imagefolder")
    if name is None:
        return None
    kind, root = kind_and_place(name, root)
    return open_data(DataConfig(name=kind, root=Path(root) if root else None, tested=True))


def _check_out(out: Path) -> None:
    """Raise `InputError` where the record could not be written, before minutes are spent on it."""
    check_writable(out)
    if out.is_dir():
        raise InputError(f"cannot write {out}: it is a directory; choose another --out")
    probe = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        probe.write_bytes(bytes(MOST_LIKELY_BYTES))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; make room, or choose another --out") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _write(out: Path, record: Bench, beside: Run | None = None) -> None:
    """Write the `record`, with what is there of other cells where it stands `beside` a former one of a run.

    Where that fails the error has the `record`, so that it can be shown all the same.
    """
    try:
        records.write(out, with_former(record, out, beside) if beside else record)
    except (InputError, OSError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise Unwritten(f"cannot write {out}: {why}; what was measured stands above", record) from error


def choose_devices(config: BenchConfig) -> dict[str, str]:
    """Each engine's device, after checking that it can run there; imports torch."""
    if config.scenarios:
        require_loadgen()
    return {engine: engine_class(engine).choose_device(config.device) for engine in config.engines}


def _bench(
    subjects: Mapping[str, list[Subject]],
    devices: Mapping[str, str],
    config: BenchConfig,
    data: TestImages | None,
    classes: int,
    command: str,
    what: str,
    plan: LatencyPlan | None = None,
) -> Bench:
    of_onnx = any(engine_class(name).takes == ONNX for name in config.engines)
    target = config.int8_target if of_onnx and "int8" in config.precisions else config.target
    settings = BenchSettings(**vars(config) | {"target": target})
    environment = read_environment(devices, config.threads)
    first = next(iter(subjects.values()))
    count = max(map(len, subjects.values()))  # an engine may run them in one precision alone
    note(f"benching {count} networks of {what}: {', '.join(config.engines)}")
    if len(config.threads) > 1 and (gpu := [name for name, device in devices.items() if device != "cpu"]):
        note(f"threads are a CPU's: {', '.join(gpu)} is measured once, with {config.threads[0]}")
    pixels_NHWC = first_pixels(data, first[0], max(config.batches))
    images = Images(pixels_NHWC=pixels_NHWC, data=data, classes=classes)
    rows, profiles, notes = list[Row](), list[Profile](), bench_notes(environment)
    top1: dict[str, dict[Key, float]] = {engine: {} for engine in config.engines}
    try:
        for cell in bench_cells(settings, devices):
            inside, known = subjects[cell.engine], top1[cell.engine]
            lacking = {s.key for s in inside if config.accuracy and s.key not in known}
            measured = measure_cell(cell, inside, config, images, top1_of=lacking, refuses=not rows)
            known |= {key: own.top1 for key, own in measured.items() if own.top1 is not None}
            found = make_rows(cell, measured, known, config, plan)
            found, found_profiles = _profiled(cell, measured, found, config, images)
            rows, profiles = [*rows, *found], [*profiles, *found_profiles]
            notes += indistinct_notes(cell, measured, config.seed)
    except KeyboardInterrupt:
        if not rows:
            raise
    notes += planned_notes(plan, rows, environment)
    rows, fronts = pareto(rows)
    record = Bench(
        command=command,
        environment=environment,
        settings=settings,
        data=_test_data(data) if data else None,
        notes=notes,
        rows=rows,
        pareto=fronts,
        profiles=profiles,
        inputs=[f"{subject.name}: {subject.told}" for subject in first if subject.told],
    )
    if stopped := unfinished(record):
        record = replace(record, notes=[*notes, stopped])
    return record


def _test_data(data: TestImages) -> TestData:
    return TestData(name=data.config.name, test_images=data.test_count(), digest=data.test_digest())


def _profiled(
    cell: Cell, measured: Measured, rows: Sequence[Row], config: BenchConfig, images: Images
) -> tuple[list[Row], list[Profile]]:
    """The rows, and profiles of all networks if asked for, else of the baseline and of those whose saving isn't paid
    out, where the engine can tell; a note in the row of such a network says where it was lost."""
    unpaid = {key for key, row in zip(measured, rows, strict=True) if (row.paid_out or 1) < PAID_OUT}
    wanted = [
        own
        for key, own in measured.items()
        if config.profile or (unpaid and (own.subject.peer == BASELINE or key in unpaid))
    ]
    if not wanted or not (config.profile or tells_layers(cell.engine, cell.device)):
        return list(rows), []
    profiles, failures = profile_cell(cell, wanted, config, images)
    baseline = profiles.get((BASELINE, next(iter(measured.values())).subject.precision))
    noted = []
    for key, row in zip(measured, rows, strict=True):
        notes = [f"time a layer not measured: {failures[key]}"] if key in failures else []
        if baseline and key in profiles and row.peer != BASELINE and row.speedup:
            lost = where_lost(baseline, profiles[key], row.speedup.median, row.mac_ratio)
            notes += [lost] if lost else []
        if key in profiles and (left := left_layout(profiles[key])):
            notes.append(left)
        noted.append(replace(row, notes=[*row.notes, *notes]))
    return noted, list(profiles.values())
