"""Batch norm's running statistics while a cut network trains: those of its own images, and not far behind. A second."""

from __future__ import annotations

import pytest
from conftest import score_network
from torch import nn

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.recalibrate import keeping_up


def momenta(family: PeerFamily) -> dict[int, list[float | None]]:
    """Of each peer's batch norms, in order."""
    found: dict[int, list[float | None]] = {}
    for branch in family.branches:
        modules = family.parts[branch.name].modules()
        found.setdefault(branch.peers[-1], []).extend(m.momentum for m in modules if isinstance(m, nn.BatchNorm2d))
    return found


def test_running_statistics_of_cut_peers_keep_up_and_only_while_they_train() -> None:
    scored = score_network("resnet20")
    family = scored.family(scored.widths((0.5, 0.0), share="none"), share="none")
    for norm in (module for module in family.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.01
    _, mean_of_all, fast, *_ = (module for module in family.modules() if isinstance(module, nn.BatchNorm2d))
    mean_of_all.momentum, fast.momentum = None, 0.3
    before = momenta(family)
    with pytest.raises(ZeroDivisionError), keeping_up(family, {1}):
        within = momenta(family)
        raise ZeroDivisionError
    assert within[2] == before[2], "it stays what it was"
    assert within[1] == [0.1 if momentum == 0.01 else momentum for momentum in before[1]] != before[1]
    assert momenta(family) == before
