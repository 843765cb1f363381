"""Which channels go (`--rank`) and how much each layer loses (`--budget`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

import wmlc
from wmlc.compress.config import settle
from wmlc.compress.learn.place import Device
from wmlc.compress.prepare import Prepared, prepare
from wmlc.data import open_data
from wmlc.run import data_config

CPU = Device("cpu", bf16=False)


def prepared(**settings: Any) -> Prepared:
    """A family of ResNet-20 for digits, as `wmlc train` prepares it."""
    config = settle({"data": "digits", "arch": "resnet20", **settings})
    return prepare(config, open_data(data_config(config)), CPU)


def counts(net: Prepared) -> list[list[int]]:
    """Channels that each peer keeps of each group: of stem, and of what each of the nine blocks makes."""
    return [[len(kept) for kept in own.kept.values()] for own in net.widths]


FULL = [16] * 4 + [32] * 4 + [64] * 4

# What results are told of in the docs: a run without a start has the widths that it always had.
AS_BEFORE: list[tuple[dict[str, Any], list[list[int]]]] = [
    (
        {"ratios": (0.7, 0.5, 0.3, 0.0), "batch_size": 64},
        [
            [16, 16, 16, 16, 24, 16, 8, 8, 32, 32, 40, 32], [16, 16, 16, 16, 24, 16, 8, 8, 32, 48, 56, 48],
            [16, 16, 16, 16, 32, 32, 32, 32, 48, 48, 56, 48], FULL,
        ],
    ),
    (
        {"ratios": (0.5, 0.3, 0.0), "ratio_of": "macs", "trunk_ratio": 0.4},
        [
            [8, 16, 16, 16, 24, 24, 32, 24, 24, 40, 48, 40], [8, 16, 16, 16, 24, 24, 32, 24, 64, 64, 64, 64],
            [8, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64],
        ],
    ),
    (
        {"ratios": (0.7, 0.5, 0.3, 0.0), "method": "prune-finetune"},
        [
            [8, 16, 8, 8, 16, 16, 16, 16, 32, 40, 32, 32], [8, 8, 8, 8, 24, 16, 24, 24, 48, 48, 48, 48],
            [8, 8, 16, 16, 24, 24, 24, 24, 56, 56, 56, 56], FULL,
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("settings, expected", AS_BEFORE)
def test_widths_are_those_that_published_runs_have(settings: dict[str, Any], expected: list[list[int]]) -> None:
    assert counts(prepared(**settings)) == expected


@pytest.mark.parametrize(
    "divisor, params", [(1, (3512136, 5448052, 7743484, 11181642)), (8, (3560834, 5514538, 7648258, 11181642))]
)
def test_peers_of_a_network_at_hand_have_the_sizes_that_they_had(divisor: int, params: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    peers = wmlc.family(network, torch.zeros(1, 3, 64, 64), (0.67, 0.5, 0.3, 0.0), divisor=divisor)
    assert tuple(sum(p.numel() for p in peer.parameters()) for peer in peers) == params
