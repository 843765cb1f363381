"""From settings to a family before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from wmlc.compress.config import TrainConfig
from wmlc.compress.learn.family import PeerFamily, build_exits, build_family
from wmlc.compress.learn.methods import add_extras
from wmlc.compress.learn.train import Device
from wmlc.compress.widths.graph import read_channels
from wmlc.compress.widths.plan import PeerPlan, Scored, plan_by_magnitude, plan_family, score_channels
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.tree import sharing_tree
from wmlc.models.checkpoint import load_network
from wmlc.models.cost import total_cost
from wmlc.models.zoo import build_network
from wmlc.records import Branch, DataRecord


class Images(Protocol):
    """What planning needs of a data set."""

    @property
    def record(self) -> DataRecord: ...

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Planned:
    """A family before its first step."""

    full: nn.Sequential
    scored: Scored
    plans: list[PeerPlan]
    family: PeerFamily


def plan(config: TrainConfig, data: Images, device: Device) -> Planned:
    """Initialise the full network from the seed, score it on a training batch and cut the peers.

    `prune-finetune` gets the widths that it will have: its channels are chosen after training (`cut_trained`).
    """
    record = data.record
    torch.manual_seed(config.seed)
    full = _fresh(config, record, device)
    graph = read_channels(full, record.input_shape)
    images, labels = next(iter(data.train_batches(min(config.batch_size, 128 if record.small else 32), epoch=0)))
    stages = list(dict(full.named_children()))
    scores = parameter_saliency(full, images, labels, config.saliency)
    scored = score_channels(graph, scores, config.saliency, stages)
    if config.method == "self-distillation":
        family = build_exits(full, record.input_shape).to(device.name)
        plans = [_exit_plan(family.peer(k + 1), scored, config, record) for k in range(family.peers)]
        return Planned(full, scored, plans, family)
    if config.method == "prune-finetune":
        return _cut_by_magnitude(full, scored, config, record)
    plans = plan_family(
        scored, list(config.ratios), config.sharing, config.ratio_of, config.divisor, config.trunk_ratio
    )
    tree = sharing_tree(len(plans), stages, config.sharing)
    family = build_family(
        full, record.input_shape, plans, tree,
        mean_joins=config.join == "mean", fresh=lambda: _fresh(config, record, device),
    )  # fmt: skip
    add_extras(family, config)
    return Planned(full, scored, plans, family.to(device.name))


def cut_trained(planned: Planned, baseline: Path, config: TrainConfig, record: DataRecord, device: Device) -> Planned:
    """`prune-finetune`'s family, cut from the trained network in the directory `baseline`."""
    trained = load_network(baseline).to(device.name)
    return _cut_by_magnitude(trained, planned.scored, config, record)


def cut_peers(planned: Planned) -> PeerFamily:
    """Of `prune-finetune`'s family the peers that lost anything: an uncut one is done when the unpruned network is."""
    count = sum(plan.ratio > 0 for plan in planned.plans)
    branches = [branch for branch in planned.family.branches if branch.peers[0] <= count]
    return PeerFamily(branches, {branch.name: planned.family.parts[branch.name] for branch in branches})


def family_of_one(full: nn.Sequential) -> PeerFamily:
    """The unpruned network as a family with one peer, so that one loop trains both."""
    stages = dict(full.named_children())
    names = [None, *stages]
    branches = [Branch(name, name, (1,), parent) for parent, name in zip(names, stages, strict=False)]
    return PeerFamily(branches, stages)


def _fresh(config: TrainConfig, record: DataRecord, device: Device) -> nn.Sequential:
    return build_network(config.arch, len(record.class_names), record.input_shape).to(device.name)


def _cut_by_magnitude(full: nn.Sequential, scored: Scored, config: TrainConfig, record: DataRecord) -> Planned:
    shape = record.input_shape
    plans = plan_by_magnitude(full, shape, scored, list(config.ratios), config.ratio_of, config.divisor)
    tree = sharing_tree(len(plans), scored.stages, config.sharing)
    return Planned(full, scored, plans, build_family(full, shape, plans, tree))


def _exit_plan(network: nn.Module, scored: Scored, config: TrainConfig, record: DataRecord) -> PeerPlan:
    """What an exit costs, in the words of a cut: the share of the full network that it does without."""
    cost = total_cost(network, record.input_shape)
    ratio = 1 - getattr(cost, config.ratio_of) / getattr(scored.graph, config.ratio_of)
    return PeerPlan({}, cost.params, cost.macs, round(ratio, 3), ratio)
