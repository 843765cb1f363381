"""A checkpoint: written whole or not at all, and believed only where it can be one of this run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from training import SMALL, stopping, train

from wmlc.compress import session
from wmlc.compress.learn.extras import KeptChannels
from wmlc.compress.learn.state import TrainState, load_state, read_progress, save_state
from wmlc.errors import InputError
from wmlc.run import Run, read_epochs

DELETE = "; delete the checkpoint directory to train from the start"


def a_network() -> tuple[nn.Sequential, torch.optim.SGD]:
    """A network after a step, with its momentum."""
    network = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return network, optimizer


def a_state(**changes: Any) -> TrainState:
    fields = {"epoch": 4, "step": 8, "best_epoch": 3, "best_top1": 50.0, "best_peer_weights": [0.5, 0.5]}
    return TrainState("family", [0.25, 0.75], **{**fields, **changes})


def test_a_failed_checkpoint_write_leaves_the_former_one_good(tmp_path: Path) -> None:
    network, optimizer = a_network()
    save_state(tmp_path / "checkpoint", a_state(best=dict(network.state_dict())), network, optimizer)

    class Full(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        save_state(tmp_path / "checkpoint", a_state(epoch=5, best=Full()), network, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    fresh = nn.Sequential(nn.Linear(2, 2))
    restored = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    state = load_state(tmp_path / "checkpoint", fresh, restored, peers=2, epochs=4)
    assert (state.epoch, state.step, state.best_epoch) == (4, 8, 3)
    assert (state.peer_weights, state.best_peer_weights) == ([0.25, 0.75], [0.5, 0.5])
    for parameter, other in zip(network.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], restored.state[other]["momentum_buffer"])


def test_which_channels_are_looked_at_comes_from_the_checkpoint_where_that_holds_it(tmp_path: Path) -> None:
    network, optimizer = a_network()
    extra = KeptChannels(1, torch.tensor([0, 2]))
    network.append(extra)
    before = {name: tensor for name, tensor in network.state_dict().items() if "index_K" not in name}
    save_state(tmp_path / "now", a_state(best=dict(network.state_dict())), network, optimizer)
    network.pop(1)
    save_state(tmp_path / "before", a_state(best=before), network, optimizer)
    for checkpoint, index in (("now", [0, 2]), ("before", [1, 3])):
        network, optimizer = a_network()
        network.append(KeptChannels(1, torch.tensor([1, 3])))
        load_state(tmp_path / checkpoint, network, optimizer, peers=2, epochs=4)
        assert network.state_dict()["1.index_K"].tolist() == index


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"epoch": 1_000_000_000}, "epoch must be from 1 to 4, got 1000000000"),
        ({"epoch": 0}, "epoch must be from 1 to 4, got 0; best_epoch must be from 1 to epoch, got 3"),
        ({"best_epoch": 0}, "best_epoch must be from 1 to epoch, got 0"),
        ({"peer_weights": [0.5, 0.6]}, "peer_weights must be 2 numbers that add up to 1, got [0.5, 0.6]"),
        ({"peer_weights": [1.0]}, "peer_weights must be 2 numbers that add up to 1, got [1]"),
        ({"peer_weights": [0.2] * 5}, "peer_weights must be 2 numbers that add up to 1, got [0.2, 0.2, 0.2, 0.2, …]"),
        ({"best_peer_weights": []}, "best_peer_weights must be 2 numbers that add up to 1, got []"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_this_runs_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    network, optimizer = a_network()
    save_state(tmp_path / "checkpoint", a_state(best=dict(network.state_dict())), network, optimizer)
    path = tmp_path / "checkpoint" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError) as caught:
        load_state(tmp_path / "checkpoint", network, optimizer, peers=2, epochs=4)
    assert str(caught.value) == f"{path} does not belong to this run: {fault}{DELETE}"


@pytest.mark.parametrize(
    ("sources", "teaching", "fault"),
    [
        (4, [], "teaching must be 2 lists of weights, got 0 lists"),
        (4, [[0.5, 0.5, 0.0, 0.0]], "teaching must be 2 lists of weights, got 1 lists"),
        (4, [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5]], "each peer's list in teaching must be 4 numbers that add up to 1, got [0.5, 0.5]"),
        (3, [[0.5, 0.0, 0.5], [0.5, 0.6, 0.0]], "each peer's list in teaching must be 3 numbers that add up to 1, got [0.5, 0.6, 0]"),
        (0, [[1.0], [1.0]], "teaching must be empty, got 2 lists"),
        (4, [[0.5, 0.25, 0.0, 0.25], [0.5, 0.5, 0.0, 0.0]], None),
        (0, [], None),
    ],
)  # fmt: skip
def test_weights_of_sources_that_cannot_be_this_runs_are_refused(
    tmp_path: Path, sources: int, teaching: list[list[float]], fault: str | None
) -> None:
    network, optimizer = a_network()
    state = a_state(best=dict(network.state_dict()), teaching=teaching, training_macs=7.0)
    save_state(tmp_path / "checkpoint", state, network, optimizer)
    if fault is None:
        got = load_state(tmp_path / "checkpoint", network, optimizer, peers=2, epochs=4, sources=sources)
        assert (got.teaching, got.training_macs) == (teaching, 7.0)
        return
    with pytest.raises(InputError) as caught:
        load_state(tmp_path / "checkpoint", network, optimizer, peers=2, epochs=4, sources=sources)
    path = tmp_path / "checkpoint" / "state.json"
    assert str(caught.value) == f"{path} does not belong to this run: {fault}{DELETE}"


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ('"peer_weights": [NaN, 0.5]', r"peer_weights\[0\] must be a finite number, got NaN"),
        ('"peer_weights": [0.5, 1.5]', r"peer_weights\[1\] must be at most 1, got 1\.5"),
        ('"phase": "both"', 'phase must be "family" or "baseline", got "both"'),
        ('"epoch": "4"', 'epoch must be a whole number, got "4"'),
    ],
)  # fmt: skip
def test_a_state_of_other_types_is_refused(tmp_path: Path, written: str, fault: str) -> None:
    network, optimizer = a_network()
    save_state(tmp_path / "checkpoint", a_state(best=dict(network.state_dict())), network, optimizer)
    path = tmp_path / "checkpoint" / "state.json"
    record = {k: v for k, v in json.loads(path.read_text()).items() if not written.startswith(f'"{k}"')}
    path.write_text(json.dumps(record)[:-1] + f", {written}}}")
    with pytest.raises(InputError, match=rf"state\.json is not a readable training state: {fault}.*{DELETE}$"):
        read_progress(tmp_path / "checkpoint")


def cut_short(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def other_type(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    path.write_bytes(safetensors.torch.save({name: tensor.double() for name, tensor in tensors.items()}))


@pytest.mark.parametrize("name", ["model", "best", "momentum"])
@pytest.mark.parametrize(
    ("harm", "fault"),
    [(cut_short, "is damaged or missing"), (pipe, "is no regular file"), (other_type, "does not belong to the run")],
)
def test_tensors_that_are_none_of_the_runs_are_refused(
    tmp_path: Path, name: str, harm: Callable[[Path], None], fault: str
) -> None:
    network, optimizer = a_network()
    save_state(tmp_path / "checkpoint", a_state(best=dict(network.state_dict())), network, optimizer)
    path = tmp_path / "checkpoint" / f"{name}.safetensors"
    harm(path)
    with pytest.raises(InputError) as caught:
        load_state(tmp_path / "checkpoint", network, optimizer, peers=2, epochs=4)
    assert str(caught.value).startswith(f"{path} {fault}") and str(caught.value).endswith(DELETE)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped after its family's epochs."""
    root = tmp_path_factory.mktemp("stopped") / "run"
    with stopping(session, "save_peers"), pytest.raises(InputError):
        train(root, ratios=(0.5, 0.0), baseline=False)
    return Run(root)


def test_resuming_from_a_damaged_checkpoint_is_refused_in_one_line(stopped: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(stopped.root, run.root)
    cut_short(run.checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or missing .*; delete the checkpoint"):
        session.resume_run(run)
    path = run.checkpoint / "state.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "epoch": 10**9}))
    with pytest.raises(InputError, match=rf"epoch must be from 1 to {SMALL['epochs']}, got 1000000000; delete"):
        session.resume_run(run)
    path.write_text(json.dumps({**record, "phase": "baseline"}))
    with pytest.raises(InputError, match=r"checkpoint is of a baseline, and this run trains none; delete it"):
        session.resume_run(run)
    path.write_text('{"phase": "fam')
    with pytest.raises(InputError, match=r"state\.json is not a readable training state"):
        session.resume_run(run)


def test_epochs_that_got_lost_are_told(stopped: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(stopped.root, run.root)
    metrics = run.metrics("family")
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    session.resume_run(run)
    assert capsys.readouterr().err == f"{metrics} has lost 1 of the 2 epochs that are done\n"
    assert [epoch.epoch for epoch in read_epochs(run, "family")] == [1]
    assert run.family.exists()
