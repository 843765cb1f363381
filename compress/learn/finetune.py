"""`prune-finetune`, the usual way: how long its second half may last to cost what a family costs."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass

import torch

from wmlc.compress.config import TrainConfig
from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import train_loss
from wmlc.compress.learn.train import Device, make_optimizer
from wmlc.compress.planning import Planned, cut_peers, family_of_one, plan
from wmlc.compress.widths.plan import OutOfReachError
from wmlc.data import Data
from wmlc.errors import InputError

TIMED_STEPS = 5


@dataclass(frozen=True)
class StepSeconds:
    """What a training step costs here, the fastest of a few, measured by turns."""

    family: float  # a `wml` family of the same ratios, default sharing tree, all peers
    unpruned: float
    cut: float  # all cut networks together

    def epochs(self, family_epochs: int) -> int:
        """Whole epochs of fine-tuning, at least 1: with E epochs unpruned they last as long as E of the family."""
        return max(1, round(family_epochs * (self.family - self.unpruned) / self.cut))


def measure_steps(config: TrainConfig, planned: Planned, data: Data, device: Device) -> StepSeconds:
    """Time training steps of the three families that `StepSeconds` compares, on copies.

    Raises `InputError` where a `wml` family cannot have these ratios, so that there is nothing to be as long as.
    """
    like = dataclasses.replace(config, method="wml", finetune_epochs=None, finetune_lr=None)
    try:
        reference = plan(dataclasses.replace(like, share=None), data, device).family
    except OutOfReachError as error:
        raise InputError(f"no wml family has these ratios to compare with ({error}); pass --finetune-epochs") from None
    families = [reference, *(copy.deepcopy(f) for f in (family_of_one(planned.full), cut_peers(planned)))]
    batches = data.train_batches(config.batch_size, epoch=0)
    images, labels = next(batches)
    seconds: list[list[float]] = [[] for _ in families]
    for _ in range(1 + TIMED_STEPS):
        for own, family, method in zip(seconds, families, ("wml", "independent", "independent"), strict=True):
            own.append(_step(family, images, labels, like, method, device))
    return StepSeconds(*(min(own[1:]) for own in seconds))


def _step(
    family: PeerFamily, images: torch.Tensor, labels: torch.Tensor, config: TrainConfig, method: str, device: Device
) -> float:
    family.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(family, config)
    weight_P = torch.full((family.peers,), 1 / family.peers, device=device.name)
    start = time.perf_counter()
    with device.autocast():
        logits_PBC, outputs = family.walk(images)
    loss = train_loss(family, logits_PBC.float(), outputs, labels, weight_P, config, method)
    loss.backward()
    optimizer.step()
    loss.item()  # waits for a GPU
    return time.perf_counter() - start
