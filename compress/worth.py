"""What layers and channels are worth to the choice of widths: `--budget`, `--rank` and `--saliency`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wmlc.arch import whole_name
from wmlc.compress.learn.methods import METHODS
from wmlc.compress.learn.place import Device
from wmlc.compress.widths.choose import Scored, budgeted_by, ranked_by, score_channels
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.widths.prices import Counted, blocks_optional
from wmlc.compress.widths.proof import read_channels
from wmlc.compress.widths.rank import group_magnitude, group_taylor, random_scores
from wmlc.compress.widths.resizable import levels_of
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.sensitivity import with_sensitivity
from wmlc.records import DataRecord, Sensitivity
from wmlc.settings import LATENCY, SENSITIVITY, TrainConfig

SENSITIVITY_BATCHES = 2  # whose answers are compared where groups are narrower: of small images 256, else 64
TAYLOR_BATCHES = 8  # that first-order Taylor is the mean over: of small images 1,024


class Images(Protocol):
    """The part of a data set that a family is prepared from."""

    @property
    def record(self) -> DataRecord: ...

    def train_batches(self, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...

    def sample_batches(self, batch_size: int, count: int) -> Iterator[Tensor]: ...


def budget_of(config: TrainConfig) -> str:
    """The value of `--budget` in force."""
    if config.budget is not None:
        return config.budget
    if config.start is not None and not METHODS[config.method].exits:
        return "uniform" if config.trunk_ratio else SENSITIVITY
    return "uniform" if METHODS[config.method].cuts_trained else config.saliency


def drops_blocks(config: TrainConfig) -> bool:
    """The value of `--blocks` in force: MACs and parameters do not tell what a whole block saves."""
    return config.blocks == "drop" or (config.blocks is None and config.ratio_of == LATENCY)


def rank_of(config: TrainConfig) -> str:
    """The value of `--rank` in force; a saliency's name where weights are random and none was asked for."""
    trained = config.start is not None or METHODS[config.method].cuts_trained
    return config.rank or ("magnitude" if trained else config.saliency)


def score(
    full: nn.Sequential, config: TrainConfig, data: Images, whole: nn.Module | None = None
) -> Scored:  # fmt: skip
    """The channel graph of the full network with what its layers are worth to the budget in force.

    The channels are in the saliency's order so far. From a start neither a uniform budget nor any rank asks for a
    saliency, and it is not computed; without a start one is, as another method may ask for it whose training this one
    shall last as long as (`as_long_as`).
    Args: the `whole` network, if the full one is that in stages.
    """
    stages = list(dict(full.named_children()))
    budget = budget_of(config)
    graph = read_channels(full, data.record.input_shape, whole, budget == SENSITIVITY and drops_blocks(config))
    if whole is not None:
        graph = replace(graph, named=whole_name)
    if config.start is not None and budget in ("uniform", SENSITIVITY):
        return Scored(graph, np.ones(len(graph.layers)), [], stages)
    images, labels = next(iter(data.train_batches(_batch_size(config, data), epoch=0)))

    def by_saliency(kind: str) -> Scored:
        return score_channels(graph, parameter_saliency(full, images, labels, kind), kind, stages)

    scored = by_saliency(config.saliency)
    if budget == "taylor":
        return budgeted_by(scored, _taylor(graph, full, config, data, trained=config.start is not None))
    if budget in (config.saliency, "uniform"):
        return scored
    return replace(scored, layer_importance=by_saliency(budget).layer_importance)


def rank(
    scored: Scored, network: nn.Module, config: TrainConfig, data: Images, trained: bool, device: Device
) -> Scored:
    """`scored`, its channels in the order of the rank in force, by the weights of `network`, `trained` or not.

    As rank 0 finds it: all that widths follow from is the same in each process then.
    """
    ranked = device.ranks.of_first(lambda: _in_order(scored, network, config, data, trained).channel_rank)
    return replace(scored, channel_rank=ranked)


def _in_order(scored: Scored, network: nn.Module, config: TrainConfig, data: Images, trained: bool) -> Scored:
    graph, kind = scored.graph, rank_of(config)
    if kind == "magnitude":
        return ranked_by(scored, group_magnitude(network, graph))
    if kind == "taylor":
        return ranked_by(scored, _taylor(graph, network, config, data, trained))
    if kind == "random":
        return ranked_by(scored, random_scores(graph, torch.Generator().manual_seed(config.seed)))
    return scored


def _taylor(graph: ChannelGraph, network: nn.Module, config: TrainConfig, data: Images, trained: bool) -> list[Tensor]:
    """First-order Taylor of each unit over a few training batches, the same for every call."""
    batches = data.train_batches(_batch_size(config, data), epoch=0)
    return group_taylor(network, graph, itertools.islice(batches, TAYLOR_BATCHES), trained)


def _batch_size(config: TrainConfig, data: Images) -> int:
    """Of the batches that tell what something is worth: of small images 128, else 32."""
    return min(config.batch_size, 128 if data.record.small else 32)


def measure_sensitivity(
    scored: Scored, network: nn.Sequential, config: TrainConfig, data: Images, known: Sequence[Sensitivity] = ()
) -> Scored:
    """`scored` with what the answers of the full network lose by narrower groups, if any are cut by that.

    What has no prices yet is priced in what its ratios are of. Args: what is `known` of a run that goes on, whose
    widths must not hang on the last digits of another machine.
    """
    if budget_of(config) != SENSITIVITY or not any(config.ratios):
        return scored
    priced = scored.priced
    if priced is None:
        levels = tuple(tuple(levels_of(group, config.divisor)) for group in scored.graph.groups)
        priced = Counted(scored.graph, levels, config.ratio_of)
    ways = [blocks_optional(priced), priced]  # the latter of a run from before, and the same where all blocks stay
    for way in ways:
        if known and [(own.group, tuple(own.units), len(own.nats)) for own in known] == [
            (group.root, levels, len(levels)) for group, levels in zip(way.graph.groups, way.levels, strict=True)
        ]:
            return replace(scored, priced=way, sensitivity=[np.array(own.nats) for own in known])
    scored = replace(scored, priced=ways[0])
    batches = data.sample_batches(_batch_size(config, data), SENSITIVITY_BATCHES)
    return with_sensitivity(scored, network, list(batches))
