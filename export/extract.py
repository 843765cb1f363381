"""Peers of a finished run as files of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.export.to_onnx import CHECKED_BATCHES, export_onnx
from wmlc.files import new_directory, refuse_existing
from wmlc.models.checkpoint import SPEC_FILE, load_network, read_spec, save_network
from wmlc.run import Run, open_run_data, peer_name, read_family, select_peers


def extract(run: Run, wanted: str, out: Path, *, force: bool, with_preprocess: bool) -> Iterator[Path]:
    """Write the peers `wanted` ("2", "all", "baseline") to `out`, yielding each path as it is done.

    A name that ends in `.onnx` makes ONNX files, any other a directory with `spec.json` and
    `weights.safetensors`. With "all", `family.onnx` becomes `family-peer1.onnx`, `family-baseline.onnx` …, and
    `DIR` gets `DIR/peer1`, `DIR/baseline` …. Raises `InputError` before anything is written where an
    output exists (unless `force`), the peer does not exist or the run is not finished.
    """
    if out.suffix not in ("", ".onnx"):
        raise InputError(f"--out must end in .onnx, or have no ending and become a directory; got {out}")
    as_onnx = out.suffix == ".onnx"
    if with_preprocess and not as_onnx:
        raise InputError(f"--with-preprocess goes into an ONNX file; give --out a name ending in .onnx, got {out}")
    peers = select_peers(read_family(run), wanted)
    targets = {peer: _target(out, peer, as_onnx) if wanted == "all" else out for peer in peers}
    for target in targets.values():
        refuse_existing(target, force, marker=None if as_onnx else SPEC_FILE)
    pixels_NHWC = open_run_data(run).train_pixels(max(CHECKED_BATCHES)) if as_onnx else None
    for peer, target in targets.items():
        if pixels_NHWC is not None:
            export_onnx(run.network(peer), target, pixels_NHWC, with_preprocess=with_preprocess)
        else:
            network, spec = load_network(run.network(peer)), read_spec(run.network(peer))
            with new_directory(target) as aside:
                save_network(network, spec, aside)
        yield target


def onnx_files(run: Run, data: Data) -> Iterator[tuple[int, Path]]:
    """Each network's `onnx/family-….onnx` in the run, made where it is missing or older than the weights."""
    for peer in select_peers(read_family(run), "all"):
        file = _target(run.onnx / "family.onnx", peer, as_onnx=True)
        weights = run.network(peer) / "weights.safetensors"
        if not file.exists() or (weights.exists() and file.stat().st_mtime < weights.stat().st_mtime):
            export_onnx(run.network(peer), file, data.train_pixels(max(CHECKED_BATCHES)))
        yield peer, file


def _target(out: Path, peer: int, as_onnx: bool) -> Path:
    return out.with_name(f"{out.stem}-{peer_name(peer)}.onnx") if as_onnx else out / peer_name(peer)
