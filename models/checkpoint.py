"""A network on disk: a directory with `spec.json` and `weights.safetensors`, nothing executable."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from wmlc import records
from wmlc.arch import is_foreign, needs_caller
from wmlc.errors import InputError
from wmlc.models.answer import answer_of, answers_as, code_to_bring_back
from wmlc.models.exits import MARK, end_at_exit
from wmlc.models.layout import hold_plain
from wmlc.models.residual import leave_out, left_out
from wmlc.models.shared import holders, other_names
from wmlc.models.stages import Staged, own_names, split
from wmlc.models.widths import check_runs, cut_to, difference
from wmlc.models.zoo import build_network
from wmlc.records import NetworkSpec

SPEC_FILE, WEIGHTS_FILE = "spec.json", "weights.safetensors"
REMEDY = "extract the peer again"


def save_network(network: nn.Module, spec: NetworkSpec, directory: Path) -> None:
    """Write `spec` and the weights into the existing `directory`."""
    _save(network, network.state_dict(), spec, directory)


def save_stages(stages: nn.Sequential, spec: NetworkSpec, directory: Path) -> None:
    """`save_network` of a sequence of stages, under the names that its tensors have in the network they are of."""
    own = own_names(spec.stages)
    _save(stages, {own(name): tensor for name, tensor in stages.state_dict().items()}, spec, directory)


def _save(network: nn.Module, tensors: Mapping[str, Tensor], spec: NetworkSpec, directory: Path) -> None:
    if is_foreign(spec.arch):
        spec = dataclasses.replace(spec, answer=answer_of(network, spec.input_shape))
    records.write(directory / SPEC_FILE, spec)
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    (directory / WEIGHTS_FILE).write_bytes(safetensors.torch.save(ready))


def spec_of_cut(spec: NetworkSpec, full: nn.Module, cut: nn.Module, staged: Staged | None) -> NetworkSpec:
    """`spec` with what makes `cut` of `full`: widths, blocks left out and, where they were `staged`, the stages."""
    own = own_names(staged)
    spec = dataclasses.replace(spec, widths=difference(full, cut, own), left_out=left_out(cut, own))
    return spec if staged is None else dataclasses.replace(spec, stages=staged.cuts, unused=staged.unused)


def read_spec(directory: Path) -> NetworkSpec:
    """The record of the network in `directory`; `InputError` where it is missing or damaged."""
    path = directory / SPEC_FILE
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; name one that holds {SPEC_FILE} and {WEIGHTS_FILE}")
    if not path.exists() and (directory / "peers").is_dir():
        raise InputError(f"{directory} is a run; name a network of it, such as {directory / 'peers' / '1'}")
    spec = records.read(path, NetworkSpec, "network record", REMEDY)
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != spec.input_shape[0]:
            raise InputError(
                f"{path} is damaged: {name} must hold {spec.input_shape[0]} numbers, got {values}; {REMEDY}"
            )
    return spec


def load_network(directory: Path, factory: Callable[..., Any] | None = None) -> nn.Module:
    """The network saved in `directory`, dense, in eval mode, on the CPU; see `wmlc.load`.

    Args: of a network of the caller's own code, the function that makes the full one, unless the caller has named it
    (`wmlc.models.factory.named_by_caller`).
    """
    spec = read_spec(directory)
    if factory is None and needs_caller(spec.arch):
        from wmlc.models.factory import factory_of_caller

        factory = factory_of_caller(spec.arch, directory)
    classes = len(spec.class_names)
    try:
        with torch.device("meta"):
            network = _full(spec, factory)
    except InputError as error:
        raise InputError(f"{directory} cannot be rebuilt: {error}") from None
    shared = [alike for alike in holders(network).values() if len(alike) > 1]
    try:
        cut_to(leave_out(network, spec.left_out), spec.widths)
        on_meta = all(parameter.is_meta for parameter in network.parameters())
        tried = network if on_meta else copy.deepcopy(network)  # which may keep what it makes of weights that are none
        check_runs(tried, classes, spec.input_shape, spec.unused)
    except InputError as error:
        raise InputError(f"{directory / SPEC_FILE} is damaged: {error}") from None
    tensors = network.state_dict()  # with the versions of the modules' code, which some look at
    tensors.update(_read_weights(directory / WEIGHTS_FILE, network, spec.unused))
    network.load_state_dict(tensors, assign=True)
    _share(network, shared)
    if needs_caller(spec.arch):
        hold_plain(network, spec.input_shape)
    if spec.answer is not None and not answers_as(spec.answer, network, spec.input_shape):
        raise InputError(
            f"{directory} gives other answers than when it was saved: {code_to_bring_back(spec.arch)}, or train it anew"
        )
    return network.eval().requires_grad_(True)


def _share(network: nn.Module, shared: list[list[tuple[nn.Module, str]]]) -> None:
    """Make parameters one again that were; each came from the file by itself."""
    there = set(network.modules())  # of a block that is left out none is
    for alike in shared:
        held = [(module, key) for module, key in alike if module in there]
        for module, key in held[1:]:
            first = getattr(*held[0])
            if isinstance(first, nn.Parameter) and torch.equal(first, getattr(module, key)):
                setattr(module, key, first)


def _full(spec: NetworkSpec, factory: Callable[..., Any] | None) -> nn.Module:
    """The full network of a record, on the current device; of a network that is not built of stages maybe an exit."""
    arch, classes = spec.arch, len(spec.class_names)
    whole, mark, number = arch.rpartition(MARK)
    if spec.stages is None or not mark:  # a built-in network knows its exits itself
        return build_network(arch, classes, spec.input_shape, spec.arch_args, factory)
    if not number.isdecimal():
        raise InputError(f"there is no exit {number[:20]!r}")
    network = build_network(whole, classes, spec.input_shape, spec.arch_args, factory)
    device = next(network.parameters()).device
    staged = split(network, torch.zeros(1, *spec.input_shape, device=device), spec.stages)
    return end_at_exit(staged.network, int(number), spec.input_shape)


def load_stages(directory: Path, factory: Callable[..., Any] | None = None) -> nn.Sequential:
    """The network saved in `directory` as a sequence of the stages that its run cut it into."""
    network, spec = load_network(directory, factory), read_spec(directory)
    if spec.stages is None or MARK in spec.arch:
        assert isinstance(network, nn.Sequential)
        return network
    try:
        return split(network, torch.zeros(1, *spec.input_shape), spec.stages).network
    except InputError as error:
        raise InputError(f"{directory / SPEC_FILE}: {error}") from None


def tensors_digest(tensors: Iterable[Tensor], about: str = "") -> str:
    """A hash of what tensors hold, in their order, after what else it is `about`."""
    digest = hashlib.sha256(about.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_weights(path: Path, network: nn.Module, unused: list[str]) -> dict[str, Tensor]:
    """The tensors in `path`, checked name by name and shape by shape against `network`; zeros for those `unused`."""
    try:
        if path.exists() and not path.is_file():  # a pipe, which would never end
            raise InputError(f"{path} is no regular file; {REMEDY}")
        tensors = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so there are no weights to load; {REMEDY}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or truncated ({error}); {REMEDY}") from None
    expected = network.state_dict()
    for one, other in other_names(network):
        if one in tensors and other not in tensors:
            tensors[other] = tensors[one]
    for name in (name for name in unused if name in expected and name not in tensors):
        tensors[name] = torch.zeros(expected[name].shape, dtype=expected[name].dtype)
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
