"""Peers of a finished run as files of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from wmlc.accuracy import images_a_call, top1_percent
from wmlc.console import note, say
from wmlc.data import Data, normalise
from wmlc.errors import GateError, InputError, one_line
from wmlc.export.about import read_about
from wmlc.export.begun import is_as_asked
from wmlc.export.config import PLAN_SUFFIXES, ExportConfig, changed
from wmlc.export.precision import to_fp16, to_int8
from wmlc.export.to_onnx import CHECKED_BATCHES, export_onnx
from wmlc.files import check_writable, new_directory, new_file, refuse_existing, sha256, size_of
from wmlc.forms import INPUT, OUTPUT, open_as_written
from wmlc.models.checkpoint import SPEC_FILE, WEIGHTS_FILE, load_network, read_spec, save_network
from wmlc.records import NetworkSpec
from wmlc.run import Run, open_run_data, peer_name, read_family, select_peers
from wmlc.settings import option_of
from wmlc.table import Table

MOST_LAYERS = 20  # printed by --compare
FP16_IMAGES = 64  # training images that tell how large activations become
OF_PLANS = ("batch_range", "version_compatible", "hardware_compatible", "compare")


@dataclass(frozen=True)
class Extracted:
    """What was written; for a file in less than fp32 also its top-1 on the test set, and fp32's, in percent."""

    path: Path
    top1: float | None = None
    fp32_top1: float | None = None
    test_images: int | None = None

    def accuracy(self, form: str) -> str:
        """The accuracy in words, beside fp32's; empty where it was not measured."""
        if self.top1 is None or self.fp32_top1 is None:
            return ""
        how = "ONNX Runtime on the CPU" + (", its Q/DQ computed in float" if form == "int8-gpu" else "")
        return (
            f"; top-1 {self.top1:.2f}, in fp32 {self.fp32_top1:.2f}: drop {self.fp32_top1 - self.top1:.2f} points "
            f"({self.test_images:,} test images, {how})"
        )


def extract(run: Run, wanted: str, out: Path, config: ExportConfig, *, force: bool) -> Iterator[Extracted]:
    """Write the peers `wanted` ("2", "all", "baseline") to `out`, yielding each as it is done.

    A name that ends in `.onnx` makes ONNX files, in `.plan` or `.engine` TensorRT plans, any other a directory with
    `spec.json` and `weights.safetensors`. With "all", `family.onnx` becomes `family-peer1.onnx`, `family-baseline.onnx`
    …, and `DIR` gets `DIR/peer1`, `DIR/baseline` …. Raises `InputError` before anything is written where an
    output exists (unless `force`, or it is of an extract of all that was stopped), the peer does not exist or the run
    is not finished, and `GateError` at the end for files that lost more than `config.max_drop`, which are not written.
    """
    config = _fitting(out, config)
    family = read_family(run)
    targets = {peer: _target(out, peer) if wanted == "all" else out for peer in select_peers(family, wanted)}
    some_missing, train_images = not all(target.exists() for target in targets.values()), family.data.train
    for peer, target in targets.items():
        of_us = some_missing and is_as_asked(target, sha256_of_weights(run, peer), config, train_images)
        refuse_existing(target, force or of_us, None if out.suffix else _is_network)
    if not out.suffix:
        for peer, target in targets.items():
            _copy_network(run.network(peer), target)
            yield Extracted(target)
        return
    data, missed = _data_for(run, config), []
    for peer, target in targets.items():
        try:
            yield write_file(run, peer, target, data, config)
        except GateError as error:
            missed.append(f"{target} was not written: {peer_name(peer)} {error}")
    if missed:
        raise GateError("; ".join(missed))


def _data_for(run: Run, config: ExportConfig) -> Data | None:
    """The run's data set; an fp32 file needs none, and does without one that is gone."""
    if config.precision != "fp32" or config.compare or config.data_root:
        return open_run_data(run, config.data_root)
    try:
        return open_run_data(run)
    except InputError:
        return None


def print_extracted(run: Run, wanted: str, out: Path, config: ExportConfig, *, force: bool) -> None:
    """Extract, and say what was written."""
    for made in extract(run, wanted, out, config, force=force):
        say(f"wrote {made.path} ({size_of(made.path):,} bytes)" + made.accuracy(config.form))


def run_file(run: Run, peer: int, form: str, suffix: str = ".onnx") -> Path:
    """Where the run keeps a network's file in a form (fp32, fp16, int8-cpu, int8-gpu)."""
    return _target(run.onnx / (f"family{suffix}" if form == "fp32" else f"family-{form}{suffix}"), peer)


