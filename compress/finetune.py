"""What of a family is trained, from what, and for how long, where that is not simply all of it for so many epochs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from wmlc.compress.config import settle, untaught
from wmlc.compress.learn.family import PeerFamily, family_of_one
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.spending import Spending
from wmlc.compress.learn.teacher import Teacher
from wmlc.compress.learn.train import reweighs, steps_of
from wmlc.compress.prepare import (
    Prepared,
    cut_anew,
    cut_before_training,
    ranked_and_measured,
    settle_teacher,
    trained_peers,
)
from wmlc.compress.widths.choose import OutOfReachError
from wmlc.console import say
from wmlc.data import Data
from wmlc.effort import epochs_of_unpruned
from wmlc.errors import InputError
from wmlc.models.checkpoint import load_stages
from wmlc.models.cost import total_cost
from wmlc.ranks import SOLO
from wmlc.settings import TrainConfig


def fine_tuning(config: TrainConfig) -> TrainConfig:
    """The settings of the fine-tuning: each cut network alone, at its own rate, without warm-up."""
    assert config.finetune_lr is not None
    epochs = config.epochs if config.finetune_epochs is None else config.finetune_epochs
    return dataclasses.replace(config, epochs=epochs, lr=config.finetune_lr, warmup_epochs=0.0)


def of_peers(config: TrainConfig) -> TrainConfig:
    """The settings that the peers are trained by: those of the fine-tuning where a method cuts the trained network."""
    return fine_tuning(config) if METHODS[config.method].cuts_trained else config


def cut_trained(prepared: Prepared, baseline: Path, config: TrainConfig, data: Data, device: Device) -> Prepared:
    """The family, cut from the trained network in the directory `baseline`."""
    weights = device.ranks.of_first(lambda: load_stages(baseline).state_dict())  # which rank 0 has just written
    trained = copy.deepcopy(prepared.full).to(memory_format=torch.contiguous_format)
    trained.load_state_dict(weights)
    trained = trained.to(device.name).eval()
    return cut_anew(prepared, trained, config, data.shared(SOLO), device)  # ranked by the same images in all processes


def cut_peers(family: PeerFamily, config: TrainConfig) -> set[int]:
    """The peers, from 1, of a family cut from trained weights whose batch norm was kept for more channels."""
    return {peer for peer, ratio in enumerate(config.ratios, 1) if ratio and peer <= family.peers}


def teacher_of(prepared: Prepared, config: TrainConfig, device: Device) -> Teacher | None:
    """The frozen start, where it teaches."""
    if config.teacher != "frozen":
        return None
    features = config.feature_loss != "none"
    return Teacher(family_of_one(prepared.full), device, config.reuse_teacher, features, config.compile)


def spending_of(family: PeerFamily, prepared: Prepared, config: TrainConfig, data: Data) -> Spending:
    """What training `family` costs under `config`."""
    batch, frozen = config.batch_size, config.teacher == "frozen"
    replayed = config.reuse_teacher * data.train_steps(batch)
    return Spending(
        batch, min(batch, data.record.held_out), total_cost(family, data.record.input_shape).macs,
        teacher=prepared.scored.graph.macs if frozen else 0, taught=replayed or None,
        cadence=config.reweigh_every if reweighs(config, family.peers, frozen) else None,
    )  # fmt: skip


def planned_macs(family: PeerFamily, prepared: Prepared, config: TrainConfig, data: Data) -> float:
    """MACs of all steps that `family` takes under `config`."""
    return spending_of(family, prepared, config, data).until(steps_of(config, data.train_steps(config.batch_size)))


def tell_cost(
    parts: Sequence[tuple[PeerFamily, TrainConfig]], prepared: Prepared, config: TrainConfig, data: Data
) -> float:
    """Say what the training of a run costs, and return it in MACs. Args: the families, each with its settings."""
    macs = sum(planned_macs(family, prepared, own, data) for family, own in parts if own.epochs)
    if macs:
        epochs = epochs_of_unpruned(macs, prepared.scored.graph.macs, data.record.train)
        normed = any(isinstance(own, _BatchNorm) for family, _ in parts for own in family.modules())
        retakes = normed and (config.start is not None or METHODS[config.method].cuts_trained)
        apart = ["the trials of rates"] * config.lr_auto + ["batch norm's statistics"] * retakes
        beside = f" ({' and '.join(apart)} apart)" if apart else ""
        say(f"cost: {macs:.3g} MACs, as much as {epochs:.2f} epochs of the unpruned network{beside}")
    return macs


def as_long_as(config: TrainConfig, prepared: Prepared, data: Data, device: Device) -> TrainConfig:
    """`config` with the steps that cost as many MACs as another method's training does, if that is asked for.

    Of a method that trains the unpruned network first, that is a part of its training. Raises `InputError` where the
    other method cannot have this family.
    """
    if config.as_long_as is None or config.steps is not None or config.epochs == 0:
        return config
    method = METHODS[config.method]
    like = settle_teacher(_settled_for(config, config.as_long_as), prepared.made)
    scored = prepared.scored
    if method.exits:  # which is not asked what its channels are worth
        scored = ranked_and_measured(prepared.made, scored, like, data, device)
    try:
        other = cut_before_training(prepared.made, scored, like, data.record, device)
    except OutOfReachError as error:
        how = "--finetune-epochs or --steps" if method.cuts_trained else "--steps"
        raise InputError(f"no {like.method} family has these ratios to last as long as ({error}); pass {how}") from None
    macs = planned_macs(trained_peers(other.family, like), other, like, data)
    if not prepared.trained:  # then a method that cuts the trained network trains that itself
        alone = planned_macs(family_of_one(prepared.full), prepared, untaught(config), data)
        macs += alone * (METHODS[like.method].cuts_trained - method.cuts_trained)
    own, part = of_peers(config), trained_peers(prepared.family, config)
    steps = spending_of(part, prepared, own, data).affordable(macs)
    say(
        f"{steps:,} steps, {steps / data.train_steps(config.batch_size):.2f} epochs, cost as much as "
        f"{config.epochs} epoch{'s' * (config.epochs != 1)} of {like.method}"
        + ", with the unpruned network's before them"
        * (method.cuts_trained and not prepared.trained)
    )
    return dataclasses.replace(config, steps=steps)


def _settled_for(config: TrainConfig, method: str) -> TrainConfig:
    """The same settings with another method, and with what that one has of its own."""
    theirs = (
        "share", "join", "alpha", "temperature", "teacher", "weigh", "weight_lr", "reweigh_every",
        "as_long_as", "steps",
    )  # fmt: skip
    ours = ("finetune_epochs", "finetune_lr", "feature_loss", "feature_weight", "reuse_teacher")
    unset = {field.name: field.default for field in dataclasses.fields(config) if field.name in theirs + ours}
    kept = {"reuse_teacher": config.reuse_teacher} if METHODS[method].sources and config.start is not None else {}
    return settle({**vars(config), **unset, **kept, "method": method}, f"as_long_as {method}")
