"""Files of weights with any byte damaged: read, or refused in one line; quickly, and without running anything."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from damage import byte_damage
from torch import nn

from wmlc.errors import InputError
from wmlc.models.start import fit_start, read_start
from wmlc.models.weights_file import read_weights

TRIALS = 150


@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors"])
def test_a_damaged_file_of_weights_is_read_or_refused_in_a_line(kind: str, tmp_path: Path) -> None:
    path, network = tmp_path / "x", nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    content = {"state_dict": network.state_dict(), "epoch": 3}
    if kind == "safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    refused = 0
    for damage in byte_damage(path.read_bytes(), random.Random(0), TRIALS):
        damage.plant(path)
        try:
            fit_start(network, read_start(str(path), "net.py:f", (3, 2, 2)), ["a", "b", "c"], (3, 2, 2))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > TRIALS / 10


def test_dictionaries_within_each_other_are_looked_at_once(tmp_path: Path) -> None:
    inner: dict[str, object] = {"w": torch.ones(1)}
    for _ in range(4):
        inner = {f"k{n}": inner for n in range(300)}
    torch.save({**inner, "x" * 1000: torch.ones(1), ".".join("a" * 100): torch.ones(1)}, tmp_path / "x.pth")
    began = time.process_time()
    found = read_weights(tmp_path / "x.pth")
    assert found.keys() <= {"", "k0.k0.k0.k0"} and time.process_time() - began < 5
