"""Batch norm's running statistics while a cut network trains: those of its own images, and not far behind. A second."""

from __future__ import annotations

import pytest
from conftest import score_network
from torch import nn

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.recalibrate import keeping_up, slow_norms


def momenta(family: PeerFamily) -> dict[int, list[float | None]]:
    """Of each peer's batch norms, in order."""
    found: dict[int, list[float | None]] = {}
    for branch in family.branches:
        modules = family.parts[branch.name].modules()
        found.setdefault(branch.peers[-1], []).extend(m.momentum for m in modules if isinstance(m, nn.BatchNorm2d))
    return found


def test_slow_running_statistics_keep_up_and_only_while_they_train() -> None:
    scored = score_network("resnet20")
    family = scored.family(scored.widths((0.5, 0.0), share="none"), share="none")
    for norm in (module for module in family.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.01
    _, mean_of_all, fast, *_ = (module for module in family.modules() if isinstance(module, nn.BatchNorm2d))
    mean_of_all.momentum, fast.momentum = None, 0.3
    before = momenta(family)
    with pytest.raises(ZeroDivisionError), keeping_up(slow_norms(family)):
        within = momenta(family)
        raise ZeroDivisionError
    faster = {peer: [0.1 if momentum == 0.01 else momentum for momentum in own] for peer, own in before.items()}
    assert within == faster != before and {None, 0.3} <= {momentum for own in within.values() for momentum in own}
    assert momenta(family) == before
