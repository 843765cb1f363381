"""What is measured: the networks of a run, or ONNX files of any origin, the first of them being the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wmlc.accuracy import images_a_call
from wmlc.bench.config import UNSAID, BenchConfig, FileSettings
from wmlc.bench.engines import NETWORK, ONNX, engine_class
from wmlc.bench.engines.worker import Feed
from wmlc.bench.foreign import OnnxFile, choose_output
from wmlc.bench.layers import FileCost, file_cost, file_precision
from wmlc.bench.pictures import Fitted, TestImages, fit, made_up_pixels, match_classes, shape_of
from wmlc.data.normalisation import numbers
from wmlc.errors import InputError, plain
from wmlc.files import sha256
from wmlc.models.checkpoint import WEIGHTS_FILE, load_network, read_spec
from wmlc.models.cost import total_cost
from wmlc.records import About, Cost
from wmlc.run import Run, peer_name, read_family, select_peers

MADE_UP_IMAGES = 64  # where there is no data set

Key = tuple[int, str]  # a network's number and its precision
Files = Mapping[str, Mapping[Key, Path | InputError]]  # by what an engine takes: `ONNX`, `PLAN`; or why there is none


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network to be measured."""

    peer: int  # 0: the baseline
    name: str
    precision: str  # as asked for
    source: Path  # what the engine opens: the ONNX file, the plan, or the directory
    file_bytes: int | None  # of the file that the engine opens and what it keeps in others, or the network's weights
    file_sha256: str | None
    onnx_file: Path
    directory: Path | None  # None: a file of unknown origin
    input_shape: tuple[int, int, int]  # C, H, W
    batch: int | None  # the only batch size that it takes, if so
    feed: Feed
    cost: Cost | FileCost
    about: About = field(default_factory=About)
    no_file: str | None = None  # why there is nothing that the engine could open
    # Of a file of unknown origin:
    output: str | None = None  # which one holds the scores
    order: tuple[int, ...] | None = None  # the data set's number of each of its classes; None: the same
    unmatched: str | None = None  # why its classes are not the data set's
    told: str = ""  # what it is shown, and what of it is read
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.peer, self.precision


def read_networks(run: Run) -> dict[int, Subject]:
    """The networks of `run` by number, the baseline first, as torch takes them; costs are counted on them."""
    return {peer: _read_network(run, peer) for peer in select_peers(read_family(run), "all")}


def run_subjects(networks: Mapping[int, Subject], config: BenchConfig, files: Files, engine: str) -> list[Subject]:
    """The networks of a run, as `read_networks` gives them, in each precision as `engine` opens them."""
    takes = engine_class(engine).takes
    precisions = [name for name in config.precisions if takes != NETWORK or name == "fp32"]
    keys = [(peer, precision) for precision in precisions for peer in networks]
    for kind in {ONNX, takes} - {NETWORK}:
        missing = [f"{peer_name(peer)} in {name}" for peer, name in keys if (peer, name) not in files.get(kind, {})]
        if missing:
            raise InputError(f"there is no file of {', '.join(missing)}; extract them first")
    return [
        replace(
            networks[peer],
            name=peer_name(peer) + ("" if precision == "fp32" else f" {precision}"),
            precision=precision,
            **_of_files(files[ONNX][peer, precision], None if takes == NETWORK else files[takes][peer, precision]),
        )
        for peer, precision in keys
    ]


def _of_files(onnx_file: Path | InputError, opened: Path | InputError | None) -> dict[str, Any]:
    """The fields of a subject that are about its files. Args: the one that the engine opens; None for torch."""
    if isinstance(opened, InputError):
        return {"file_bytes": None, "file_sha256": None, "no_file": str(opened)}
    if isinstance(onnx_file, InputError):
        return {"notes": (f"there is no ONNX file: {onnx_file}",)}
    if opened is None:
        return {"onnx_file": onnx_file}
    size, digest = opened.stat().st_size, sha256(opened)
    return {"onnx_file": onnx_file, "source": opened, "file_bytes": size, "file_sha256": digest}


def _read_network(run: Run, peer: int) -> Subject:
    """A network of the run as torch takes it."""
    directory = run.network(peer)
    spec, weights = read_spec(directory), directory / WEIGHTS_FILE
    return Subject(
        peer=peer,
        name=peer_name(peer),
        precision="fp32",
        source=directory,
        file_bytes=weights.stat().st_size,
        file_sha256=sha256(weights),
        onnx_file=directory,
        directory=directory,
        input_shape=spec.input_shape,
        batch=None,
        feed=Feed(mean=spec.mean, std=spec.std),
        cost=total_cost(load_network(directory), spec.input_shape),
        about=spec.about,
    )


def file_subjects(files: Sequence[OnnxFile], fitted: Fitted | None, said: FileSettings = UNSAID) -> list[Subject]:
    """ONNX classifiers with one input of images, the first being the baseline.

    Args: test images as `fit_to_files` gives them; what the caller has `said` of files that do not say it themselves.
    Raises `InputError` for what is no such file, and where two of them take images of different sizes.
    """
    subjects = [_file_subject(file, number, fitted, said) for number, file in enumerate(files)]
    if said.output is not None and all(subject.output != said.output for subject in subjects):
        raise InputError(f"--output {said.output}: no file has an output of that name; {subjects[0].told}")
    names = _distinct([file.path.with_suffix("") for file in files])
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


