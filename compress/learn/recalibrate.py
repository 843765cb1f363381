"""Batch norm after a cut: what it keeps of the images is of other channels, until it has seen images again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.place import Device
from wmlc.console import progress
from wmlc.data import Data

IMAGES = 2048  # that means and deviations are taken over
KEEPS_UP = 0.1  # a momentum of running statistics that tells of the last dozens of steps


@torch.no_grad()
def recalibrate(
    family: PeerFamily, cut: set[int], data: Data, batch_size: int, device: Device, count: int = IMAGES,
    slow: Sequence[nn.modules.batchnorm._BatchNorm] = (),
) -> int:  # fmt: skip
    """Take the running means and deviations of batch norm anew, over training images, and change nothing else.

    Args: the peers, from 1, that were `cut`; what only others use stays as it is, but for batch norms that are `slow`;
    the `count` of images that it takes. Returns how many batches they were.
    """
    norms = [*dict.fromkeys([*_norms_of(family, cut), *slow])]
    if not norms:
        return 0
    family.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    batches = min(data.train_steps(batch_size), max(1, count // batch_size))
    with progress("batch norm", batches) as advance:
        for _, (images, _) in zip(range(batches), data.train_batches(batch_size, epoch=0), strict=False):
            with device.autocast():
                family.walk(images)
            advance(1)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    device.ranks.mean_([own for norm in norms for own in (norm.running_mean, norm.running_var) if own is not None])
    family.eval()
    return batches


def slow_norms(family: PeerFamily) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms whose running statistics lag far behind a short training."""
    everyone = set(range(1, family.peers + 1))
    return [norm for norm in _norms_of(family, everyone) if norm.momentum is not None and norm.momentum < KEEPS_UP]


@contextlib.contextmanager
def keeping_up(slow: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Meanwhile what these batch norms keep of images keeps up with their weights.

    By a momentum of 0.01, as EfficientNets have, it is a hundred steps behind, and so is the accuracy of a short
    training's epoch, by which the best one is chosen. `recalibrate` takes it anew in the end.
    """
    momenta = [norm.momentum for norm in slow]
    for norm in slow:
        norm.momentum = KEEPS_UP
    try:
        yield
    finally:
        for norm, momentum in zip(slow, momenta, strict=True):
            norm.momentum = momentum


def _norms_of(family: PeerFamily, cut: set[int]) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms with running statistics that `cut` peers alone use."""
    return [
        module
        for branch in family.branches
        if cut.issuperset(branch.peers)
        for module in family.parts[branch.name].modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
