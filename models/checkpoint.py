"""A network on disk: a directory with `spec.json` and `weights.safetensors`, nothing executable."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from wmlc.errors import InputError
from wmlc.files import read_json, write_json
from wmlc.models.widths import Widths, cut_to_widths
from wmlc.models.zoo import build_network

SPEC_FILE, WEIGHTS_FILE = "spec.json", "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All it takes to rebuild a network, and what its user must know to feed it."""

    arch: str
    class_names: list[str]
    input_shape: list[int]  # channels, height, width
    mean: list[float]  # a channel, of pixels scaled to 0 … 1
    std: list[float]
    widths: Widths
    about: dict[str, Any] = field(default_factory=dict)  # peer, ratio, data set, accuracy, commit …


def save_network(network: nn.Module, spec: NetworkSpec, directory: Path) -> None:
    """Write `spec` and the weights into the existing `directory`."""
    write_json(directory / SPEC_FILE, asdict(spec))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    (directory / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))


def read_spec(directory: Path) -> NetworkSpec:
    """The record of the network in `directory`; `InputError` where it is missing or damaged."""
    path = directory / SPEC_FILE
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; name one that holds {SPEC_FILE} and {WEIGHTS_FILE}")
    record = read_json(path, "network record", "extract the peer again")
    known = {f.name for f in fields(NetworkSpec)}
    missing, unknown = sorted(known - record.keys() - {"about"}), sorted(record.keys() - known)
    if missing or unknown:
        raise InputError(
            f"{path} is not a network record: missing {missing or 'nothing'}, "
            f"unknown {unknown or 'nothing'}; extract the peer again"
        )
    spec = NetworkSpec(**record)
    if fault := _fault(spec):
        raise InputError(f"{path} is damaged: {fault}; extract the peer again")
    return spec


def load_network(directory: Path) -> nn.Sequential:
    """The network saved in `directory`, dense, in eval mode, on the CPU; see `wmlc.load`."""
    spec = read_spec(directory)
    channels, height, width = spec.input_shape
    try:
        with torch.device("meta"):
            network = build_network(spec.arch, len(spec.class_names), (channels, height, width))
        cut_to_widths(network, spec.widths)
    except InputError as error:
        raise InputError(f"{directory / SPEC_FILE} is damaged: {error}") from None
    network.load_state_dict(_read_weights(directory / WEIGHTS_FILE, network), assign=True)
    return network.eval().requires_grad_(True)


def _fault(spec: NetworkSpec) -> str | None:
    """What is wrong with a record's values, or None."""
    if not isinstance(spec.arch, str):
        return f"arch must be a name, got {spec.arch!r}"
    names = spec.class_names
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return "class_names must list at least one class, as texts"
    shape = spec.input_shape
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)):
        return f"input_shape must be [channels, height, width], got {shape!r}"
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if not (isinstance(values, list) and len(values) == shape[0] and all(isinstance(v, float) for v in values)):
            return f"{name} must hold {shape[0]} numbers, got {values!r}"
        if not all(math.isfinite(v) for v in values) or (name == "std" and min(values) <= 0):
            return f"{name} must hold finite numbers, and a deviation be above 0, got {values!r}"
    if not isinstance(spec.widths, dict):
        return f"widths must be an object, got {type(spec.widths).__name__}"
    if not isinstance(spec.about, dict):
        return f"about must be an object, got {type(spec.about).__name__}"
    return None


def _read_weights(path: Path, network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors in `path`, checked name by name and shape by shape against `network`."""
    remedy = "extract the peer again"
    try:
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so there are no weights to load; {remedy}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or truncated ({error}); {remedy}") from None
    expected = network.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unexpected" for name in tensors if name not in expected]
    for name in (name for name in expected if name in tensors):
        got, due = tensors[name], expected[name]
        if got.shape != due.shape:
            wrong.append(f"{name} has shape {list(got.shape)}, expected {list(due.shape)}")
        elif got.dtype != due.dtype:
            wrong.append(f"{name} is {got.dtype}, expected {due.dtype}")
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(f"{path} does not hold the network that {SPEC_FILE} records: {shown}; {remedy}")
    # cloned: safetensors hands out views at any offset, and a kernel may round differently on unaligned memory
    return {name: tensor.clone() for name, tensor in tensors.items()}