def images_to_check(run: Run, data: Data | None) -> Tensor:
    """uint8 [N, H, W, C] to hold an exported file against torch: training images, a few of them over and over.

    Where they are gone, noise takes their place, and a note says so.
    """
    count, record = max(CHECKED_BATCHES), read_family(run).data
    if data is None or not data.train_count():
        note("the run's training images are not where they were; the file is checked on noise instead")
        channels, height, width = record.input_shape
        shape, generator = (count, height, width, channels), torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    have = min(count, record.train)
    return data.train_pixels(have)[torch.arange(count) % have]


def fp32_file(run: Run, peer: int, data: Data | None, with_preprocess: bool, elsewhere: Path) -> Path:
    """A network's fp32 file, of which every other form is made: exported once for its weights and kept in the run.

    With preprocessing inside it is a file of its own. Where the run is read-only, it goes to the directory `elsewhere`.
    """
    form = "pixels" if with_preprocess else "fp32"
    file, weights_sha256 = run_file(run, peer, form), sha256_of_weights(run, peer)
    if is_of(file, weights_sha256):
        return file
    if not os.access(run.root, os.W_OK):
        file = elsewhere / file.name
    directory = run.network(peer)
    export_onnx(
        load_network(directory), read_spec(directory), file, images_to_check(run, data),
        with_preprocess=with_preprocess, weights_sha256=weights_sha256,
    )  # fmt: skip
    return file


def sha256_of_weights(run: Run, peer: int) -> str | None:
    """The hash of a network's weights; None where there are none."""
    weights = run.network(peer) / WEIGHTS_FILE
    return sha256(weights) if weights.is_file() else None


def is_of(file: Path, weights_sha256: str | None) -> bool:
    """Whether there is such an ONNX file, and it was exported from these weights."""
    try:
        return file.is_file() and weights_sha256 is not None and read_about(file).weights_sha256 == weights_sha256
    except InputError:
        return False


def write_file(
    run: Run, peer: int, target: Path, data: Data | None, config: ExportConfig, *, measured: bool = True
) -> Extracted:
    """Write a network of the run to `target`, an ONNX file or a plan, as `convert` does."""
    check_writable(target)
    with tempfile.TemporaryDirectory() as work:
        fp32 = fp32_file(run, peer, data, config.with_preprocess, Path(work))
        return convert(fp32, read_spec(run.network(peer)), target, data, config, measured=measured)


def convert(
    fp32: Path, spec: NetworkSpec, target: Path, data: Data | None, config: ExportConfig, *, measured: bool = True
) -> Extracted:
    """Write the network in the ONNX file `fp32`, which `spec` describes, to `target`, an ONNX file or a plan.

    Fp32 needs no data set. In less, and if `measured`, its top-1 on the test set through ONNX Runtime is compared with
    fp32's. Raises `GateError` where it lost more than `config.max_drop`. Nothing stays where it fails.
    """
    check_writable(target)
    with tempfile.TemporaryDirectory() as work:
        file = fp32 if config.precision == "fp32" else Path(work) / f"{target.stem}-{config.form}.onnx"
        if file != fp32:
            assert data is not None
            most = config.calibration if config.precision == "int8" else FP16_IMAGES
            fed = fed_pixels(data.train_pixels(min(most, data.record.train)), spec, config.with_preprocess)
            if config.precision == "fp16":
                to_fp16(fp32, file, fed)
            else:
                to_int8(fp32, file, fed, target=config.target or "cpu", calibrator=config.calibrator)
        top1 = _compare_top1(fp32, file, spec, data, config) if data and measured and file != fp32 else None
        _place(file, target, config)
        if config.compare:
            assert data is not None
            _print_layers(file, fed_pixels(data.train_pixels(1), spec, False))
    return Extracted(target, *top1, data.test_count()) if top1 and data else Extracted(target)


def _place(onnx_file: Path, target: Path, config: ExportConfig) -> None:
    """Give the finished ONNX file its name, or build the plan from it."""
    if target.suffix in PLAN_SUFFIXES:
        from wmlc.export.to_tensorrt import extract_plan

        extract_plan(
            onnx_file, target, batch_range=config.batch_range, version_compatible=config.version_compatible,
            hardware_compatible=config.hardware_compatible,
        )  # fmt: skip
        return
    if onnx_file != target:  # the run's own
        with new_file(target) as aside:
            aside.write_bytes(onnx_file.read_bytes())


def _print_layers(onnx_file: Path, images_NCHW: np.ndarray) -> None:
    """The layers of a plan of `onnx_file` that are furthest from ONNX Runtime's, by polygraphy."""
    from wmlc.export.layer_by_layer import compare_layers

    apart = sorted(compare_layers(onnx_file, images_NCHW), key=lambda layer: -layer[1])
    rows = [[name, f"{value:.2e}"] for name, value in apart[:MOST_LAYERS]]
    title = f"TensorRT against ONNX Runtime, {len(apart)} layers, the furthest first"
    Table(["layer", "apart"], rows, title).show()


