"""Tiny runs for tests, and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from wmlc.compress import session
from wmlc.compress.config import settle
from wmlc.run import Run

SMALL = {"train_images": 260, "epochs": 2, "batch_size": 64, "reweigh_every": 2, "warmup_epochs": 0.5, "lr": 0.05}


def train(root: Path, **settings: Any) -> Run:
    """A run on a few digits, with `settings` over the small ones."""
    return session.start_run(settle({**SMALL, **settings}), root, force=False)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "weights.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
