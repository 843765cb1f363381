"""An ONNX file of any origin: whether it can be read and why not, what it takes, what it gives, what it says of itself.

What others wrote into a file's metadata under our names is not believed: it is ours only where all of it is.

N images, C channels, H height, W width, K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlc.bench.engines import LONGEST_SAID, check_one_input
from wmlc.bench.graphs import MOST_INLINED, overgrown
from wmlc.errors import InputError, one_line, plain
from wmlc.forms import PRECISIONS, about_of
from wmlc.records import FileAbout

IMAGE_TYPES = ("float32", "float64", "float16", "uint8")
LFS = b"version https://git-lfs"  # how the pointer begins that stands for a large file

Dims = tuple["int | str", ...]  # a word where a dimension is open


@dataclass(frozen=True)
class Value:
    """An input or an output: its type in words ("float32", "sequence"), and its dimensions, None where it has none."""

    name: str
    dtype: str
    dims: Dims | None

    def __str__(self) -> str:
        shape = "of no known shape" if self.dims is None else f"[{', '.join(map(str, self.dims))}]"
        return f"{plain(self.name)}: {self.dtype} {shape}"

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float16", "float32", "float64", "bfloat16")

    @property
    def is_number(self) -> bool:
        return self.is_float or self.dtype.removeprefix("u").startswith("int")

    @property
    def classes(self) -> int | str | None:
        """K of scores [N, K], ones beside it left out; a word where it is open, None where this can be no scores."""
        if not self.is_number:
            return None
        if self.dims is None:
            return "?"
        sides = [side for side in self.dims[1:] if side != 1]
        if len(self.dims) < 2 or len(sides) > 1:
            return None
        return sides[0] if sides else 1

    @property
    def is_id(self) -> bool:
        """Class ids [N], or [N, 1]."""
        return self.is_number and not self.is_float and self.dims is not None and all(s == 1 for s in self.dims[1:])


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """What a file takes and gives, and what it says of itself, if it is one of ours."""

    path: Path
    input: Value
    batch: int | None  # the only one that it takes, if so
    sides: tuple[int | None, int | None, int | None]  # C, H, W; None: open
    channels_last: bool
    outputs: list[Value]
    about: FileAbout | None
    more_bytes: int  # of weights in other files


def read_file(path: Path) -> OnnxFile:
    """The file at `path`; `InputError` that says why it cannot be read, or what about it is no classifier's."""
    model = _load(path)
    known = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    check_one_input(len(inputs), path)
    taken = _value(inputs[0])
    batch, sides, channels_last = _layout(path, taken)
    given = [_value(value) for value in _with_shapes(model).graph.output]
    about = ours(model.metadata_props)
    if about is not None and (about.input_shape != sides or len(about.mean) != sides[0]):
        about = None  # another file's words
    elsewhere = {
        entry.value for value in model.graph.initializer for entry in value.external_data if entry.key == "location"
    }
    return OnnxFile(
        path=path, input=taken, batch=batch, sides=sides, channels_last=channels_last, outputs=given, about=about,
        more_bytes=sum((path.parent / name).stat().st_size for name in elsewhere),
    )  # fmt: skip


def ours(metadata: Any) -> FileAbout | None:
    """What a file's metadata says, where that is whole and ours; None for anybody else's."""
    try:
        about = about_of(metadata, "its metadata", "description")
    except InputError:
        return None
    names = about.class_names
    whole = about.precision in PRECISIONS and len(about.mean) == len(about.std) and 0 < len(names) == len(set(names))
    return about if whole else None


def _load(path: Path) -> Any:
    import onnx

    if reason := _no_file(path):
        raise _unreadable(path, reason)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's
        raise _unreadable(path, f"it is no ONNX: {plain(one_line(error, LONGEST_SAID))}") from None
    if not model.graph.node:
        raise _unreadable(path, "there is no graph in it")
    if overgrown(model):
        raise _unreadable(path, f"its functions stand for more than {MOST_INLINED:,} nodes")
    if model.ir_version > onnx.IR_VERSION:
        raise _unreadable(path, f"its IR version is {model.ir_version}, this onnx reads up to {onnx.IR_VERSION}")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise _unreadable(path, f"its weights are in {plain(entry.value)}, which is not beside it")
    for value in model.graph.input:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise _unreadable(path, f"its input {plain(value.name)} has no shape: export it with that of the images")
    try:
        onnx.checker.check_model(str(path))  # by its path, as weights in other files lie beside it
    except Exception as error:  # the checker's and protobuf's have no common class
        raise _unreadable(path, plain(one_line(error, LONGEST_SAID))) from None
    return model


