"""What is measured: the networks of a run, or ONNX files of any origin, the first of them being the baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wmlc import records
from wmlc.accuracy import images_a_call
from wmlc.bench.config import BenchConfig
from wmlc.bench.engines import NETWORK, ONNX, check_one_input, engine_class
from wmlc.bench.engines.worker import Feed
from wmlc.bench.layers import file_cost, file_precision
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.models.checkpoint import WEIGHTS_FILE, load_network, read_spec
from wmlc.models.cost import total_cost
from wmlc.records import About, Cost
from wmlc.run import Run, peer_name, read_family, select_peers

MADE_UP_IMAGES = 64  # where there is no data set

Key = tuple[int, str]  # a network's number and its precision
Files = Mapping[str, Mapping[Key, Path]]  # by what an engine takes: `ONNX`, `PLAN`


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network to be measured."""

    peer: int  # 0: the baseline
    name: str
    precision: str  # as asked for
    source: Path  # what the engine opens: the ONNX file, the plan, or the directory
    weights: Path  # the file whose size and hash count
    more_bytes: int = 0  # of other files that hold its weights
    onnx_file: Path
    directory: Path | None  # None: a file of unknown origin
    input_shape: tuple[int, int, int]  # C, H, W
    batch: int | None  # the only batch size that it takes, if so
    feed: Feed
    cost: Cost
    about: About = field(default_factory=About)

    @property
    def key(self) -> Key:
        return self.peer, self.precision


def run_subjects(run: Run, config: BenchConfig, files: Files, engine: str) -> list[Subject]:
    """The networks of `run` as `engine` opens them, the baseline first; costs are counted on the networks."""
    takes, family = engine_class(engine).takes, read_family(run)
    precisions = [name for name in config.precisions if takes != NETWORK or name == "fp32"]
    keys = [(peer, precision) for precision in precisions for peer in select_peers(family, "all")]
    for kind in {ONNX, takes} - {NETWORK}:
        missing = [f"{peer_name(peer)} in {name}" for peer, name in keys if (peer, name) not in files.get(kind, {})]
        if missing:
            raise InputError(f"there is no file of {', '.join(missing)}; extract them first")
    networks = {peer: _read_network(run, peer) for peer, _ in keys}
    return [
        replace(
            networks[peer],
            name=peer_name(peer) + ("" if precision == "fp32" else f" {precision}"),
            precision=precision,
            source=networks[peer].source if takes == NETWORK else files[takes][peer, precision],
            weights=networks[peer].weights if takes == NETWORK else files[takes][peer, precision],
            onnx_file=files[ONNX][peer, precision],
        )
        for peer, precision in keys
    ]


def _read_network(run: Run, peer: int) -> Subject:
    """A network of the run as torch takes it."""
    directory = run.network(peer)
    spec = read_spec(directory)
    return Subject(
        peer=peer,
        name=peer_name(peer),
        precision="fp32",
        source=directory,
        weights=directory / WEIGHTS_FILE,
        onnx_file=directory,
        directory=directory,
        input_shape=spec.input_shape,
        batch=None,
        feed=Feed(mean=spec.mean, std=spec.std),
        cost=total_cost(load_network(directory), spec.input_shape),
        about=spec.about,
    )


def file_subjects(paths: Sequence[Path], data: Data | None) -> list[Subject]:
    """ONNX classifiers with one input of images, the first being the baseline.

    Raises `InputError` for what is no such file, and where two of them take images of different sizes.
    """
    subjects = [_read_file(path, number, data) for number, path in enumerate(paths)]
    names = _distinct([path.with_suffix("") for path in paths])
    subjects = [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]
    shapes = {subject.input_shape for subject in subjects}
    if len(shapes) > 1:
        got = ", ".join(f"{subject.name}: {' x '.join(map(str, subject.input_shape))}" for subject in subjects)
        raise InputError(f"all files must take images of one size (channels, height, width), got {got}")
    return subjects


