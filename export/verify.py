"""A running server is asked whether it serves what was shipped: the same interface, the same answers.

N images, C channels, H height, W width
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from wmlc.accuracy import disagreement, relative_error
from wmlc.console import note, say, say_exactly
from wmlc.data import Data
from wmlc.errors import InputError, one_line
from wmlc.export.config import ExportConfig
from wmlc.export.extract import OnnxFile, fed_pixels, run_file
from wmlc.export.layouts import most_images
from wmlc.export.publish import models_in, newest_version, read_manifest
from wmlc.export.server import DATATYPES, Metadata, Server
from wmlc.files import sha256
from wmlc.models.checkpoint import read_spec
from wmlc.records import Manifest, NetworkSpec
from wmlc.run import Run, open_run_data

IMAGES = 32


@dataclass(frozen=True)
class Verified:
    """A model that the server answers for as shipped; `apart` as `wmlc.accuracy.relative_error` measures it."""

    model: str
    version: int
    images: int
    apart: float


def verify(run: Run, repository: Path, url: str, data_root: str | None = None) -> Iterator[Verified]:
    """Ask the server at `url` (V2 inference protocol over HTTP) about every model in `repository`.

    Its metadata must equal the manifest, and its answers on test images of `run` those of ONNX Runtime on the shipped
    file, within the bounds of the bench. Raises `InputError` for the first thing that differs, and where a server does
    not speak that protocol, ends in the middle or never ends (`wmlc.export.server` has its bounds).
    """
    newest = [model / str(newest_version(model)) for model in models_in(repository)]
    everything = {path: read_manifest(path) for path in newest}
    if not everything:
        raise InputError(f"there is no shipped model in {repository}; ship one, or name the repository with --out")
    own = {path: manifest for path, manifest in everything.items() if manifest.run == run.root.resolve().name}
    manifests = own or everything
    if others := {manifest.run for manifest in everything.values()} - {each.run for each in manifests.values()}:
        note(f"{len(everything) - len(manifests)} models of {', '.join(sorted(others))} left out; name these by --run")
    server = Server.at(url)
    server.check_live()
    data = open_run_data(run, data_root)
    for directory, manifest in manifests.items():
        yield _verify_model(server, directory, manifest, run, data)


def print_verified(run: Run, repository: Path, url: str, as_json: bool, data_root: str | None = None) -> None:
    """Verify, and say what was found: a line a model, or JSON."""
    found = []
    for one in verify(run, repository, url, data_root):
        found.append(asdict(one))
        if not as_json:
            say(
                f"{one.model} version {one.version}: metadata equals the manifest, and the answers on {one.images} "
                f"test images ONNX Runtime's (apart by {one.apart:.2g})"
            )
    if as_json:
        say_exactly(json.dumps(found, indent=2))


def _verify_model(server: Server, directory: Path, manifest: Manifest, run: Run, data: Data) -> Verified:
    name, version, url = manifest.model, manifest.version, server.url
    file = directory / manifest.file
    if not file.is_file() or sha256(file) != manifest.sha256:
        raise InputError(f"{file} is not the file of its manifest; ship it again")
    for fault in _faults(server.metadata(name, version), manifest):
        raise InputError(f"the server at {url} has {name} with {fault}; load the shipped version {version}")
    spec, export = _describe(manifest, run)
    peer = manifest.network.peer
    reference = file if file.suffix == ".onnx" or peer is None else run_file(run, peer, export.form)
    pixels_NHWC = next(iter(data.test_pixels(IMAGES)))[0]
    expected_NC = OnnxFile(reference, spec, export).logits(pixels_NHWC.numpy())
    fed = fed_pixels(pixels_NHWC, spec, export.with_preprocess)
    size = max(1, min(8, manifest.max_batch, most_images(directory.parent) or manifest.max_batch))
    binary = server.takes_binary(name)
    answers = [server.infer(manifest, fed[at : at + size], binary) for at in range(0, len(fed), size)]
    apart = relative_error(np.concatenate(answers), expected_NC, manifest.precision)
    if reason := disagreement(apart, manifest.precision, "ONNX Runtime"):
        raise InputError(f"{name} at {url}: {reason.replace('its engine', 'the server')}; is another model loaded?")
    return Verified(name, version, len(fed), apart)


def _describe(manifest: Manifest, run: Run) -> tuple[NetworkSpec, ExportConfig]:
    """The network of the run that the manifest is about, and the form it was shipped in."""
    peer = manifest.network.peer
    spec, pictures = read_spec(run.network(1 if peer is None else peer)), manifest.preprocess
    if spec.class_names != manifest.labels or spec.framing != pictures.framing:
        raise InputError(
            f"{manifest.model} was shipped from run {manifest.run!r}, which is not {run.root}; name it with --run"
        )
    spec = replace(spec, mean=pictures.mean, std=pictures.std)  # as shipped: the run may have been trained anew since
    inside = pictures.inside
    return spec, ExportConfig(precision=manifest.precision, target=manifest.target, with_preprocess=inside)


def _faults(said: Metadata, manifest: Manifest) -> Iterator[str]:
    """What the server's metadata says that the manifest does not."""
    version = str(manifest.version)
    if said.versions is not None and version not in said.versions:
        yield f"versions {one_line(', '.join(said.versions)) or 'none'} instead of {version}"
    for key, described, values in (("inputs", manifest.input, said.inputs), ("outputs", manifest.output, said.outputs)):
        expected = [(described.name, DATATYPES[described.dtype], described.shape)]
        got = [(value.name, value.datatype, value.shape) for value in values]
        if got != expected:
            yield f"{key} {one_line(ascii(got))} instead of {expected}"
