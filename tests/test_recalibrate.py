"""Batch norm's running statistics while a cut network trains: those of its own images, and not far behind. A second."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import score_network
from torch import nn
from toy_family import BATCH, SHAPE, STEPS, ToyData

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.recalibrate import keeping_up, recalibrate, slow_norms
from wmlc.records import Branch


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


def test_what_a_cut_peer_keeps_is_the_mean_over_batches_and_an_uncut_one_keeps_its_own() -> None:
    norms, branches, modules = [nn.BatchNorm2d(SHAPE[0], momentum=0.05) for _ in range(2)], [], dict[str, nn.Module]()
    for peer, norm in enumerate(norms, 1):
        for own, number in ((norm.running_mean, 7), (norm.running_var, 9), (norm.num_batches_tracked, 11)):
            assert own is not None
            own.fill_(number)
        stem, head = f"stem_of_{peer}", f"head_of_{peer}"
        branches += [Branch(stem, "stem", (peer,), None), Branch(head, "head", (peer,), stem)]
        modules |= {stem: norm, head: nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[0], 2))}
    family, data, (cut, uncut) = PeerFamily(branches, modules), ToyData(), norms
    weights = copy.deepcopy(dict(family.named_parameters()))
    for images, batches in ((10**6, STEPS), (BATCH, 1)):
        assert recalibrate(family, {1}, data, BATCH, Device("cpu", bf16=False), images) == batches
        seen = [own for own, _ in data.train[:batches]]
        assert cut.running_mean is not None and cut.running_var is not None
        torch.testing.assert_close(cut.running_mean, torch.stack([own.mean((0, 2, 3)) for own in seen]).mean(0))
        torch.testing.assert_close(cut.running_var, torch.stack([own.var((0, 2, 3)) for own in seen]).mean(0))
    assert (uncut.running_mean == 7).all() and (uncut.running_var == 9).all()
    assert [norm.momentum for norm in norms] == [0.05, 0.05] and not any(own.training for own in family.modules())
    torch.testing.assert_close(dict(family.named_parameters()), weights, rtol=0, atol=0)