def fit_to_files(files: Sequence[OnnxFile], data: TestImages) -> Fitted:
    """The test images as the first of the files takes them."""
    first = files[0]
    return fit(data, _shape(first, data), first.about.framing if first.about else None)


def _file_subject(file: OnnxFile, number: int, fitted: Fitted | None, said: FileSettings) -> Subject:
    path, data = file.path, fitted.images if fitted else None
    shape = _shape(file, data)
    channels, height, width = shape
    classes = len(fitted.class_names) if fitted else None
    asked = said.output if any(value.name == said.output for value in file.outputs) else None
    output = choose_output(file, classes, asked)
    cost = file_cost(path, (height, width, channels) if file.channels_last else shape)
    if cost.macs == 0:
        raise InputError(f"{path} has no convolution or matrix product that is known here; name a classifier with some")
    mean, std, pixels, assumed = _pixels(file, channels, fitted, said)
    about = file.about
    matched = match_classes(about.class_names if about else None, fitted.class_names) if fitted else None
    layout = "[N, H, W, C]" if file.channels_last else "[N, C, H, W]"
    told = [
        f"input {plain(file.input.name)}, {file.input.dtype} {layout} of {height} x {width} x {channels}",
        pixels,
        *([f"pictures {fitted.words}"] if fitted else []),
        f"output {output}",
        *([f"classes {matched.words}"] if matched else []),
    ]
    return Subject(
        peer=number,
        name=path.stem,
        precision=about.precision if about else file_precision(path),
        source=path,
        file_bytes=path.stat().st_size + file.more_bytes,
        file_sha256=sha256(path),
        onnx_file=path,
        directory=None,
        input_shape=shape,
        batch=file.batch,
        feed=Feed(mean=mean, std=std, dtype=file.input.dtype, channels_last=file.channels_last),
        cost=cost,
        about=About(ratio=about.ratio, achieved_ratio=about.achieved_ratio, top1=about.top1) if about else About(),
        output=output.name,
        order=matched.order if matched else None,
        unmatched=matched.fault if matched else None,
        told="; ".join(told),
        notes=tuple(note for note in (cost.unknown, assumed if data else None) if note),
    )


def _shape(file: OnnxFile, data: TestImages | None) -> tuple[int, int, int]:
    """C, H, W of the images that a file is shown; sides that it leaves open are the data set's."""
    channels, height, width = file.sides
    if channels and height and width:
        return channels, height, width
    if data is None:
        raise InputError(
            f"{file.path} takes images of no fixed size ({file.input}); name a data set with --data, whose size they "
            "shall have, or export it for the size that is served"
        )
    own = shape_of(data)
    return channels or own[0], height or own[1], width or own[2]


def _pixels(
    file: OnnxFile, channels: int, fitted: Fitted | None, said: FileSettings
) -> tuple[list[float] | None, list[float] | None, str, str | None]:
    """Mean and deviation that pixels are brought to, in words, and a note where that was assumed."""
    if file.input.dtype == "uint8":
        return None, None, "pixels 0 … 255 as they are" + ("" if fitted else ", made up"), None
    if file.about is not None:
        mean, std, whose = list(file.about.mean), list(file.about.std), "as the file says"
    elif said.mean is not None and said.std is not None:
        mean, std = numbers("--mean", said.mean, channels), numbers("--std", said.std, channels)
        whose = "as asked for"
    elif fitted is None:  # somehow around 0, for times alone
        return [0.5] * channels, [0.25] * channels, "made up, as no data set is named", None
    else:
        mean, std = list(fitted.images.record.mean), list(fitted.images.record.std)
        whose = "the data set's, assumed"
    words = f"pixels 0 … 1, less {_three(mean)}, over {_three(std)} ({whose})"
    assumed = (
        f"top-1 assumes pixels 0 … 1 with the data set's mean {_three(mean)} and deviation {_three(std)}, as the file "
        "says neither; say what it was trained with: --mean and --std (--mean 0 --std 1/255 for pixels 0 … 255)"
    )
    return mean, std, words, assumed if "assumed" in whose else None


def _three(values: Sequence[float]) -> str:
    shown = list(dict.fromkeys(f"{value:.3g}" for value in values))
    return shown[0] if len(shown) == 1 else ", ".join(f"{value:.3g}" for value in values)


def first_pixels(data: TestImages | None, subject: Subject, least: int) -> np.ndarray:
    """uint8 [N, H, W, C]: the first test images, or made-up ones; `InputError` where they do not fit the network."""
    channels, height, width = subject.input_shape
    if data is None:
        return made_up_pixels(subject.input_shape, MADE_UP_IMAGES)
    pixels_NHWC = next(iter(data.test_pixels(max(least, images_a_call(height, width)))))[0].numpy()
    if pixels_NHWC.shape[1:] != (height, width, channels):
        got = " x ".join(map(str, pixels_NHWC.shape[1:]))
        raise InputError(
            f"the test images are {got}, {subject.name} takes {height} x {width} x {channels} (height, width, "
            "channels); bench with the data set that the run was trained on"
        )
    return pixels_NHWC
