"""Peers of a run → a server's model repository, only what passed the bench, never half a version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmlc.accuracy import disagreement, images_a_call, parity, top1_percent
from wmlc.console import say
from wmlc.data import Data, normalise
from wmlc.errors import GateError, InputError
from wmlc.export.card import CARD_FILE, make_manifest, model_card
from wmlc.export.config import ExportConfig, ShipConfig
from wmlc.export.extract import OnnxFile, load, run_file, write_file
from wmlc.export.layouts import Model, lay_out, root_files, storage_uri
from wmlc.export.publish import MANIFEST_FILE, check_same_interface, newest_version, publish, staging_beside
from wmlc.files import new_file, read_json, sha256
from wmlc.models.checkpoint import read_spec
from wmlc.models.cost import total_cost
from wmlc.models.ensemble import Ensemble
from wmlc.records import Family, NetworkSpec
from wmlc.run import BASELINE, Run, open_run_data, peer_name, read_config, read_family, select_peers

CHECKED_IMAGES = 64
BENCHED = {
    "batch", "threads", "device", "provider", "latency_ms", "file_sha256", "top1", "top1_drop", "params", "macs",
    "speedup", "throughput_per_s", "notes",
}  # fmt: skip
ENVIRONMENT = {"machine", "device", "threads", "time"}


def ship(run: Run, wanted: str, out: Path, config: ShipConfig) -> Iterator[Path]:
    """Put the peers `wanted` ("2", "2,4", "all", "baseline") into the repository `out`, yielding each new version.

    Everything is checked and staged beside `out` before the first rename. Raises `InputError` for what the
    caller can fix, such as a peer that no bench of this engine and precision measured, or whose file has changed since,
    and `GateError` where `config.min_top1` or `config.max_latency_ms` is not met; then nothing is written.
    """
    family = read_family(run)
    peers = list(dict.fromkeys(peer for part in wanted.split(",") for peer in select_peers(family, part.strip())))
    if out.is_file():
        raise InputError(f"{out} is a file; choose a directory for --out")
    rows = {peer: _benched(run, peer, config) for peer in peers}
    if missed := [line for peer, row in rows.items() for line in _missed(peer_name(peer), row, config)]:
        raise GateError("; ".join(missed))
    data = open_run_data(run)
    try:
        with staging_beside(out) as staging:
            staged = [_stage_peer(run, peer, rows[peer], data, staging, out, config) for peer in peers]
            if config.ensemble:
                environment = rows[peers[0]]["environment"]
                staged.append(_stage_ensemble(run, family, data, staging, out, config, environment))
            out.mkdir(exist_ok=True)
            for model in staged:
                yield publish(staging / model.name, out / model.name, model.version, replace=config.replace)
        on_gpu = any(model.device == "cuda" for model in staged)
        for name, text in root_files(out, config, on_gpu).items():
            with new_file(out / name) as aside:
                aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error


def print_shipped(run: Run, wanted: str, out: Path, config: ShipConfig, as_json: bool) -> None:
    """Ship, and say what came of it: a line a model, or their manifests as JSON."""
    manifests = []
    for version in ship(run, wanted, out, config):
        manifest = read_json(version / MANIFEST_FILE, "manifest", "ship it again")
        manifests.append(manifest)
        if not as_json:
            top1 = manifest["accuracy"]["top1"]
            shown = "top-1 not measured" if top1 is None else f"top-1 {top1:.2f}"
            p99 = f"p99 {manifest['latency']['ms']['p99']:.3g} ms" if manifest["latency"] else "latency not measured"
            say(f"wrote {version} ({manifest['file_bytes']:,} bytes, {manifest['precision']}, {shown}, {p99})")
    if as_json:
        say(json.dumps(manifests, indent=2))
        return
    for name in root_files(out, config, on_gpu=False):
        say(f"wrote {out / name}")
    if config.to == "kserve" and not config.storage_uri:
        say(f"its storageUri is {storage_uri(out, config)}; --storage-uri names another place")


def model_name(run: Run, spec: NetworkSpec, form: str) -> str:
    """resnet20_cifar10_p05: architecture, data set and ratio, and the precision if it is not fp32."""
    data = str(spec.about.data)
    if data == "imagefolder":
        data = Path(read_config(run).settings.data_root or data).resolve().name
    peer, ratio = spec.about.peer, spec.about.ratio
    which = "baseline" if peer == BASELINE else "ensemble" if peer is None else f"p{ratio:g}".replace(".", "")
    if peer and sum(p.ratio == ratio for p in read_family(run).peers) > 1:
        which += f"-{peer}"
    parts = [spec.arch, data, which, *([] if form == "fp32" else [form.removesuffix("-cpu")])]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in "_".join(parts))


def _benched(run: Run, peer: int, config: ShipConfig) -> dict[str, Any]:
    """The bench's row of this very file, at its smallest batch, with the bench's environment under `environment`."""
    asked = f"--engine {config.engine} --precision {config.precision}"
    asked += f" --target {config.target}" if config.target else ""
    remedy = f"run 'wmlc bench --run {run.root} {asked}' first, as only what passed it ships"
    record = read_json(run.bench, "bench", remedy)
    try:
        rows = [
            row | {"environment": _on(record["environment"], row), "test_images": record["data"]["test_images"]}
            for row in record["rows"]
            if (row["peer"], row["engine"], row["precision"]) == (peer, config.engine, config.precision)
        ]
        complete = all(row.keys() >= BENCHED and row["environment"].keys() >= ENVIRONMENT for row in rows)
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise InputError(f"{run.bench} is damaged, or of an older wmlc; {remedy}")
    if not rows:
        raise InputError(f"{peer_name(peer)} was not benched with {asked}; {remedy}")
    row = min(rows, key=lambda row: row["batch"])
    if row["latency_ms"] is None:
        raise InputError(f"{peer_name(peer)} did not pass the bench ({'; '.join(row['notes'])}); it cannot ship")
    file = run_file(run, peer, config.form, config.suffix)
    if not file.is_file() or sha256(file) != row["file_sha256"]:
        raise InputError(f"{file} is not the file that was benched; {remedy}")
    return row


def _on(environment: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A bench's environment, as it was for one row."""
    machine = environment["gpu"] if row["device"] == "cuda" else environment["cpu"]
    return {**environment, "machine": machine, "device": row["device"], "threads": row["threads"]}


