"""A whole bench: open an engine a network, check its answers, time all by turns, write and print what came out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from wmlc.accuracy import disagreement, images_a_call, parity, top1_percent
from wmlc.bench import measure
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import ENGINES, LIBRARIES, Engine
from wmlc.bench.machine import choose_device, pinned_cpus, read_environment
from wmlc.bench.report import missed_gates, print_bench
from wmlc.bench.rows import Found, Key, Subject, bench_notes, make_row
from wmlc.bench.worker import Seat, Worker
from wmlc.console import progress, say
from wmlc.data import Data, normalise
from wmlc.errors import EngineFailed, GateError, InputError
from wmlc.files import check_writable, write_json
from wmlc.models.checkpoint import WEIGHTS_FILE, load_network, read_spec
from wmlc.models.cost import total_cost
from wmlc.run import BASELINE, Run, peer_name, read_family, select_peers

MOST_WARM_UP_S = 0.5  # or `seconds` if that is more


def bench_run(run: Run, config: BenchConfig, files: Mapping[Key, Path], data: Data, out: Path) -> dict[str, Any]:
    """Measure every peer of `run` and its baseline, write the record to `out`, print it and return it.

    Args: the ONNX file of each network by (peer number, precision), for the engines `ort` and `trt`; `data` on the CPU.
    Raises `InputError` for what the caller can fix, before anything is written, and `GateError` for
    a gate that was missed, after everything is written and printed.
    """
    device = choose_device(config.engine, config.device)
    check_writable(out)
    subjects = read_subjects(run, config, files)
    environment = read_environment(config.engine, device, config.threads)
    threads = f"{config.threads} thread{'s' * (config.threads > 1)}"
    say(f"benching {len(subjects)} networks of {run.root} with {config.engine} on {device}, {threads} each")
    found = find(subjects, config, device, data)
    rows = [make_row(subject, batch, found, config) for batch in config.batches for subject in subjects]
    record = {
        "environment": {**environment, "provider": found.provider},
        "settings": asdict(config),
        "data": {"name": data.config.name, "test_images": data.test_count()},
        "notes": bench_notes(environment),
        "rows": rows,
    }
    print_bench(record, out)
    write_json(out, record)
    if missed := missed_gates(rows, config):
        raise GateError("; ".join(missed))
    return record


def read_subjects(run: Run, config: BenchConfig, files: Mapping[Key, Path]) -> list[Subject]:
    """The networks of `run`, the baseline first, with costs counted on the networks themselves."""
    peers, from_files = select_peers(read_family(run), "all"), config.engine != "torch"
    keys = [(peer, precision) for precision in config.precisions for peer in peers]
    missing = [f"{peer_name(peer)} in {precision}" for peer, precision in keys if (peer, precision) not in files]
    if missing and from_files:
        raise InputError(f"there is no file of {', '.join(missing)}; extract them first")
    subjects = []
    for peer, precision in keys:
        directory = run.network(peer)
        spec = read_spec(directory)
        channels, height, width = spec.input_shape
        cost = total_cost(load_network(directory), (channels, height, width))
        subjects.append(
            Subject(
                peer=peer,
                precision=precision,
                directory=directory,
                source=files[peer, precision] if from_files else directory,
                weights=files[peer, precision] if from_files else directory / WEIGHTS_FILE,
                spec=spec,
                cost=cost,
            )
        )
    return subjects


def find(subjects: list[Subject], config: BenchConfig, device: str, data: Data) -> Found:
    """Everything that is measured: agreement with torch first, then top-1, then times."""
    _, height, width = subjects[0].spec.input_shape
    call = images_a_call(height, width)
    pixels_NHWC = first_pixels(data, subjects[0], max(call, *config.batches))
    baseline = next((s for s in subjects if s.peer == BASELINE), None)
    found = Found(baseline=(BASELINE, config.precisions[0]), baseline_macs=baseline.cost.macs if baseline else None)
    with ExitStack() as stack:
        workers = {s.key: stack.enter_context(Worker(_seat(s, config, device))) for s in subjects}
        _await_engines(workers, found)
        for subject in subjects:
            _check_agreement(subject, workers[subject.key], pixels_NHWC[:call], found)
        if config.accuracy:
            live = found.live(workers)
            found.top1, failures = top1_percent(live, data.test_pixels(call), data.test_count())
            found.failures |= failures
        for batch in config.batches:
            _time(found.live(workers), _repeat_to(pixels_NHWC, batch), batch, config, found)
    return found


def first_pixels(data: Data, subject: Subject, count: int) -> np.ndarray:
    """uint8 [N, H, W, C]: the first test images, up to `count`; `InputError` where they do not fit the network."""
    pixels_NHWC = next(iter(data.test_pixels(count)))[0].numpy()
    channels, height, width = subject.spec.input_shape
    if pixels_NHWC.shape[1:] != (height, width, channels):
        got = " x ".join(map(str, pixels_NHWC.shape[1:]))
        raise InputError(
            f"the test images are {got}, {subject.name} takes {height} x {width} x {channels} (height, width, "
            "channels); bench with the data set that the run was trained on"
        )
    return pixels_NHWC


def _repeat_to(pixels_NHWC: np.ndarray, count: int) -> np.ndarray:
    """The first `count` images, from the start again where there are fewer."""
    return np.take(pixels_NHWC, range(count), axis=0, mode="wrap")


def _seat(subject: Subject, config: BenchConfig, device: str) -> Seat:
    opener: Callable[..., Engine] = ENGINES[config.engine]
    return Seat(
        opener=opener if config.cuda_graph or config.engine != "trt" else functools.partial(opener, cuda_graph=False),
        path=subject.source,
        mean=subject.spec.mean,
        std=subject.spec.std,
        threads=config.threads,
        device=device,
        cpus=pinned_cpus(config.threads),
        libraries=LIBRARIES[config.engine],
    )


def _await_engines(workers: Mapping[Key, Worker], found: Found) -> None:
    with progress("opening engines", len(workers), "engines") as advance:
        for key, worker in workers.items():
            try:
                found.provider, found.precision[key] = worker.ready()
            except EngineFailed as error:
                found.failures[key] = str(error)
            advance(1)


def _check_agreement(subject: Subject, worker: Worker, pixels_NHWC: np.ndarray, found: Found) -> None:
    """Engines that disagree with their reference get no numbers."""
    if subject.key in found.failures:
        return
    try:
        precision = found.precision[subject.key]
        expected_BC, other = _reference(subject, pixels_NHWC)
        difference = parity(worker.logits(pixels_NHWC), expected_BC, precision)
        reason = disagreement(difference, precision, other)
        found.parity[subject.key] = difference
    except EngineFailed as error:
        reason = str(error)
    if reason is not None:
        found.failures[subject.key] = reason


def _reference(subject: Subject, pixels_NHWC: np.ndarray) -> tuple[np.ndarray, str]:
    """The logits that an engine has to agree with, and whose: a plan's are its ONNX file's, any other's torch's."""
    import torch

    images_NCHW = normalise(torch.from_numpy(pixels_NHWC), subject.spec.mean, subject.spec.std)
    if subject.source.suffix != ".plan":
        with torch.inference_mode():
            return load_network(subject.directory)(images_NCHW).numpy(), "torch"
    from wmlc.bench.trt_engine import onnx_logits

    return onnx_logits(subject.source.with_suffix(".onnx"), images_NCHW.contiguous().numpy()), "ONNX Runtime"


def _time(
    workers: Mapping[Key, Worker], pixels_NHWC: np.ndarray, batch: int, config: BenchConfig, found: Found
) -> None:
    """Warm every engine up on `pixels_NHWC`, then time them all by turns."""
    most_s = max(MOST_WARM_UP_S, config.seconds)
    calls = {}
    for key, worker in workers.items():
        try:
            warm = found.warm_ups[key, batch] = worker.warm_up(pixels_NHWC, most_s)
            calls[key] = measure.burst_calls(warm.median_ms)
        except EngineFailed as error:
            found.failures[key] = str(error)
    warmed = {key: workers[key] for key in calls}
    rounds = _expected_rounds(calls, {key: found.warm_ups[key, batch].median_ms for key in calls}, config.seconds)
    with progress(f"timing, batch {batch}", rounds, "rounds") as advance:
        bursts, failures = measure.interleave(warmed, calls, config.seconds, config.seed, lambda: advance(1))
    found.bursts |= {(key, batch): times for key, times in bursts.items()}
    found.failures |= failures
    for key in bursts:
        try:
            compute_ms = workers[key].compute_times(measure.MIN_CALLS)
        except EngineFailed as error:
            found.failures[key] = str(error)
            continue
        if compute_ms is not None:
            found.compute[key, batch] = compute_ms


def _expected_rounds(calls: Mapping[Key, int], median_ms: Mapping[Key, float], seconds: float) -> int:
    """About how many rounds `measure.interleave` will run, for the progress bar."""
    if not calls:
        return 0
    round_s = sum((calls[key] + 1) * median_ms[key] for key in calls) / 1e3
    return max(round(seconds * len(calls) / round_s), -(-measure.MIN_CALLS // min(calls.values())))