def _distinct(paths: Sequence[Path]) -> list[str]:
    """As short a name for each as tells them apart: of as many last parts as that takes, else with a number."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path.name}" for number, path in enumerate(paths)]


def _read_file(path: Path, number: int, data: Data | None) -> Subject:
    shape, dtype, about, more_bytes = _read_onnx(path)
    if len(shape) != 4 or dtype not in ("float32", "float16", "uint8"):
        raise InputError(f"{path} takes {dtype} {shape}; bench needs one input of images, [N, C, H, W] or [N, H, W, C]")
    batch, *sides = shape
    channels_last = sides[0] not in (1, 3) and sides[2] in (1, 3)
    channels, height, width = (sides[2], *sides[:2]) if channels_last else sides
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        raise InputError(f"{path} takes images of no fixed size ({shape}); export it for the size that is served")
    params, macs = file_cost(path)
    if not macs:
        raise InputError(f"{path} has no convolution or matrix product that is known here; name a classifier with some")
    mean, std = _numbers(about.get("mean"), channels), _numbers(about.get("std"), channels)
    if dtype == "uint8":
        mean = std = None
    elif mean is None or std is None or min(std) <= 0:  # not ours: as the data set is, or somehow around 0
        mean, std = (data.record.mean, data.record.std) if data else ([0.5] * channels, [0.25] * channels)
    return Subject(
        peer=number,
        name=path.stem,
        precision=file_precision(path),
        source=path,
        weights=path,
        more_bytes=more_bytes,
        onnx_file=path,
        directory=None,
        input_shape=(channels, height, width),
        batch=batch if isinstance(batch, int) else None,
        feed=Feed(mean=mean, std=std, dtype=dtype, channels_last=channels_last),
        cost=Cost(params, macs),
        about=_about(about),
    )


def _numbers(said: Any, count: int) -> list[float] | None:
    """So many numbers as the metadata has them; None where it says something else."""
    known = isinstance(said, list) and len(said) == count and all(type(each) in (int, float) for each in said)
    return [float(each) for each in said] if known and all(map(math.isfinite, said)) else None


def _about(said: Mapping[str, Any]) -> About:
    """What the metadata tells of ratio and accuracy; nothing where a value cannot be, as it is not ours then."""
    told = {key: said[key] for key in ("ratio", "achieved_ratio", "top1") if isinstance(said.get(key), float)}
    try:
        return records.parse(json.dumps(told), About, "its metadata", "description", "export it again")
    except InputError:
        return About()


def _read_onnx(path: Path) -> tuple[list[int | str], str, dict[str, Any], int]:
    """The shape (names for open dimensions) and type of the one input, the metadata, and bytes of weights elsewhere."""
    import onnx

    if path.exists() and not path.is_file():  # reading a pipe may never end
        raise InputError(f"{path} is not a readable ONNX file (no regular file); name a .onnx classifier")
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path))  # by its path, as weights in other files lie beside it
    except Exception as error:  # protobuf's and the checker's errors have no common class
        raise InputError(
            f"{path} is not a readable ONNX file ({type(error).__name__}); name a .onnx classifier"
        ) from None
    known = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    check_one_input(len(inputs), path)
    tensor = inputs[0].type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim]
    elsewhere = {
        entry.value for value in model.graph.initializer for entry in value.external_data if entry.key == "location"
    }
    more_bytes = sum((path.parent / name).stat().st_size for name in elsewhere)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return shape, dtype, dict(_metadata(model)), more_bytes


def _metadata(model: Any) -> Iterator[tuple[str, Any]]:
    for entry in model.metadata_props:
        try:
            yield entry.key, json.loads(entry.value)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or too deep
            yield entry.key, entry.value


def first_pixels(data: Data | None, subject: Subject, least: int) -> np.ndarray:
    """uint8 [N, H, W, C]: the first test images, or made-up ones; `InputError` where they do not fit the network."""
    channels, height, width = subject.input_shape
    if data is None:
        shape = (MADE_UP_IMAGES, height, width, channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels_NHWC = next(iter(data.test_pixels(max(least, images_a_call(height, width)))))[0].numpy()
    if pixels_NHWC.shape[1:] != (height, width, channels):
        got = " x ".join(map(str, pixels_NHWC.shape[1:]))
        raise InputError(
            f"the test images are {got}, {subject.name} takes {height} x {width} x {channels} (height, width, "
            "channels); bench with the data set that the run was trained on"
        )
    return pixels_NHWC