def _fitting(out: Path, config: ExportConfig) -> ExportConfig:
    """`config` with what `out`'s ending settles; `InputError` where they do not go together."""
    if out.suffix not in ("", ".onnx", *PLAN_SUFFIXES):
        raise InputError(
            f"--out must end in .onnx, .plan or .engine, or have no ending and become a directory; got {out}"
        )
    if not out.suffix and (config.precision != "fp32" or config.with_preprocess):
        asked = "--with-preprocess" if config.with_preprocess else f"--precision {config.precision}"
        raise InputError(f"{asked} goes into an ONNX file or a plan; give --out a name ending in .onnx, got {out}")
    if not out.suffix and config.data_root:
        raise InputError(
            f"--data-root is for what is measured of an ONNX file or a plan; {out} is a copy, leave it out"
        )
    of_plans = [option_of(config, name) for name in changed(config, OF_PLANS)]
    if of_plans and out.suffix not in PLAN_SUFFIXES:
        raise InputError(f"{', '.join(of_plans)} is about TensorRT plans; give --out a name ending in .plan, got {out}")
    if out.suffix not in PLAN_SUFFIXES:
        return config
    from wmlc.trt_machine import require_tensorrt

    require_tensorrt(f"--out {out}", "--out FILE.onnx")
    if config.compare and config.with_preprocess:
        raise InputError("--compare takes normalised images; leave --with-preprocess out")
    if config.target == "cpu":
        raise InputError(f"a TensorRT plan takes int8 of --target gpu, got cpu for {out}")
    return replace(config, target="gpu") if config.precision == "int8" else config


def _copy_network(directory: Path, target: Path) -> None:
    network = load_network(directory)
    with new_directory(target) as aside:
        save_network(network, read_spec(directory), aside)


def _is_network(directory: Path) -> bool:
    """Whether a directory holds what `_copy_network` writes, and nothing of anybody else."""
    try:
        read_spec(directory)
    except InputError:
        return False
    return {path.name for path in directory.iterdir()} <= {SPEC_FILE, WEIGHTS_FILE}


def _target(out: Path, peer: int) -> Path:
    return out.with_name(f"{out.stem}-{peer_name(peer)}{out.suffix}") if out.suffix else out / peer_name(peer)


def fed_pixels(pixels_NHWC: Tensor, spec: NetworkSpec, with_preprocess: bool) -> np.ndarray:
    """What a file takes for uint8 [N, H, W, C] pixels: themselves, or normalised float32 [N, C, H, W]."""
    return pixels_NHWC.numpy() if with_preprocess else normalise(pixels_NHWC, spec.mean, spec.std).contiguous().numpy()


class OnnxFile:
    """An ONNX file in ONNX Runtime on the CPU, all cores."""

    def __init__(self, path: Path, spec: NetworkSpec, config: ExportConfig) -> None:
        as_written = config.form == "int8-gpu"  # as a GPU will compute it
        try:
            self._session = open_as_written(path) if as_written else _open(path, config.precision)
        except Exception as error:  # ONNX Runtime has no class of its own for them
            raise InputError(f"ONNX Runtime cannot open {path} ({one_line(str(error))}); extract it again") from None
        self._path, self._spec, self._with_preprocess = path, spec, config.with_preprocess

    def logits(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        fed = fed_pixels(torch.from_numpy(pixels_BHWC), self._spec, self._with_preprocess)
        try:
            return np.asarray(self._session.run([OUTPUT], {INPUT: fed})[0])
        except Exception as error:  # as above
            raise InputError(f"ONNX Runtime cannot run {self._path} ({one_line(str(error))})") from None


def _open(path: Path, precision: str) -> onnxruntime.InferenceSession:
    """Of fp16 without the blocked layout, whose search ends the process at some transformers (its issue 28392)."""
    left_out = ["NchwcTransformer"] if precision == "fp16" else []
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"], disabled_optimizers=left_out)


def _compare_top1(fp32: Path, file: Path, spec: NetworkSpec, data: Data, config: ExportConfig) -> tuple[float, float]:
    """Top-1 of `file` and of `fp32` in percent on the whole test set; `GateError` where too much is lost."""
    _, height, width = spec.input_shape
    engines = {path: OnnxFile(path, spec, config) for path in (file, fp32)}
    found, failed = top1_percent(engines, data.test_pixels(images_a_call(height, width)), data.test_count())
    if failed:
        raise InputError(next(iter(failed.values())))
    top1, fp32_top1 = found[file], found[fp32]
    if config.max_drop is not None and fp32_top1 - top1 > config.max_drop:
        raise GateError(
            f"in {config.form} loses {fp32_top1 - top1:.2f} top-1 points ({top1:.2f} after {fp32_top1:.2f}), "
            f"--max-drop allows {config.max_drop:g}"
        )
    return top1, fp32_top1
