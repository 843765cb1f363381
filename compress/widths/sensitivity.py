"""What a trained network's answers lose where one channel group is narrower: measured group by group.

Weights and gradients do not tell it: what a residual block adds to its stream is often small, and all of it can go,
while a block that halves the images has no way around it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmlc.compress.widths.choose import Scored
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGroup
from wmlc.console import note, progress
from wmlc.errors import InputError
from wmlc.files import found_once, user_cache
from wmlc.models.checkpoint import tensors_digest

FORM = 1  # of what is kept
EVERY = 2  # levels of a group, the narrowest first, of which one is measured

_Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def with_sensitivity(scored: Scored, network: nn.Sequential, batches: Sequence[Tensor]) -> Scored:
    """`scored`, each group worth what the answers of the trained `network` lose where it is narrower.

        s_g(k) = max(0, E_x KL(p(x) ‖ p_gk(x)) − E_x KL(p(x) ‖ p_full(x)))      nats an image

    p are the network's answers, p_gk those with the first k units of group g by rank and all of the others, p_full
    those of all units. Batch norm of the latter two takes the batch's own means and deviations: its running ones are of
    channels that are gone, and a few steps of training mend that first (Li et al., EagleEye, ECCV 2020). Every second
    level is measured, those between are interpolated over log(full / k), and no narrower level loses less. Where groups
    may keep nothing, that is the network without their residual block. Sensitivity of layers one by one is Li et al.'s
    (ICLR 2017, section 3.2), who measure top-1. What was measured is kept in the user's cache, for the same weights,
    images and channels.

    Args: `scored` has the prices whose levels are measured; `batches` of images float32 [B, C, H, W], normalised.
    """
    assert scored.priced is not None
    answers = _Answers(network, scored.stages, batches)
    file = user_cache() / "sensitivity" / f"{answers.digest(scored)}.json"
    levels = [len(own) for own in scored.priced.levels]

    def fits(kept: Any) -> bool:
        """Whether these are losses at those levels."""
        if not isinstance(kept, list) or not all(isinstance(own, list) for own in kept):
            return False
        numbers = [number for own in kept for number in own]
        told = all(isinstance(number, float) and math.isfinite(number) and number >= 0 for number in numbers)
        return told and [len(own) for own in kept] == levels

    lost = found_once(file, lambda: [own.tolist() for own in _measured(scored, network, answers)], fits)
    return replace(scored, sensitivity=[np.array(own) for own in lost])


def _measured(scored: Scored, network: nn.Sequential, answers: _Answers) -> list[np.ndarray]:
    """The losses of each group at its levels [K]."""
    assert scored.priced is not None
    graph, losses = scored.graph, []
    levels = [[units for units in own if units] for own in scored.priced.levels]
    blocks = [block for block in graph.blocks if not scored.priced.levels[block.groups[0]][0]]
    measured = [own[:-1:EVERY] for own in levels]
    whole = {own.root: rank for own, rank in zip(graph.groups, scored.channel_rank, strict=True)}
    count = sum(map(len, measured)) + len(blocks)
    without = f", and without each of {len(blocks)} residual blocks" if blocks else ""
    note(
        f"sensitivity: what {answers.images} images' answers lose by {len(levels)} channel groups, each at "
        f"up to {max(map(len, measured), default=0)} narrower widths{without}"
    )
    with progress("sensitivity", count, "networks") as advance:

        def lost_by(groups: Sequence[ChannelGroup], units: int) -> float:
            kept = {group.root: whole[group.root][:units].sort().values for group in groups}
            cut = cut_channels(network, graph.groups, {**whole, **kept})
            lost = answers.lost_by(cut, min(scored.stages.index(stage) for group in groups for stage in group.stages))
            advance(1)
            if not math.isfinite(lost):
                names = " and ".join(group.root for group in groups)
                raise InputError(
                    f"with {units} of its channels at {names} the network's answers are no finite numbers, so what "
                    "they lose cannot be measured; pass --budget taylor or uniform"
                )
            return lost

        for group, own, tried in zip(graph.groups, levels, measured, strict=True):
            losses.append(_curve({own[-1]: 0.0} | {units: lost_by([group], units) for units in tried}, own))
        for block in blocks:  # of which each group loses its part
            lost = max(0.0, lost_by([graph.groups[g] for g in block.groups], 0)) / len(block.groups)
            for g in block.groups:
                losses[g] = np.concatenate([[lost], losses[g]])
    return losses


def _curve(found: dict[int, float], levels: Sequence[int]) -> np.ndarray:
    """The loss at all `levels` [K] by that at some of them, the last among these; falling."""
    known = sorted(found)
    rising = np.maximum.accumulate([max(0.0, found[units]) for units in reversed(known)])
    narrowed = np.log(levels[-1] / np.array(known[::-1], dtype=float))
    return np.interp(np.log(levels[-1] / np.array(levels, dtype=float)), narrowed, rising)


class _Answers:
    """A network's answers to a few images, and what comes to each of its stages where batch norm goes by the batch."""

    def __init__(self, network: nn.Sequential, stages: Sequence[str], batches: Sequence[Tensor]) -> None:
        own = copy.deepcopy(network).eval()
        self.images = sum(map(len, batches))
        self.log_probabilities = [own(images).log_softmax(1) for images in batches]
        self.weights = list(network.state_dict().values())
        self.inputs: list[list[Tensor]] = []  # of each batch, of each stage
        self.stages, whole = list(stages), list[Tensor]()
        _by_the_batch(own)
        for images in batches:
            inputs, at = list[Tensor](), images
            for stage in self.stages:
                inputs.append(at)
                at = own.get_submodule(stage)(copy.deepcopy(at))
            self.inputs.append(inputs)
            whole.append(at)
        self.unchanged = self._divergence(whole)

    def lost_by(self, cut: nn.Module, first: int) -> float:
        """By how much more its answers differ than those of all units do; it is cut from its `first` stage on."""
        _by_the_batch(cut.eval())
        found = []
        for inputs in self.inputs:
            at = copy.deepcopy(inputs[first])  # whose stage may work in place
            for stage in self.stages[first:]:
                at = cut.get_submodule(stage)(at)
            found.append(at)
        return self._divergence(found) - self.unchanged

    def _divergence(self, answers: Sequence[Tensor]) -> float:
        """The mean KL divergence from the network's own answers, in nats."""
        total = sum(
            float(F.kl_div(found.log_softmax(1), own, log_target=True, reduction="sum"))
            for found, own in zip(answers, self.log_probabilities, strict=True)
        )
        return total / self.images

    def digest(self, scored: Scored) -> str:
        """Of all that losses hang on: the network's weights and answers, the images, the channels and their order."""
        assert scored.priced is not None
        about = repr((FORM, scored.priced.levels, [own.root for own in scored.graph.groups]))
        nats = [own.mul(100).round() for own in self.log_probabilities]  # which tell another forward pass
        images = (inputs[0] for inputs in self.inputs)
        return tensors_digest((*self.weights, *images, *nats, *scored.channel_rank), about)[:32]


def _by_the_batch(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _Norm):
            module.train()
