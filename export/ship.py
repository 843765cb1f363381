"""Peers of a run → a server's model repository, only what passed the bench, never half a version."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from wmlc import records
from wmlc.accuracy import disagreement, images_a_call, parity, top1_percent
from wmlc.console import note, say, say_exactly
from wmlc.data import Data, normalise
from wmlc.data.sources import PACKED
from wmlc.errors import GateError, InputError
from wmlc.export.card import CARD_FILE, make_manifest, model_card
from wmlc.export.config import ExportConfig, ShipConfig
from wmlc.export.extract import OnnxFile, convert, images_to_check, run_file, write_file
from wmlc.export.layouts import Model, check_labels, lay_out, root_files, storage_uri
from wmlc.export.publish import (
    MANIFEST_FILE,
    check_same_interface,
    newest_version,
    publish,
    read_manifest,
    refuse_foreign,
    staging_beside,
)
from wmlc.export.to_onnx import export_onnx
from wmlc.files import locked, new_file, sha256
from wmlc.models.checkpoint import SPEC_FILE, load_stages, read_spec
from wmlc.models.cost import total_cost
from wmlc.models.ensemble import Ensemble
from wmlc.plan_record import read_record
from wmlc.records import Bench, Cost, Family, Latency, NetworkSpec, Row, ShippedAccuracy, ShippedLatency
from wmlc.run import BASELINE, Run, open_run_data, own_code, peer_name, read_config, read_family, select_peers

CHECKED_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Benched:
    """What the bench says of a network: its row at the smallest batch, where and when that was measured."""

    row: Row
    latency: Latency  # the row's
    machine: str | None  # the GPU or the CPU that it ran on
    time: str
    test_images: int
    against: str  # the precision of the baseline that it is compared with


def ship(run: Run, wanted: str, out: Path, config: ShipConfig) -> Iterator[Path]:
    """Put the peers `wanted` ("2", "2,4", "all", "baseline") into the repository `out`, yielding each new version.

    Everything is checked and staged beside `out` before the first rename. Raises `InputError` for what the
    caller can fix, such as a peer that no bench of this engine and precision measured, or whose file has changed since,
    and `GateError` where `config.min_top1` or `config.max_latency_ms` is not met; then nothing is written.
    """
    if out.is_file():
        raise InputError(f"{out} is a file; choose a directory for --out")
    try:
        with locked(out, "the repository"):
            yield from _ship(run, wanted, out, config)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error


def _ship(run: Run, wanted: str, out: Path, config: ShipConfig) -> Iterator[Path]:
    family = read_family(run)
    check_labels(family.data.class_names)
    peers = list(dict.fromkeys(peer for part in wanted.split(",") for peer in select_peers(family, part.strip())))
    benched = {peer: _benched(run, peer, config) for peer in peers}
    if missed := [line for peer in peers for line in _missed(peer_name(peer), benched[peer], config)]:
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
        for model in staged:
            yield publish(staging / model.name, out / model.name, model.version, replace=config.replace)
    on_gpu = any(model.device == "cuda" for model in staged)
    for name, text in root_files(out, config, on_gpu).items():
        with new_file(out / name) as aside:
            aside.write_text(text, encoding="utf-8")


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


def model_name(run: Run, spec: NetworkSpec, form: str) -> str:
    """resnet20_cifar10_p05: architecture, data set and ratio, and the precision if it is not fp32."""
    data = str(spec.about.data)
    if data in ("imagefolder", *PACKED):
        data = Path(read_config(run).settings.data_root or data).resolve().name
    peer, ratio = spec.about.peer, spec.about.ratio
    which = "baseline" if peer == BASELINE else "ensemble" if peer is None else f"p{ratio:g}".replace(".", "")
    if peer and sum(p.ratio == ratio for p in read_family(run).peers) > 1:
        which += f"-{peer}"
    parts = [spec.arch, data, which, *([] if form == "fp32" else [form.removesuffix("-cpu")])]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in "_".join(parts))


def _bench_command(run: Run, config: ShipConfig) -> str:
    """The bench that measures what is to ship, beside what is measured: against the baseline that stands there."""
    precisions = [config.precision]
    with contextlib.suppress(InputError):
        first = records.read(run.bench, Bench, "bench", "bench again").settings.precisions[:1]
        precisions = list(dict.fromkeys((*first, config.precision)))
    asked = f"--engine {config.engine} --precision {','.join(precisions)}"
    asked += f" --target {config.target}" if config.target else ""
    return f"wmlc bench --run {run.root} {asked}{own_code(run)}"


def _benched(run: Run, peer: int, config: ShipConfig) -> Benched:
    """What the bench measured of this very file at its smallest batch; `InputError` where it did not pass."""
    asked = f"--engine {config.engine} --precision {config.precision}"
    asked += f" --target {config.target}" if config.target else ""
    remedy = f"run '{_bench_command(run, config)}' first, as only what was measured ships"
    bench = records.read(run.bench, Bench, "bench", remedy)
    wanted = (peer, config.engine, config.precision)
    rows = [row for row in bench.rows if (row.peer, row.engine, row.precision) == wanted]
    if not rows or bench.data is None:
        raise InputError(f"{peer_name(peer)} was not benched with {asked}; {remedy}")
    row = min(rows, key=lambda row: row.batch)
    if row.latency_ms is None:
        raise InputError(f"{peer_name(peer)} did not pass the bench ({'; '.join(row.notes)}); it cannot ship")
    if row.budget_met is False:
        note(f"{peer_name(peer)} misses its budget of {row.latency_budget_ms:g} ms: {row.latency_ms.p50:.3g} ms (p50)")
    file = run_file(run, peer, config.form, config.suffix)
    if not file.is_file() or sha256(file) != row.file_sha256:
        raise InputError(f"{file} is not the file that was benched; {remedy}")
    return Benched(
        row=row,
        latency=row.latency_ms,
        machine=bench.environment.gpu if row.device == "cuda" else bench.environment.cpu,
        time=row.time or bench.environment.time,
        test_images=bench.data.test_images,
        against=bench.settings.precisions[0],
    )


def _missed(name: str, benched: Benched, config: ShipConfig) -> list[str]:
    """The gates that a benched network misses, in words."""
    missed, top1, p99 = [], benched.row.top1, benched.latency.p99
    if config.min_top1 is not None and (top1 is None or top1 < config.min_top1):
        got = "was not measured" if top1 is None else f"is {top1:.2f}"
        missed.append(f"{name}: top-1 {got}, --min-top1 asks for {config.min_top1:g}")
    if config.max_latency_ms is not None and p99 > config.max_latency_ms:
        missed.append(
            f"{name}: p99 at batch {benched.row.batch} is {p99:.3g} ms, --max-latency-ms allows "
            f"{config.max_latency_ms:g}"
        )
    return missed


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
    latency = ShippedLatency(
        ms=benched.latency,
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
    if reason := disagreement(parity(logits_NC, expected_NC, config.precision), config.precision, other):
        raise InputError(f"{file.stem} cannot ship in this form: {reason}; choose another --precision")


def _stage(
    run: Run, spec: NetworkSpec, file: Path, staging: Path, out: Path, config: ShipConfig,
    accuracy: ShippedAccuracy, latency: ShippedLatency | None, cost: Cost, row: Row,
) -> Model:  # fmt: skip
    """Everything of one version, in `staging` as it shall lie in the repository; on a device and threads as `row`'s."""
    name = model_name(run, spec, config.form)
    refuse_foreign(out / name)
    before = newest_version(out / name)
    version = max(1, before if config.replace else before + 1)
    channels, height, width = spec.input_shape
    usual = _plan_batch(file, config) if config.engine == "trt" else 1
    model = Model(
        name=name,
        version=version,
        file_name=f"model{config.suffix}",
        labels=spec.class_names,
        input_dims=[height, width, channels] if config.with_preprocess else [channels, height, width],
        pixels=config.with_preprocess,
        device=row.device if config.device == "auto" else config.device,
        threads=row.threads,
        preferred_batches=[usual] if 1 < usual <= config.max_batch else [],
    )
    manifest = make_manifest(
        name, version, file, model.file_name, spec, run,
        accuracy=accuracy, latency=latency, cost=cost, config=config,
    )  # fmt: skip
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


def _plan_batch(plan: Path, config: ShipConfig) -> int:
    """The batch size that a plan was tuned for; `InputError` where the server would ask for more than it takes."""
    _, usual, largest = read_record(plan).batch_range
    if config.max_batch > largest:
        raise InputError(
            f"max_batch is {config.max_batch}, {plan.name} takes {largest} at most; pass --max-batch {largest}"
        )
    return usual
