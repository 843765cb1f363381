"""Somebody's file of weights as tensors by name, opened so that nothing in it is executed."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from wmlc.errors import InputError, one_line, some_of

Copies = dict[str, dict[str, Tensor]]  # by where in the file they stand ("" for the file itself), tensors by name

DEEPEST = 4  # dictionaries within each other that are looked into
LONGEST_NAME = 300  # letters of a tensor's
OF_A_HUB = ("model.safetensors", "pytorch_model.bin")  # what save_pretrained calls them
REMEDY = "save the weights alone: torch.save(network.state_dict(), FILE)"
# How files begin that people take for weights, and what those are.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'",
    b"\x89HDF": "an HDF5 file, as Keras writes them; wmlc reads PyTorch's weights: .safetensors, .pth",
    b"\x1f\x8b": "packed with gzip; unpack it first",
    b"<": "a page of text, so the download went wrong; fetch it again",
}
LEGACY = re.compile(rb"\x80[\x02-\x05]")  # how a pickle begins, torch's before 1.6


def hub_file(directory: Path) -> Path | None:
    """The file of weights in a directory that save_pretrained wrote; None of another."""
    files = (directory / name for name in OF_A_HUB)
    return next(filter(Path.is_file, files), None) if (directory / "config.json").is_file() else None


def read_weights(path: Path) -> Copies:
    """The tensors in a .safetensors, .pth, .pth.tar, .pt, .th or .bin file, by content, on the CPU.

    A checkpoint may hold several copies, such as the weights and their moving average: each dictionary with tensors in
    it is one. Raises `InputError`, one line, for anything that is no such file or that only running code could open.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise InputError(f"{path} is no regular file, so no weights are in it; check --start")
    try:
        with path.open("rb") as file:
            begins, size = file.read(64), path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check --start") from None
    for mark, what in OTHERS.items():
        if begins.startswith(mark):
            raise InputError(f"{path} is {what}")
    if begins[8:9] == b"{" and int.from_bytes(begins[:8], "little") < size:
        found: Copies = {"": _safetensors(path)}
    elif begins.startswith(b"PK\x03\x04") or LEGACY.match(begins):
        found = dict(_copies(_torch(path), "", set()))
    else:
        raise InputError(f"{path} is no file of weights ({size:,} bytes, neither safetensors nor torch.save); {REMEDY}")
    if not any(found.values()):
        raise InputError(f"{path} holds no tensors by name; {REMEDY}")
    return {at: _without_masks(tensors) for at, tensors in found.items()}


def _without_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with one for both that torch.nn.utils.prune makes of one: `weight` = `weight_orig` × `weight_mask`."""
    plain = dict(tensors)
    for name in tensors:
        of, mask = name.removesuffix("_orig"), tensors.get(f"{name.removesuffix('_orig')}_mask")
        if name.endswith("_orig") and mask is not None and mask.shape == tensors[name].shape:
            plain[of] = plain.pop(name) * plain.pop(f"{of}_mask").to(tensors[name].dtype)
    return plain


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        found = safetensors.torch.load_file(path)
        return {name: tensor for name, tensor in found.items() if _is_name(name)}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged or truncated ({one_line(error)}); fetch it again") from None


def _torch(path: Path) -> Any:
    """What `torch.save` wrote, if it is made of tensors, numbers, texts and containers; see torch's `weights_only`."""
    import argparse

    _check_archive(path)
    try:
        # trainers keep their command line beside the weights: a namespace is only names with values
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on kinds of tensors and pickles, which are judged below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can make it raise anything
        if wanted := _wanted(path, str(error)):
            raise InputError(
                f"{path} is no plain state dict: to open it would import and run {wanted}, which wmlc does not; "
                f"where you trust it, {REMEDY}"
            ) from None
        # torch advises to open it all the same, which is no advice to pass on
        said = "it is a pickle of other things" if "weights_only" in str(error) else one_line(error, 120)
        raise InputError(
            f"{path} cannot be read as weights ({said}); it may be damaged: fetch it again, or {REMEDY}"
        ) from None


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is a program, or that would unpack to more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # the older kind, or damaged: torch tells
        return
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise InputError(f"{path} is a TorchScript program, not weights; {REMEDY}")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise InputError(f"{path} is packed, which torch.save does not do; unpack it, or {REMEDY}")


def _wanted(path: Path, said: str) -> str:
    """What a file wanted to import, in words; empty where that was not the trouble."""
    if not re.search(r"[Uu]nsupported (global|class|type|operand)|GLOBAL", said):
        return ""
    try:
        names = [name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if "Namespace" not in name]
    except Exception:  # only archives can be asked, and whatever is in them
        names = re.findall(r"GLOBAL ([\w.]+)", said)
    return some_of([ascii(name)[1:-1] for name in names], 3)


def _copies(value: Any, place: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary within `value` that holds tensors by name, once, and where it stands."""
    if not isinstance(value, Mapping) or depth > DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    tensors = {name: each for name, each in value.items() if _is_name(name) and _holds_numbers(each)}
    if tensors:
        yield place, tensors
    for name, each in value.items():
        if _is_name(name):
            yield from _copies(each, f"{place}.{name}".lstrip("."), seen, depth + 1)


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= LONGEST_NAME


def _holds_numbers(value: Any) -> bool:
    """Whether it is a plain tensor with numbers behind it."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_quantized)