def _missed(name: str, row: Mapping[str, Any], config: ShipConfig) -> list[str]:
    """The gates that a benched network misses, in words."""
    missed = []
    if config.min_top1 is not None and (row["top1"] is None or row["top1"] < config.min_top1):
        got = "was not measured" if row["top1"] is None else f"is {row['top1']:.2f}"
        missed.append(f"{name}: top-1 {got}, --min-top1 asks for {config.min_top1:g}")
    if config.max_latency_ms is not None and row["latency_ms"]["p99"] > config.max_latency_ms:
        missed.append(
            f"{name}: p99 at batch {row['batch']} is {row['latency_ms']['p99']:.3g} ms, "
            f"--max-latency-ms allows {config.max_latency_ms:g}"
        )
    return missed


def _stage_peer(
    run: Run, peer: int, row: Mapping[str, Any], data: Data, staging: Path, out: Path, config: ShipConfig
) -> Model:
    spec, file = read_spec(run.network(peer)), run_file(run, peer, config.form, config.suffix)
    environment = row["environment"]
    accuracy = {
        "top1": row["top1"], "top1_drop": row["top1_drop"], "test_images": row["test_images"], "engine": row["engine"],
    }  # fmt: skip
    if config.with_preprocess:  # another file than the benched one: its answers and its accuracy are measured here
        benched, file = file, staging / f"{peer_name(peer)}.onnx"
        write_file(*load(run.network(peer)), file, data, _export_config(config), measured=False)
        pixels_NHWC = next(iter(data.test_pixels(CHECKED_IMAGES)))[0].numpy()
        plain = OnnxFile(benched, spec, replace(_export_config(config), with_preprocess=False))
        _check_equal(file, plain.logits(pixels_NHWC), pixels_NHWC, spec, config, "the benched file")
        accuracy |= _measure(file, spec, data, config, peer_name(peer))
        if row["top1"] is not None and row["top1_drop"] is not None:
            accuracy["top1_drop"] = row["top1"] + row["top1_drop"] - accuracy["top1"]
    latency = {
        "ms": row["latency_ms"], "batch": row["batch"], "engine": row["engine"], "provider": row["provider"],
        "machine": environment["machine"], "threads": row["threads"],
        "speedup": row["speedup"], "throughput_per_s": row["throughput_per_s"], "time": environment["time"],
        "of_sha256": row["file_sha256"],
    }  # fmt: skip
    cost = {"params": row["params"], "macs": row["macs"]}
    return _stage(run, spec, file, staging, out, config, accuracy, latency, cost, environment)


