"""Peers of a run → a server's model repository, only what passed the bench, never half a version."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from wmlc import records
from wmlc.accuracy import disagreement, images_a_call, moved_by_int8, relative_error, top1_percent
from wmlc.console import note, say, say_exactly
from wmlc.data import Data, normalise
from wmlc.errors import GateError, InputError
from wmlc.export.benched import Benched, as_benched, check_device, missed_gates, read_bench, read_benched, served_on
from wmlc.export.card import CARD_FILE, make_manifest, model_card
from wmlc.export.config import ExportConfig, ShipConfig
from wmlc.export.extract import OnnxFile, convert, fed_pixels, images_to_check, run_file, write_file
from wmlc.export.layouts import Model, check_labels, lay_out, root_files, storage_uri
from wmlc.export.naming import model_name
from wmlc.export.publish import (
    MANIFEST_FILE,
    check_same_interface,
    free_version,
    newest_version,
    publish,
    read_manifest,
    refuse_foreign,
    staging_beside,
)
from wmlc.export.to_onnx import export_onnx
from wmlc.files import locked, new_file
from wmlc.forms import INPUT, OUTPUT, open_as_written
from wmlc.models.checkpoint import SPEC_FILE, load_stages, read_spec
from wmlc.models.cost import total_cost
from wmlc.models.ensemble import Ensemble
from wmlc.plan_record import read_record
from wmlc.records import Cost, Family, NetworkSpec, PlanRecord, Row, ShippedAccuracy, ShippedLatency
from wmlc.run import Run, open_run_data, peer_name, read_family, select_peers

CHECKED_IMAGES = 64


def ship(run: Run, wanted: str, out: Path, config: ShipConfig) -> Iterator[Path]:
    """Put the peers `wanted` ("2", "2,4", "all", "baseline") into the repository `out`, and yield the new versions.

    Everything is checked and staged beside `out` before the first rename, and all is in place before the first yield.
    Raises `InputError` for what the caller can fix, such as a peer that no bench of this engine and precision measured,
    or whose file has changed since, and `GateError` where `config.min_top1` or `config.max_latency_ms` is not met; then
    nothing is written.
    """
    if out.is_file():
        raise InputError(f"{out} is a file; choose a directory for --out")
    try:
        with locked(out, "the repository"):
            shipped = _ship(run, wanted, out, config)
        yield from shipped
    except OSError as error:
        place = Path(error.filename2 or error.filename or out)
        beside = out.resolve().parent  # where versions are made ready
        of_reading = error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR)
        if of_reading and not place.resolve().is_relative_to(beside):
            raise InputError(f"cannot read {place}: {error.strerror or error}") from error
        raise InputError(f"cannot write {place}: {error.strerror or error}; choose another --out") from error


def _ship(run: Run, wanted: str, out: Path, config: ShipConfig) -> list[Path]:
    family = read_family(run)
    check_labels(family.data.class_names)
    peers = list(dict.fromkeys(peer for part in wanted.split(",") for peer in select_peers(family, part.strip())))
    config = as_benched(config, bench := read_bench(run, config))
    benched = {peer: read_benched(run, bench, peer, config) for peer in peers}
    for peer in peers:
        check_device(peer_name(peer), benched[peer].row, config)
    if missed := [line for peer in peers for line in missed_gates(peer_name(peer), benched[peer], config)]:
        raise GateError("; ".join(missed))
    measures = config.with_preprocess or config.ensemble  # what the bench has not seen
    if config.data_root and not measures:
        raise InputError("--data-root is for --ensemble and --with-preprocess, which are measured anew; leave it out")
    data = open_run_data(run, config.data_root) if measures else None
    root_files(out, config, on_gpu=False)  # refused now, where somebody else wrote one
    with staging_beside(out) as staging:
        staged = [_stage_peer(run, peer, benched[peer], data, staging, out, config) for peer in peers]
        if config.ensemble:
            staged.append(_stage_ensemble(run, family, data, staging, out, config, benched[peers[0]].row))
        root_files(out, config, False, [model.name for model in staged])  # refused before the first rename
        out.mkdir(exist_ok=True)
        versions = [
            publish(staging / model.name, out / model.name, model.version, replace=config.replace) for model in staged
        ]
    on_gpu = any(model.device == "cuda" for model in staged)
    for name, text in root_files(out, config, on_gpu).items():
        with new_file(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return versions


def print_shipped(run: Run, wanted: str, out: Path, config: ShipConfig, as_json: bool) -> None:
    """Ship, and say what came of it: a line a model, or their manifests as JSON."""
    manifests = []
    for version in ship(run, wanted, out, config):
        manifest = read_manifest(version)
        manifests.append(asdict(manifest))
        if not as_json:
            top1, latency = manifest.accuracy.top1, manifest.latency
            shown = "top-1 not measured" if top1 is None else f"top-1 {top1:.2f}"
            p99 = f"p99 {latency.ms.p99:.3g} ms" if latency else "latency not measured"
            say(f"wrote {version} ({manifest.file_bytes:,} bytes, {manifest.precision}, {shown}, {p99})")
    if as_json:
        say_exactly(json.dumps(manifests, indent=2))
        return
    for name in root_files(out, config, on_gpu=False):
        say(f"wrote {out / name}")
    if config.to == "kserve" and not config.storage_uri:
        say(f"its storageUri is {storage_uri(out, config)}; --storage-uri names another place")


def _stage_peer(
    run: Run, peer: int, benched: Benched, data: Data | None, staging: Path, out: Path, config: ShipConfig
) -> Model:
    spec, file, row = read_spec(run.network(peer)), run_file(run, peer, config.form, config.suffix), benched.row
    if spec.about.peer != peer or spec.about.ratio is None:
        raise InputError(f"{run.network(peer) / SPEC_FILE} is damaged: it is not about {peer_name(peer)}; train again")
    accuracy = ShippedAccuracy(
        top1=row.top1,
        top1_drop=row.top1_drop,
        test_images=benched.test_images,
        engine=row.engine,
        baseline_precision=benched.against,
    )
    if config.with_preprocess:  # another file than the benched one: its answers and its accuracy are measured here
        assert data is not None
        plain, file = file, staging / f"{peer_name(peer)}.onnx"
        write_file(run, peer, file, data, _export_config(config), measured=False)
        pixels_NHWC = next(iter(data.test_pixels(CHECKED_IMAGES)))[0].numpy()
        expected = OnnxFile(plain, spec, replace(_export_config(config), with_preprocess=False))
        _check_equal(file, expected.logits(pixels_NHWC), pixels_NHWC, spec, config, "the benched file")
        baseline_top1 = None if row.top1 is None or row.top1_drop is None else row.top1 + row.top1_drop
        again = _measure(file, spec, data, config, peer_name(peer), baseline_top1)
        accuracy = replace(again, baseline_precision=benched.against)
    assert row.file_sha256 is not None, "what was not made was not timed"
    latency = ShippedLatency(
        ms=benched.latency,
        p50_interval=row.p50_interval,
        latency_budget_ms=row.latency_budget_ms,
        budget_met=row.budget_met,
        batch=row.batch,
        engine=row.engine,
        provider=row.provider,
        machine=benched.machine,
        threads=row.threads,
        speedup=row.speedup,
        throughput_per_s=row.throughput_per_s,
        time=benched.time,
        of_sha256=row.file_sha256,
    )
    if row.macs is None:
        raise InputError(f"{run.bench} does not say how many MACs {row.name} has; bench the run again")
    return _stage(run, spec, file, staging, out, config, accuracy, latency, Cost(row.params, row.macs), row)


def _stage_ensemble(
    run: Run, family: Family, data: Data | None, staging: Path, out: Path, config: ShipConfig, row: Row
) -> Model:
    """All peers as one model; its answers and its top-1 are measured here, as the bench does not run it."""
    if family.method == "one":
        raise InputError("the ensemble of one is mixed by a gate that no peer holds; drop --ensemble, and ship a peer")
    assert data is not None
    weights = family.peer_weights
    if len(weights) != len(family.peers):
        raise InputError(f"{run.family} is damaged: no weight of each peer; train again, or drop --ensemble")
    directories = [run.network(peer.peer) for peer in family.peers]
    spec = read_spec(directories[-1])
    spec = replace(spec, about=replace(spec.about, peer=None, ratio=None, achieved_ratio=None, top1=None))
    network = Ensemble([load_stages(directory) for directory in directories], weights).eval()
    fp32, file = staging / "fp32.onnx", staging / "ensemble.onnx"
    export_onnx(network, spec, fp32, images_to_check(run, data), with_preprocess=config.with_preprocess)
    convert(fp32, spec, file, data, _export_config(config), measured=False)
    pixels_NHWC = next(iter(data.test_pixels(CHECKED_IMAGES)))[0]
    with torch.inference_mode():
        expected_NC = network(normalise(pixels_NHWC, spec.mean, spec.std)).numpy()
    _check_equal(file, expected_NC, pixels_NHWC.numpy(), spec, config, "torch")
    accuracy = _measure(file, spec, data, config, "ensemble", family.baseline.top1 if family.baseline else None)
    cost = total_cost(network, spec.input_shape)
    return _stage(run, spec, file, staging, out, config, accuracy, None, cost, row)


def _measure(
    file: Path, spec: NetworkSpec, data: Data, config: ShipConfig, name: str, baseline_top1: float | None
) -> ShippedAccuracy:
    """The accuracy of a file that the bench has not seen; `GateError` where it is below `config.min_top1`."""
    _, height, width = spec.input_shape
    engine = {name: OnnxFile(file, spec, _export_config(config))}
    found, failed = top1_percent(engine, data.test_pixels(images_a_call(height, width)), data.test_count())
    if failed:
        raise InputError(failed[name])
    top1 = found[name]
    if config.min_top1 is not None and top1 < config.min_top1:
        raise GateError(f"{name}: top-1 is {top1:.2f}, --min-top1 asks for {config.min_top1:g}")
    drop = None if baseline_top1 is None else baseline_top1 - top1
    return ShippedAccuracy(top1=top1, top1_drop=drop, test_images=data.test_count(), engine="ort")


def _export_config(config: ShipConfig) -> ExportConfig:
    return ExportConfig(precision=config.precision, target=config.target, with_preprocess=config.with_preprocess)


def _check_equal(
    file: Path, expected_NC: np.ndarray, pixels_NHWC: np.ndarray, spec: NetworkSpec, config: ShipConfig, other: str
) -> None:
    """A file that the bench has not seen passes the same check of agreement, on real test images."""
    logits_NC = OnnxFile(file, spec, _export_config(config)).logits(pixels_NHWC)
    apart = relative_error(logits_NC, expected_NC, config.precision)
    if not (reason := disagreement(apart, config.precision, other)):
        return
    if config.precision == "int8" and other == "torch":  # the fp32 file that it was made of gave torch's logits
        fed = fed_pixels(torch.from_numpy(pixels_NHWC), spec, config.with_preprocess)
        meant_NC = open_as_written(file).run([OUTPUT], {INPUT: fed})[0]
        if not disagreement(relative_error(logits_NC, meant_NC, "int8"), "int8"):
            note(f"{file.stem}: {moved_by_int8(apart)}")
            return
    raise InputError(f"{file.stem} cannot ship in this form: {reason}; choose another --precision")


def _stage(
    run: Run, spec: NetworkSpec, file: Path, staging: Path, out: Path, config: ShipConfig,
    accuracy: ShippedAccuracy, latency: ShippedLatency | None, cost: Cost, row: Row,
) -> Model:  # fmt: skip
    """Everything of one version, in `staging` as it shall lie in the repository; on a device and threads as `row`'s."""
    name = model_name(run, spec, config.form)
    refuse_foreign(out / name)
    before = newest_version(out / name)
    version = max(1, before) if config.replace else free_version(out / name)
    channels, height, width = spec.input_shape
    plan = read_record(file) if config.engine == "trt" else None
    usual = _plan_batch(plan, file.name, config) if plan else 1
    model = Model(
        name=name,
        version=version,
        file_name=f"model{config.suffix}",
        labels=spec.class_names,
        input_dims=[height, width, channels] if config.with_preprocess else [channels, height, width],
        pixels=config.with_preprocess,
        device=served_on(row, config),
        threads=row.threads,
        preferred_batches=[usual] if 1 < usual <= config.max_batch else [],
    )
    manifest = make_manifest(
        model, file, spec, run, accuracy=accuracy, latency=latency, cost=cost, config=config, plan=plan
    )
    if before:
        check_same_interface(manifest, out / name)
    layout = lay_out(model, config)
    directory = staging / name / str(version)
    directory.mkdir(parents=True)
    shutil.copyfile(file, directory / model.file_name)
    for place, files in ((directory, layout.version), (staging / name, layout.shared)):
        for file_name, content in files.items():
            (place / file_name).write_bytes(content)
    records.write(directory / MANIFEST_FILE, manifest)
    (directory / CARD_FILE).write_text(model_card(manifest), encoding="utf-8")
    return model


def _plan_batch(plan: PlanRecord, name: str, config: ShipConfig) -> int:
    """The batch size that a plan was tuned for; `InputError` where the server would ask for more than it takes, or
    for less."""
    smallest, usual, largest = plan.batch_range
    if smallest > 1:
        raise InputError(
            f"{name} takes {smallest} images or more, and a server is asked about single ones; build it with "
            f"--batch-range 1,{usual},{largest}"
        )
    if config.max_batch > largest:
        raise InputError(
            f"--max-batch is {config.max_batch}, {name} takes {largest} at most; pass --max-batch {largest}"
        )
    return usual
