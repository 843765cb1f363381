"""A running server is asked whether it serves what was shipped: the same interface, the same answers.

N images, C channels, H height, W width
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from wmlc.accuracy import disagreement, parity
from wmlc.console import say, say_exactly
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.export.config import ExportConfig
from wmlc.export.extract import OnnxFile, fed_pixels, run_file
from wmlc.export.publish import models_in, newest_version, read_manifest
from wmlc.files import sha256
from wmlc.models.checkpoint import read_spec
from wmlc.records import Manifest, NetworkSpec
from wmlc.run import Run, open_run_data

IMAGES = 32
DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Verified:
    """A model that the server answers for as shipped; `apart` as `wmlc.accuracy.parity` measures it."""

    model: str
    version: int
    images: int
    apart: float


def verify(run: Run, repository: Path, url: str) -> Iterator[Verified]:
    """Ask the server at `url` (V2 inference protocol over HTTP) about every model in `repository`.

    Its metadata must equal the manifest, and its answers on test images of `run` those of ONNX Runtime on the shipped
    file, within the bounds of the bench. Raises `InputError` for the first thing that differs.
    """
    newest = [model / str(newest_version(model)) for model in models_in(repository)]
    manifests = {path: read_manifest(path) for path in newest}
    if not manifests:
        raise InputError(f"there is no shipped model in {repository}; ship one, or name the repository with --out")
    client = _connect(url)
    data = open_run_data(run)
    try:
        for directory, manifest in manifests.items():
            yield _verify_model(client, url, directory, manifest, run, data)
    finally:
        client.close()


def print_verified(run: Run, repository: Path, url: str, as_json: bool) -> None:
    """Verify, and say what was found: a line a model, or JSON."""
    found = []
    for one in verify(run, repository, url):
        found.append(asdict(one))
        if not as_json:
            say(
                f"{one.model} version {one.version}: metadata equals the manifest, and the answers on {one.images} "
                f"test images ONNX Runtime's (apart by {one.apart:.2g})"
            )
    if as_json:
        say_exactly(json.dumps(found, indent=2))


def _connect(url: str) -> Any:
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme == "http" and parts.hostname and (parts.port or 80) and parts.path in ("", "/")
    except ValueError:  # a port that is none
        well_formed = False
    if not well_formed:
        raise InputError(f"--verify takes an address like http://127.0.0.1:8000, got {url}")
    try:
        from tritonclient.http import InferenceServerClient
    except ImportError:
        raise InputError(
            "--verify needs the package tritonclient, which is not installed (pip install 'wmlc[serve]')"
        ) from None
    address = url.removeprefix("http://").rstrip("/")
    client = InferenceServerClient(address, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S)
    try:
        live = client.is_server_live()
    except OSError as error:
        raise InputError(f"no server answers at {url} ({error.strerror or error}); start it, or name another") from None
    if not live:
        raise InputError(f"the server at {url} says that it is not live; look into its log")
    return client


def _verify_model(client: Any, url: str, directory: Path, manifest: Manifest, run: Run, data: Data) -> Verified:
    name, version = manifest.model, manifest.version
    file = directory / manifest.file
    if not file.is_file() or sha256(file) != manifest.sha256:
        raise InputError(f"{file} is not the file of its manifest; ship it again")
    said = _ask(url, name, client.get_model_metadata, name, str(version))
    for fault in _faults(said, manifest):
        raise InputError(f"the server at {url} has {name} with {fault}; load the shipped version {version}")
    spec, export = _describe(manifest, run)
    peer = manifest.network.peer
    reference = file if file.suffix == ".onnx" or peer is None else run_file(run, peer, export.form)
    pixels_NHWC = next(iter(data.test_pixels(IMAGES)))[0]
    expected_NC = OnnxFile(reference, spec, export).logits(pixels_NHWC.numpy())
    fed = fed_pixels(pixels_NHWC, spec, export.with_preprocess)
    size = max(1, min(8, manifest.max_batch))
    answers = [_ask(url, name, _infer, client, manifest, fed[at : at + size]) for at in range(0, len(fed), size)]
    apart = parity(np.concatenate(answers), expected_NC, manifest.precision)
    if reason := disagreement(apart, manifest.precision, "ONNX Runtime"):
        raise InputError(f"{name} at {url}: {reason.replace('its engine', 'the server')}; is another model loaded?")
    return Verified(name, version, len(fed), apart)


def _describe(manifest: Manifest, run: Run) -> tuple[NetworkSpec, ExportConfig]:
    """The network of the run that the manifest is about, and the form it was shipped in."""
    peer = manifest.network.peer
    spec = read_spec(run.network(1 if peer is None else peer))
    if spec.class_names != manifest.labels or spec.mean != manifest.preprocess.mean:
        raise InputError(
            f"{manifest.model} was shipped from run {manifest.run!r}, which is not {run.root}; name it with --run"
        )
    inside = manifest.preprocess.inside
    return spec, ExportConfig(precision=manifest.precision, target=manifest.target, with_preprocess=inside)


def _faults(said: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """What the server's metadata says that the manifest does not."""
    version = str(manifest.version)
    if "versions" in said and version not in said["versions"]:
        yield f"versions {', '.join(said['versions']) or 'none'} instead of {version}"
    for key, described in (("inputs", manifest.input), ("outputs", manifest.output)):
        expected = [(described.name, DATATYPES[described.dtype], described.shape)]
        got = [(value["name"], value["datatype"], [int(side) for side in value["shape"]]) for value in said[key]]
        if got != expected:
            yield f"{key} {got} instead of {expected}"


def _infer(client: Any, manifest: Manifest, fed: np.ndarray) -> np.ndarray:
    from tritonclient.http import InferInput, InferRequestedOutput

    binary = "binary_tensor_data" in client.get_server_metadata().get("extensions", [])
    given = InferInput(manifest.input.name, list(fed.shape), DATATYPES[manifest.input.dtype])
    given.set_data_from_numpy(fed, binary_data=binary)
    wanted = InferRequestedOutput(manifest.output.name, binary_data=binary)
    result = client.infer(manifest.model, [given], outputs=[wanted], model_version=str(manifest.version))
    return result.as_numpy(manifest.output.name).reshape(len(fed), -1)


def _ask(url: str, name: str, call: Any, *args: Any) -> Any:
    from tritonclient.utils import InferenceServerException

    try:
        return call(*args)
    except (InferenceServerException, OSError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"the server at {url} does not serve {name} as shipped ({text}); load it there") from None