def _stage_ensemble(
    run: Run, family: Family, data: Data, staging: Path, out: Path, config: ShipConfig,
    environment: Mapping[str, Any],
) -> Model:  # fmt: skip
    """All peers as one model; its answers and its top-1 are measured here, as the bench does not run it."""
    if family.method == "one":
        raise InputError("the ensemble of one is mixed by a gate that no peer holds; drop --ensemble, and ship a peer")
    weights = family.peer_weights
    if len(weights) != len(family.peers):
        raise InputError(f"{run.family} is damaged: no weight of each peer; train again, or drop --ensemble")
    peers = [load(run.network(peer.peer)) for peer in family.peers]
    spec = peers[-1][1]
    spec = replace(spec, about=replace(spec.about, peer=None, ratio=None, achieved_ratio=None))
    network = Ensemble([network for network, _ in peers], weights).eval()
    file = staging / "ensemble.onnx"
    write_file(network, spec, file, data, _export_config(config), measured=False)
    pixels_NHWC = next(iter(data.test_pixels(CHECKED_IMAGES)))[0]
    with torch.inference_mode():
        expected_NC = network(normalise(pixels_NHWC, spec.mean, spec.std)).numpy()
    _check_equal(file, expected_NC, pixels_NHWC.numpy(), spec, config, "torch")
    accuracy = _measure(file, spec, data, config, "ensemble")
    accuracy["top1_drop"] = family.baseline.top1 - accuracy["top1"] if family.baseline else None
    channels, height, width = spec.input_shape
    cost = total_cost(network, (channels, height, width))
    costs = {"params": cost.params, "macs": cost.macs}
    return _stage(run, spec, file, staging, out, config, accuracy, None, costs, environment)


def _measure(file: Path, spec: NetworkSpec, data: Data, config: ShipConfig, name: str) -> dict[str, Any]:
    """The accuracy of a file that the bench has not seen; `GateError` where it is below `config.min_top1`."""
    _, height, width = spec.input_shape
    engine = {name: OnnxFile(file, spec, _export_config(config))}
    found, _ = top1_percent(engine, data.test_pixels(images_a_call(height, width)), data.test_count())
    if config.min_top1 is not None and found[name] < config.min_top1:
        raise GateError(f"{name}: top-1 is {found[name]:.2f}, --min-top1 asks for {config.min_top1:g}")
    return {"top1": found[name], "test_images": data.test_count(), "engine": "ort"}


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
    accuracy: Mapping[str, Any], latency: Mapping[str, Any] | None, cost: Mapping[str, int],
    environment: Mapping[str, Any],
) -> Model:  # fmt: skip
    """Everything of one version, in `staging` as it shall lie in the repository."""
    name = model_name(run, spec, config.form)
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
        device=environment["device"] if config.device == "auto" else config.device,
        threads=environment["threads"],
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
    said = {
        MANIFEST_FILE: json.dumps(manifest, indent=2, allow_nan=False) + "\n", CARD_FILE: model_card(manifest),
    }  # fmt: skip
    for place, files in ((directory, layout.version), (staging / name, layout.shared)):
        for file_name, content in files.items():
            (place / file_name).write_bytes(content)
    for file_name, text in said.items():
        (directory / file_name).write_text(text, encoding="utf-8")
    return model


def _plan_batch(plan: Path, config: ShipConfig) -> int:
    """The batch size that a plan was tuned for; `InputError` where the server would ask for more than it takes."""
    from wmlc.tensorrt import read_record

    batches = read_record(plan)["batch_range"]
    if config.max_batch > batches[2]:
        raise InputError(
            f"max_batch is {config.max_batch}, {plan.name} takes {batches[2]} at most; pass --max-batch {batches[2]}"
        )
    return batches[1]
