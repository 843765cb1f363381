"""From settings to a family before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from wmlc.compress.config import sharing
from wmlc.compress.learn.extras import add_extras, feature_pairs
from wmlc.compress.learn.family import PeerFamily, build_exits, build_family
from wmlc.compress.learn.methods import FEATURE_TERMS, METHODS
from wmlc.compress.learn.place import Device
from wmlc.compress.widths.choose import Asked, PeerWidths, Scored, choose_by_magnitude, choose_widths, score_channels
from wmlc.compress.widths.graph import read_channels
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.tree import sharing_tree
from wmlc.errors import InputError
from wmlc.models.cost import total_cost
from wmlc.models.zoo import build_network
from wmlc.records import Branch, DataRecord
from wmlc.settings import TrainConfig


class Images(Protocol):
    """The part of a data set that a family is prepared from."""

    @property
    def record(self) -> DataRecord: ...

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Prepared:
    """A family before its first step."""

    full: nn.Sequential
    scored: Scored
    widths: list[PeerWidths]
    family: PeerFamily


def prepare(config: TrainConfig, data: Images, device: Device) -> Prepared:
    """Initialise the full network from the seed, score it on a training batch and cut the peers.

    A method that cuts the trained network gets the widths that it will have, which do not depend on the weights; which
    channels stay is chosen after training (`finetune.cut_trained`).
    """
    record, method = data.record, METHODS[config.method]
    torch.manual_seed(config.seed)
    full = _fresh(config, record, device)
    graph = read_channels(full, record.input_shape)
    images, labels = next(iter(data.train_batches(min(config.batch_size, 128 if record.small else 32), epoch=0)))
    stages = list(dict(full.named_children()))
    scores = parameter_saliency(full, images, labels, config.saliency)
    scored = score_channels(graph, scores, config.saliency, stages)
    if method.exits:
        family = build_exits(full, record.input_shape).to(device.name)
        widths = [_widths_of_exit(family.peer(k + 1), scored, config, record) for k in range(family.peers)]
        return Prepared(full, scored, widths, family)
    if method.cuts_trained:
        return cut_by_magnitude(full, scored, config, record)
    asked = asked_of(config)
    widths = choose_widths(scored, asked)
    family = build_family(
        full, record.input_shape, widths, sharing_tree(len(widths), stages, asked.share),
        mean_joins=config.join == "mean", fresh=lambda: _fresh(config, record, device),
    )  # fmt: skip
    term = FEATURE_TERMS.get(config.feature_loss)
    if term and family.peers > 1 and not feature_pairs(family):
        raise InputError(
            "feature_loss teaches stages that a peer has for itself, and all are shared; leave it out, or share less"
        )
    add_extras(family, gate=method.gated, regressors=bool(term and term.regressors))
    return Prepared(full, scored, widths, family.to(device.name))


def asked_of(config: TrainConfig) -> Asked:
    """What a run's settings say of its peers."""
    return Asked(config.ratios, sharing(config), config.ratio_of, config.divisor, config.trunk_ratio)


def cut_by_magnitude(full: nn.Sequential, scored: Scored, config: TrainConfig, record: DataRecord) -> Prepared:
    """Peers cut from `full` by the magnitude of its weights, trained or not; they share nothing."""
    shape = record.input_shape
    widths = choose_by_magnitude(full, shape, scored, asked_of(config))
    tree = sharing_tree(len(widths), scored.stages, sharing(config))
    return Prepared(full, scored, widths, build_family(full, shape, widths, tree))


def family_of_one(full: nn.Sequential) -> PeerFamily:
    """The unpruned network as a family with one peer, so that one loop trains both."""
    stages = dict(full.named_children())
    names = [None, *stages]
    branches = [Branch(name, name, (1,), parent) for parent, name in zip(names, stages, strict=False)]
    return PeerFamily(branches, stages)


def _fresh(config: TrainConfig, record: DataRecord, device: Device) -> nn.Sequential:
    return build_network(config.arch, len(record.class_names), record.input_shape).to(device.name)


def _widths_of_exit(network: nn.Module, scored: Scored, config: TrainConfig, record: DataRecord) -> PeerWidths:
    """What an exit costs, in the words of a cut: the share of the full network that it does without."""
    cost = total_cost(network, record.input_shape)
    ratio = 1 - getattr(cost, config.ratio_of) / getattr(scored.graph, config.ratio_of)
    return PeerWidths({}, cost.params, cost.macs, round(ratio, 3), ratio)