def _no_file(path: Path) -> str | None:
    """Why there is nothing to read at all."""
    if not path.exists():
        return "there is no such file"
    if not path.is_file():  # reading a pipe may never end
        return "no regular file"
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS))
    except OSError as error:
        return error.strerror or "it cannot be opened"
    if start == LFS:
        return "it is the pointer of Git LFS, not the file: git lfs pull fetches that"
    return None if start else "it is empty"


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a readable ONNX file ({reason}); name a .onnx classifier")


def _value(value: Any) -> Value:
    from onnx import TensorProto, helper

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Value(value.name, (kind or "untyped").removesuffix("_type"), None)
    tensor = value.type.tensor_type
    try:
        dtype = "string" if tensor.elem_type == TensorProto.STRING else str(
            helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        )  # fmt: skip
    except (KeyError, TypeError):
        dtype = "untyped"
    if not tensor.HasField("shape"):
        return Value(value.name, dtype, None)
    return Value(value.name, dtype, tuple(_dim(axis) for axis in tensor.shape.dim))


def _dim(axis: Any) -> int | str:
    """A dimension; -1, as Paddle writes it, is an open one."""
    if axis.HasField("dim_value") and axis.dim_value >= 0:
        return int(axis.dim_value)
    return plain(axis.dim_param) or "?"


def _layout(path: Path, taken: Value) -> tuple[int | None, tuple[int | None, int | None, int | None], bool]:
    """The batch that is fixed, if so, the sides (C, H, W) of an image, and whether channels come last."""
    needs = "bench needs one input of images, [N, C, H, W] or [N, H, W, C]"
    if taken.dtype not in IMAGE_TYPES:
        raise InputError(f"{path} takes {taken.dtype} as {plain(taken.name)}; {needs}, of {', '.join(IMAGE_TYPES)}")
    if taken.dims is None or len(taken.dims) != 4:
        raise InputError(f"{path} takes {taken}; {needs}")
    if 0 in taken.dims:
        raise InputError(f"{path} takes {taken}: there is nothing in it; export it with an open batch")
    batch, *sides = taken.dims
    last = sides[0] not in (1, 3) and sides[2] in (1, 3)
    first = [sides[2], *sides[:2]] if last else sides
    closed = tuple(side if isinstance(side, int) else None for side in first)
    if closed[0] not in (1, 3, None):
        raise InputError(f"{path} takes {taken}: images of {closed[0]} channels, of which 1 and 3 are known; {needs}")
    channels, height, width = closed
    return batch if isinstance(batch, int) else None, (channels, height, width), last


def _with_shapes(model: Any) -> Any:
    """The model with the shapes of its outputs, where they say none and can be told."""
    import onnx

    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # then they stay open
        return model


def choose_output(file: OnnxFile, classes: int | None, asked: str | None) -> Value:
    """The output that holds scores [N, K] or class ids [N].

    Args: how many `classes` the data set has, if there is one; the name of the output that was asked for. Raises
    `InputError` where none can be it, and where several can.
    """
    gives = f"{file.path} gives {'; '.join(map(str, file.outputs)) or 'nothing'}"
    needs = "bench needs scores [N, classes] or class ids [N]"
    if asked is not None:
        found = next((value for value in file.outputs if value.name == asked), None)
        if found is None or not (found.classes is not None or found.is_id):
            raise InputError(f"--output {asked}: {gives}; {needs}")
        return found
    scores = [each for each in file.outputs if each.classes is not None and not each.is_id]
    fitting = [each for each in scores if each.classes == classes] if classes else []
    fitting = fitting or [each for each in scores if classes is None or isinstance(each.classes, str)]
    fitting = _most_telling(fitting) or [each for each in file.outputs if each.is_id]
    if not fitting and scores and classes is not None:
        if len(scores) == 1 and scores[0].classes == 1:
            raise InputError(f"{gives}: one number an image, which names no class of {classes}; leave --data out")
        fitting = scores[:1] if len(scores) == 1 else []
        if not fitting:
            raise InputError(f"{gives}; the data set has {classes} classes: name the set that it was trained on")
    if not fitting:
        raise InputError(f"{gives}; {needs}")
    if len(fitting) > 1:
        names = ", ".join(plain(value.name) for value in fitting)
        raise InputError(f"{gives}: {names} can each be the scores; say which with --output NAME")
    return fitting[0]


def _most_telling(values: Sequence[Value]) -> list[Value]:
    """Floats before integers, several numbers an image before one."""
    floats = [value for value in values if value.is_float] or list(values)
    return [value for value in floats if value.classes != 1] or floats
