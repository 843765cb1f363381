"""A whole bench: cell after cell, then the rows, the profiles and the record of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wmlc import records
from wmlc.bench.cells import Cell, Images, Measured, bench_cells, measure_cell, profile_cell
from wmlc.bench.choose import pareto
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import NETWORK, ONNX, engine_class
from wmlc.bench.engines.machine import read_environment
from wmlc.bench.gates import unfinished
from wmlc.bench.profile import PAID_OUT, where_lost
from wmlc.bench.rows import bench_notes, indistinct_notes, make_rows
from wmlc.bench.scenarios import require_loadgen
from wmlc.bench.subjects import Files, Key, Subject, file_subjects, first_pixels, run_subjects
from wmlc.console import note
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.files import check_writable
from wmlc.records import Bench, Profile, Row, TestData
from wmlc.run import BASELINE, Run
from wmlc.settings import BenchSettings


def bench_run(run: Run, config: BenchConfig, files: Files, data: Data, out: Path, *, command: str = "") -> Bench:
    """Measure every peer of `run` and its baseline, write the record to `out` and return it.

    Args: the files of each network by what an engine takes and by (peer number, precision); `data` on the CPU; the
    `command` that the record shall name. Raises `InputError` for what the caller can fix, before anything is written.
    `wmlc.bench.gates.enforce` is what has to follow, once the record was shown.
    """
    devices = choose_devices(config)
    check_writable(out)
    subjects = {engine: run_subjects(run, config, files, engine) for engine in config.engines}
    for engine in config.engines:
        if engine_class(engine).takes == NETWORK and config.precisions != ("fp32",):
            note(f"{engine} runs the networks as they were trained, in fp32 only")
    return _bench(subjects, devices, config, data, out, command, str(run.root))


def bench_files(
    paths: Sequence[Path], config: BenchConfig, data: Data | None, out: Path, *, command: str = ""
) -> Bench:
    """Measure ONNX classifiers of any origin, the first being the baseline; else as `bench_run`.

    Without `data` the accuracy is not measured, and the images are made up.
    """
    devices = choose_devices(config)
    check_writable(out)
    if unfit := [engine for engine in config.engines if engine_class(engine).takes != ONNX]:
        raise InputError(
            f"the engine {unfit[0]} does not run ONNX files; use --engine ort, ort-trt or openvino for them"
        )
    subjects = dict.fromkeys(config.engines, file_subjects(paths, data))
    return _bench(subjects, devices, config, data, out, command, f"{len(paths)} files")


def choose_devices(config: BenchConfig) -> dict[str, str]:
    """Each engine's device, after checking that it can run there; imports torch."""
    if config.scenarios:
        require_loadgen()
    return {engine: engine_class(engine).choose_device(config.device) for engine in config.engines}


def _bench(
    subjects: Mapping[str, list[Subject]],
    devices: Mapping[str, str],
    config: BenchConfig,
    data: Data | None,
    out: Path,
    command: str,
    what: str,
) -> Bench:
    settings, environment = BenchSettings(**vars(config)), read_environment(devices, config.threads)
    first = next(iter(subjects.values()))
    note(f"benching {len(first)} networks of {what}: {', '.join(config.engines)}")
    images = Images(pixels_NHWC=first_pixels(data, first[0], max(config.batches)), data=data)
    rows, profiles, notes = list[Row](), list[Profile](), bench_notes(environment)
    top1: dict[str, dict[Key, float]] = {engine: {} for engine in config.engines}
    try:
        for cell in bench_cells(settings, devices):
            inside, known = subjects[cell.engine], top1[cell.engine]
            lacking = {s.key for s in inside if config.accuracy and s.key not in known}
            measured = measure_cell(cell, inside, config, images, top1_of=lacking, refuses=not rows)
            known |= {key: own.top1 for key, own in measured.items() if own.top1 is not None}
            found = make_rows(cell, measured, known, config)
            found, found_profiles = _profiled(cell, measured, found, config, images)
            rows, profiles = [*rows, *found], [*profiles, *found_profiles]
            notes += indistinct_notes(cell, measured, config.seed)
    except KeyboardInterrupt:
        if not rows:
            raise
    rows, fronts = pareto(rows)
    record = Bench(
        command=command,
        environment=environment,
        settings=settings,
        data=TestData(name=data.config.name, test_images=data.test_count()) if data else None,
        notes=notes,
        rows=rows,
        pareto=fronts,
        profiles=profiles,
    )
    if stopped := unfinished(record):
        record = replace(record, notes=[*notes, stopped])
    records.write(out, record)
    return record


def _profiled(
    cell: Cell, measured: Measured, rows: Sequence[Row], config: BenchConfig, images: Images
) -> tuple[list[Row], list[Profile]]:
    """The rows, and profiles of all networks if asked for, else of the baseline and of those whose saving isn't paid
    out; a note in the row of such a network says where it was lost."""
    unpaid = {key for key, row in zip(measured, rows, strict=True) if (row.paid_out or 1) < PAID_OUT}
    wanted = [
        own
        for key, own in measured.items()
        if config.profile or (unpaid and (own.subject.peer == BASELINE or key in unpaid))
    ]
    if not wanted:
        return list(rows), []
    profiles, failures = profile_cell(cell, wanted, config, images)
    baseline = profiles.get((BASELINE, next(iter(measured.values())).subject.precision))
    noted = []
    for key, row in zip(measured, rows, strict=True):
        notes = [f"time a layer not measured: {failures[key]}"] if key in failures else []
        if baseline and key in profiles and row.peer != BASELINE and row.speedup:
            lost = where_lost(baseline, profiles[key], row.speedup.median, row.mac_ratio)
            notes += [lost] if lost else []
        noted.append(replace(row, notes=[*row.notes, *notes]))
    return noted, list(profiles.values())
