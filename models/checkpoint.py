"""A network on disk: a directory with `spec.json` and `weights.safetensors`, nothing executable."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from wmlc import records
from wmlc.errors import InputError
from wmlc.models.widths import cut_to_widths
from wmlc.models.zoo import build_network
from wmlc.records import NetworkSpec

SPEC_FILE, WEIGHTS_FILE = "spec.json", "weights.safetensors"
REMEDY = "extract the peer again"


def save_network(network: nn.Module, spec: NetworkSpec, directory: Path) -> None:
    """Write `spec` and the weights into the existing `directory`."""
    records.write(directory / SPEC_FILE, spec)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    (directory / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))


def read_spec(directory: Path) -> NetworkSpec:
    """The record of the network in `directory`; `InputError` where it is missing or damaged."""
    path = directory / SPEC_FILE
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; name one that holds {SPEC_FILE} and {WEIGHTS_FILE}")
    spec = records.read(path, NetworkSpec, "network record", REMEDY)
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != spec.input_shape[0]:
            raise InputError(
                f"{path} is damaged: {name} must hold {spec.input_shape[0]} numbers, got {values}; {REMEDY}"
            )
    return spec


def load_network(directory: Path) -> nn.Sequential:
    """The network saved in `directory`, dense, in eval mode, on the CPU; see `wmlc.load`."""
    spec = read_spec(directory)
    try:
        with torch.device("meta"):
            network = build_network(spec.arch, len(spec.class_names), spec.input_shape)
        cut_to_widths(network, spec.widths)
    except InputError as error:
        raise InputError(f"{directory / SPEC_FILE} is damaged: {error}") from None
    network.load_state_dict(_read_weights(directory / WEIGHTS_FILE, network), assign=True)
    return network.eval().requires_grad_(True)


def _read_weights(path: Path, network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors in `path`, checked name by name and shape by shape against `network`."""
    try:
        if path.exists() and not path.is_file():  # a pipe, which would never end
            raise InputError(f"{path} is no regular file; {REMEDY}")
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so there are no weights to load; {REMEDY}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or truncated ({error}); {REMEDY}") from None
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
        raise InputError(f"{path} does not hold the network that {SPEC_FILE} records: {shown}; {REMEDY}")
    # cloned: safetensors hands out views at any offset, and a kernel may round differently on unaligned memory
    return {name: tensor.clone() for name, tensor in tensors.items()}
