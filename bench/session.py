"""A whole bench: cell after cell, then the rows, the record, the tables and the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wmlc.bench.cells import Cell, Found, Images, measure_cell, profile_cell
from wmlc.bench.choose import pareto
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import NETWORK, ONNX, engine_class
from wmlc.bench.engines.machine import read_environment
from wmlc.bench.gates import missed_gates
from wmlc.bench.profile import PAID_OUT, where_lost
from wmlc.bench.rows import bench_notes, indistinct_notes, make_rows
from wmlc.bench.scenarios import require_loadgen
from wmlc.bench.subjects import Files, Key, Subject, file_subjects, first_pixels, run_subjects
from wmlc.console import note
from wmlc.data import Data
from wmlc.errors import GateError, InputError
from wmlc.files import check_writable, write_json
from wmlc.run import BASELINE, Run


def bench_run(
    run: Run, config: BenchConfig, files: Files, data: Data, out: Path, *, shown: str = "table", command: str = ""
) -> dict[str, Any]:
    """Measure every peer of `run` and its baseline, write the record to `out`, print it and return it.

    Args: the files of each network by what an engine takes and by (peer number, precision); `data` on the CPU; how it
    is `shown` (`FORMATS`), and the `command` that the record shall name.
    Raises `InputError` for what the caller can fix, before anything is written, and `GateError` for
    a gate that was missed, after everything is written and printed.
    """
    devices = choose_devices(config)
    check_writable(out)
    subjects = {engine: run_subjects(run, config, files, engine) for engine in config.engines}
    for engine in config.engines:
        if engine_class(engine).takes == NETWORK and config.precisions != ("fp32",):
            note(f"{engine} runs the networks as they were trained, in fp32 only")
    return _bench(subjects, devices, config, data, out, shown, command, str(run.root))


def bench_files(
    paths: Sequence[Path], config: BenchConfig, data: Data | None, out: Path, *, shown: str = "table", command: str = ""
) -> dict[str, Any]:
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
    return _bench(subjects, devices, config, data, out, shown, command, f"{len(paths)} files")


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
    shown: str,
    command: str,
    what: str,
) -> dict[str, Any]:
    environment: dict[str, Any] = {**read_environment(devices), "threads": list(config.threads)}
    first = next(iter(subjects.values()))
    note(f"benching {len(first)} networks of {what}: {', '.join(config.engines)}")
    images = Images(pixels_NHWC=first_pixels(data, first[0], max(config.batches)), data=data)
    cells = [cell for engine in config.engines for cell in _cells(engine, devices[engine], config)]
    rows, profiles, notes = list[dict[str, Any]](), list[dict[str, Any]](), bench_notes(environment)
    top1: dict[str, dict[Key, float]] = {engine: {} for engine in config.engines}
    done, stopped = 0, None
    try:
        for cell in cells:
            inside, known = subjects[cell.engine], top1[cell.engine]
            lacking = {s.key for s in inside if config.accuracy and s.key not in known}
            found = measure_cell(cell, inside, config, images, top1_of=lacking, refuses=not rows)
            known |= found.top1
            found_rows = make_rows(cell, inside, found, known, config)
            found_profiles = _profile(cell, inside, config, images, found, found_rows)
            notes += indistinct_notes(cell, inside, found, config.seed)
            rows, profiles, done = [*rows, *found_rows], [*profiles, *found_profiles], done + 1
    except KeyboardInterrupt:
        if not rows:
            raise
        stopped = f"stopped after {done} of {len(cells)} cells"
        notes.append(stopped)
    record = {
        "schema_version": 1,
        "command": command,
        "environment": environment,
        "settings": asdict(config),
        "data": {"name": data.config.name, "test_images": data.test_count()} if data else None,
        "notes": notes,
        "rows": rows,
        "pareto": pareto(rows),
        "profiles": profiles,
    }
    write_json(out, record)
    from wmlc.report.terminal import print_bench

    print_bench(record, out, shown)
    if stopped:
        raise InputError(f"{stopped}; {out} has what was measured")
    if missed := missed_gates(rows, config):
        raise GateError("; ".join(missed))
    return record


def _cells(engine: str, device: str, config: BenchConfig) -> list[Cell]:
    threads = config.threads if device == "cpu" else config.threads[:1]
    return [
        Cell(engine=engine, device=device, threads=count, batch=batch) for count in threads for batch in config.batches
    ]


def _profile(
    cell: Cell,
    subjects: Sequence[Subject],
    config: BenchConfig,
    images: Images,
    found: Found,
    rows: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Profiles of all networks if asked for, else of the baseline and of those whose saving isn't paid out.

    A network whose saving isn't paid out gets a note that says where it was lost.
    """
    by_key = {subject.key: row for subject, row in zip(subjects, rows, strict=True)}
    unpaid = {key for key, row in by_key.items() if (row["paid_out"] or 1) < PAID_OUT}
    wanted = [s for s in subjects if config.profile or (unpaid and (s.peer == BASELINE or s.key in unpaid))]
    if not wanted:
        return []
    told = {key: len(reasons) for key, reasons in found.lacking.items()}
    records = profile_cell(cell, wanted, config, images, found)
    baseline = records.get((BASELINE, subjects[0].precision))
    for key, row in by_key.items():
        row["notes"] += found.lacking.get(key, [])[told.get(key, 0) :]
        if baseline and key in records and row["peer"] != BASELINE and row["speedup"]:
            lost = where_lost(baseline, records[key], row["speedup"]["median"], row["mac_ratio"])
            row["notes"] += [lost] if lost else []
    return list(records.values())
