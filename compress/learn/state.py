"""Training state on disk: complete or absent, so that a killed run goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from wmlc import records
from wmlc.errors import InputError
from wmlc.files import new_directory, recover_directory
from wmlc.records import Phase, Progress

STATE_FILE, MODEL_FILE, BEST_FILE, MOMENTUM_FILE = (
    "state.json", "model.safetensors", "best.safetensors", "momentum.safetensors"
)  # fmt: skip
_REMEDY = "delete the checkpoint directory to train from the start"


@dataclass
class TrainState:
    """Where one phase of a run stands, besides the network's own weights."""

    phase: Phase
    peer_weights: list[float]
    epoch: int = 0  # epochs done
    step: int = 0
    seconds: float = 0.0
    training_macs: float = 0.0
    teaching: list[list[float]] = field(default_factory=list)  # of each peer, the weight of each of its sources
    best_epoch: int = 0
    best_top1: float = -1.0  # mean over peers, on the held-out images
    best_peer_weights: list[float] = field(default_factory=list)  # ω at the end of that epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # the network's weights at the end of that epoch

    def progress(self) -> Progress:
        """All but the tensors, as it is written."""
        return Progress(**{f.name: getattr(self, f.name) for f in fields(self) if f.name != "best"})


def save_state(directory: Path, state: TrainState, network: nn.Module, optimizer: torch.optim.SGD) -> None:
    """Replace the checkpoint in `directory`; a kill or a full disk leaves the former one good."""
    momentum = {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in network.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    with new_directory(directory) as aside:
        _write(aside / MODEL_FILE, network.state_dict())
        _write(aside / BEST_FILE, state.best)
        _write(aside / MOMENTUM_FILE, momentum)
        records.write(aside / STATE_FILE, state.progress())


def read_progress(directory: Path) -> Progress | None:
    """How far the checkpoint in `directory` is, None where there is none; `InputError` where it is damaged."""
    recover_directory(directory)
    if not directory.is_dir():
        return None
    return records.read(directory / STATE_FILE, Progress, "training state", _REMEDY)


def load_state(
    directory: Path, network: nn.Module, optimizer: torch.optim.SGD, *, peers: int, epochs: int, sources: int = 0
) -> TrainState:
    """Put a checkpoint's weights and momentum into `network` and `optimizer`.

    Raises `InputError` where it is damaged, or not of a network of so many `peers` that trains for so many `epochs`,
    each peer by the weights of so many `sources`; 0 where these have none.
    """
    progress = records.read(directory / STATE_FILE, Progress, "training state", _REMEDY)
    if faults := _faults(progress, peers, epochs, sources):
        raise InputError(f"{directory / STATE_FILE} does not belong to this run: {'; '.join(faults)}; {_REMEDY}")
    state = TrainState(**{f.name: getattr(progress, f.name) for f in fields(progress) if f.name != "schema_version"})
    expected = network.state_dict()
    model = _read(directory / MODEL_FILE, expected)
    state.best = _read(directory / BEST_FILE, expected)
    network.load_state_dict(model)
    parameters = dict(network.named_parameters())
    for name, buffer in _read(directory / MOMENTUM_FILE, parameters, complete=False).items():
        optimizer.state[parameters[name]]["momentum_buffer"] = torch.empty_like(parameters[name].data).copy_(buffer)
    return state


def _faults(progress: Progress, peers: int, epochs: int, sources: int) -> list[str]:
    """Why a state cannot be that of such a run, in words."""
    faults = []
    if not 1 <= progress.epoch <= epochs:
        faults.append(f"epoch must be from 1 to {epochs}, got {progress.epoch}")
    if not 1 <= progress.best_epoch <= progress.epoch:
        faults.append(f"best_epoch must be from 1 to epoch, got {progress.best_epoch}")
    for name in ("peer_weights", "best_peer_weights"):
        weights: list[float] = getattr(progress, name)
        if fault := _not_weights(weights, peers):
            faults.append(f"{name} must be {fault}")
    if len(progress.teaching) != (peers if sources else 0):
        wanted = f"{peers} lists of weights" if sources else "empty"
        faults.append(f"teaching must be {wanted}, got {len(progress.teaching)} lists")
    elif wrong := [fault for own in progress.teaching if (fault := _not_weights(own, sources))]:
        faults.append(f"each peer's list in teaching must be {wrong[0]}")
    return faults


def _not_weights(weights: list[float], count: int) -> str:
    """What they had to be and what they are, where they are not `count` numbers on the simplex; else nothing."""
    if len(weights) == count and math.isclose(sum(weights), 1, abs_tol=1e-3):
        return ""
    shown = ", ".join(f"{weight:g}" for weight in weights[: 2 * count]) + (", …" * (len(weights) > 2 * count))
    return f"{count} numbers that add up to 1, got [{shown}]"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # copied: a shared stage's best weights may be the very tensors of the model, which safetensors refuses
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(ready))


def _read(path: Path, expected: Mapping[str, Tensor], complete: bool = True) -> dict[str, Tensor]:
    """The tensors in `path`, each one of `expected`, and all of them where it shall be `complete`.

    But for whole numbers, of which checkpoints once held fewer: those stay what they are.
    """
    if path.exists() and not path.is_file():  # a pipe, which would never end
        raise InputError(f"{path} is no regular file; {_REMEDY}")
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or missing ({error}); {_REMEDY}") from None
    fits = all(
        name in expected and (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
        for name, tensor in tensors.items()
    )
    absent = {name: tensor for name, tensor in expected.items() if complete and name not in tensors}
    if not fits or any(tensor.is_floating_point() for tensor in absent.values()):
        raise InputError(f"{path} does not belong to the run's networks; {_REMEDY}")
    return absent | tensors
