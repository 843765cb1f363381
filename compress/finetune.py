"""`prune-finetune`, the usual way: what is cut from the trained network, and how long it is fine-tuned."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.methods import ALONE, METHODS, Forward, Method, train_loss
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.train import make_optimizer
from wmlc.compress.prepare import Prepared, cut_anew, cut_before_training, family_of_one
from wmlc.compress.widths.choose import OutOfReachError
from wmlc.console import say
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_stages
from wmlc.settings import TrainConfig

TIMED_STEPS = 5


def of_second_half(config: TrainConfig) -> TrainConfig:
    """The settings of the fine-tuning: each cut network alone, at its own rate, without warm-up."""
    assert config.finetune_epochs is not None and config.finetune_lr is not None
    return dataclasses.replace(config, epochs=config.finetune_epochs, lr=config.finetune_lr, warmup_epochs=0.0)


def cut_trained(prepared: Prepared, baseline: Path, config: TrainConfig, data: Data, device: Device) -> Prepared:
    """The family, cut from the trained network in the directory `baseline`."""
    return cut_anew(prepared, load_stages(baseline).to(device.name), config, data)


def cut_peers(prepared: Prepared) -> PeerFamily:
    """Of the family the peers that lost anything: an uncut one is done when the unpruned network is."""
    count = sum(widths.ratio > 0 for widths in prepared.widths)
    branches = [branch for branch in prepared.family.branches if branch.peers[0] <= count]
    return PeerFamily(branches, {branch.name: prepared.family.parts[branch.name] for branch in branches})


@dataclass(frozen=True)
class StepSeconds:
    """What a training step costs here, the fastest of a few, measured by turns."""

    family: float  # a `wml` family of the same ratios, default sharing tree, all peers
    unpruned: float  # 0 where a trained start is the unpruned network
    cut: float  # all cut networks together

    def epochs(self, family_epochs: int) -> int:
        """Whole epochs of fine-tuning, 1 or more: with E epochs unpruned they last as long as E of the family."""
        return family_epochs and max(1, round(family_epochs * (self.family - self.unpruned) / self.cut))


def as_long_as_a_family(config: TrainConfig, prepared: Prepared, data: Data, device: Device) -> TrainConfig:
    """`config` with the epochs of fine-tuning that make all training take as long as a `wml` family's."""
    seconds = measure_steps(config, prepared, data, device)
    epochs = seconds.epochs(config.epochs)
    unpruned = "" if prepared.trained else f"{seconds.unpruned:.3g} s unpruned, "
    say(
        f"a step takes {seconds.family:.3g} s for a wml family, {unpruned}{seconds.cut:.3g} s for the cut networks "
        f"together; {epochs} epoch{'s' * (epochs != 1)} of fine-tuning make all training take as long as the family's"
        + "; the unpruned network is trained already"
        * prepared.trained
    )
    return dataclasses.replace(config, finetune_epochs=epochs)


def measure_steps(config: TrainConfig, prepared: Prepared, data: Data, device: Device) -> StepSeconds:
    """Time training steps of the three families that `StepSeconds` compares, on copies.

    Raises `InputError` where a `wml` family cannot have these ratios, so that there is nothing to be as long as.
    """
    like = dataclasses.replace(config, method="wml", finetune_epochs=None, finetune_lr=None)
    try:
        of_family = dataclasses.replace(like, share=None)
        reference = cut_before_training(prepared.made, prepared.scored, of_family, data.record, device).family
    except OutOfReachError as error:
        raise InputError(f"no wml family has these ratios to compare with ({error}); pass --finetune-epochs") from None
    families = [reference, *(copy.deepcopy(f) for f in (family_of_one(prepared.full), cut_peers(prepared)))]
    batches = data.train_batches(config.batch_size, epoch=0)
    images, labels = next(batches)
    seconds: list[list[float]] = [[] for _ in families]
    for _ in range(1 + TIMED_STEPS):
        for own, family, method in zip(seconds, families, (METHODS["wml"], ALONE, ALONE), strict=True):
            own.append(_step(family, images, labels, like, method, device))
    wml_s, unpruned_s, cut_s = (min(own[1:]) for own in seconds)
    return StepSeconds(wml_s, 0.0 if prepared.trained else unpruned_s, cut_s)


def _step(
    family: PeerFamily, images: torch.Tensor, labels: torch.Tensor, config: TrainConfig, method: Method, device: Device
) -> float:
    """Seconds of one training step."""
    family.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(family, config)
    weight_P = torch.full((family.peers,), 1 / family.peers, device=device.name)
    start = time.perf_counter()
    with device.autocast():
        logits_PBC, outputs = family.walk(images)
    loss = train_loss(Forward(family, logits_PBC.float(), outputs, labels, weight_P), config, method)
    loss.backward()
    optimizer.step()
    loss.item()  # waits for a GPU
    return time.perf_counter() - start
