"""Tiny runs for tests, their weights, and the records that a run leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from made import made_framing

from wmlc.compress import session
from wmlc.compress.config import SweepConfig, settle
from wmlc.compress.sweep.session import run_sweep
from wmlc.records import Branch, Cost, DataRecord, DeviceRecord, Family, Peer, RunRecord
from wmlc.run import Run
from wmlc.settings import TrainConfig

SMALL = {"train_images": 260, "epochs": 2, "batch_size": 64, "reweigh_every": 2, "warmup_epochs": 0.5, "lr": 0.05}


def train(root: Path, **settings: Any) -> Run:
    """A run on a few digits, with `settings` over the small ones."""
    return session.start_run(settle({**SMALL, **settings}), root, force=False)


@contextlib.contextmanager
def stopping(module: ModuleType, name: str) -> Iterator[None]:
    """Ctrl-C where `module` calls its function `name`."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, stop)
        yield


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "weights.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def sweep(recipe: str | None, sets: Sequence[str], out: Path, **options: Any) -> None:
    """`wmlc sweep` with its defaults."""
    said = {name: options.pop(name, False) for name in ("dry_run", "as_json")}
    run_sweep(recipe, sets, out, SweepConfig(**options), **said)


def a_run_record(config: TrainConfig) -> RunRecord:
    """config.json of a run that was never trained."""
    return RunRecord(
        command="wmlc train", settings=config, device=DeviceRecord(name="cpu", bf16=False), threads=1,
        time="2026-11-25T00:00:00+00:00", commit=None, versions={},
    )  # fmt: skip


def a_family(config: TrainConfig) -> Family:
    """family.json of a run of one peer that was never trained."""
    peer = Peer(
        peer=1, ratio=0.5, achieved_ratio=0.5, params=1, macs=1, top1=50.0, stage_channels={}, shared_with={}
    )  # fmt: skip
    data = DataRecord(
        name=config.data, class_names=["a", "b"], input_shape=(1, 8, 8), mean=[0.5], std=[0.5], framing=made_framing(8),
        train=8, held_out=2, small=True,
    )  # fmt: skip
    return Family(
        arch=config.arch, method=config.method, share="tree", ratio_of=config.ratio_of, divisor=config.divisor,
        trunk_ratio=config.trunk_ratio, epochs=config.epochs, data=data, full=Cost(2, 2),
        tree=[Branch("stem", "stem", (1,), None)], peers=[peer], ensemble_top1=51.0, average_ensemble_top1=51.0,
        peer_weights=[1.0], best_epoch=1, seconds=1.0, baseline=None, notes=[],
    )  # fmt: skip
