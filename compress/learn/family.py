"""The family: a tree of dense stages, walked once per forward (paper, section 3.1).

Shape legend: P peers, B batch, C classes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmlc.compress.widths.choose import PeerWidths
from wmlc.compress.widths.cut import cut_channels
from wmlc.compress.widths.graph import ChannelGroup
from wmlc.compress.widths.tree import Partition
from wmlc.errors import InputError
from wmlc.models.exits import end_at_exit
from wmlc.records import Branch


class PeerFamily(nn.Module):
    """M peers as one module; `forward` gives all their logits and runs each shared stage once.

    `mean_joins` weighs the gradient of each branch by its share of the peers wherever branches join (Song & Chai,
    NeurIPS 2018, section 3.3): a shared stage then learns from the mean of its peers' gradients, not from their sum,
    which acts on it like a learning rate as many times as high. What a method needs for teaching alone (a
    gate, hints' regressors) is in `extras` and belongs to no peer.
    """

    def __init__(
        self, branches: list[Branch], modules: dict[str, nn.Module], mean_joins: bool = False,
        extras: nn.ModuleDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.branches = branches
        self.parts = nn.ModuleDict(modules)
        self.extras = nn.ModuleDict() if extras is None else extras
        self.peers = max(peer for branch in branches for peer in branch.peers)
        serves = {branch.name: len(branch.peers) for branch in branches}
        self.shares = {
            branch.name: len(branch.peers) / serves[branch.parent] if mean_joins and branch.parent else 1.0
            for branch in branches
        }

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images, float32 [B, C, H, W] → logits [P, B, C], the smallest peer first."""
        return self.walk(images_BCHW)[0]

    def walk(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits [P, B, C], and each branch's output by name: a stage's [B, C, H, W], a head's features [B, C]."""
        entering: dict[str | None, Tensor] = {None: images_BCHW}
        outputs: dict[str, Tensor] = {}
        heads: dict[int, Tensor] = {}
        for branch in self.branches:
            part, now, share = self.parts[branch.name], entering[branch.parent], self.shares[branch.name]
            if share < 1:
                scaled = _ScaledGradient if torch.compiler.is_compiling() else _ScaledBothWays
                now = scaled.apply(now, share)
            if branch.stage == "head":
                *layers, fc = part.children()
                for layer in layers:
                    now = layer(now)
                heads[branch.peers[0]] = fc(now)
            else:
                entering[branch.name] = now = part(now)
            outputs[branch.name] = now
        return torch.stack([heads[peer] for peer in sorted(heads)]), outputs

    def branch(self, stage: str, peer: int) -> Branch:
        """The copy of `stage` that peer `peer` (from 1) goes through."""
        return next(branch for branch in self.branches if branch.stage == stage and peer in branch.peers)

    def peer(self, peer: int) -> nn.Sequential:
        """Peer `peer` (from 1) as a plain sequence of stages; the modules are shared, not copied."""
        path = [branch for branch in self.branches if peer in branch.peers]
        network = nn.Sequential()
        for branch in path:
            network.add_module(branch.stage, self.parts[branch.name])
        return network


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient comes back multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _ScaledBothWays(_ScaledGradient):
    """The same, which forward mode sees as the identity; torch.compile does not take a Function with a `jvp`."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, factor: None) -> Tensor:
        return tangent.view_as(tangent)


def build_family(
    full: nn.Sequential,
    groups: Sequence[ChannelGroup],
    widths: list[PeerWidths],
    tree: list[Partition],
    mean_joins: bool = False,
    fresh: Callable[[], nn.Sequential] | None = None,
) -> PeerFamily:
    """Cut `full` once per peer and join the copies along the tree.

    All peers start from the same weights, but one that keeps the very channels of a larger peer is cut from a
    network that `fresh` draws anew: twins that start alike would get the same gradients and stay alike. A shared
    stage is its least pruned peer's; the widths are such that its outputs fit every stage that follows it.
    """
    networks = []
    for index, own in enumerate(widths):
        twin = any(_same_channels(own, larger) for larger in widths[index + 1 :])
        networks.append(cut_channels(fresh() if twin and fresh else full, groups, own.kept))
    branches: list[Branch] = []
    modules: dict[str, nn.Module] = {}
    former: str | None = None
    for stage, level in zip(dict(full.named_children()), tree, strict=True):
        for peers in level:
            name = _branch_name(stage, peers)
            parent = next((b.name for b in branches if peers[0] in b.peers and b.stage == former), None)
            branches.append(Branch(name, stage, peers, parent))
            modules[name] = networks[peers[-1] - 1].get_submodule(stage)
        former = stage
    return PeerFamily(branches, modules, mean_joins)


def _branch_name(stage: str, peers: tuple[int, ...]) -> str:
    return f"{stage}_of_{'_'.join(map(str, peers))}"


def twins(widths: list[PeerWidths]) -> tuple[int, int] | None:
    """The first two peers, from 1, that keep the very same channels of the full network."""
    pairs = itertools.combinations(enumerate(widths, 1), 2)
    return next(((i, j) for (i, one), (j, other) in pairs if _same_channels(one, other)), None)


def _same_channels(one: PeerWidths, other: PeerWidths) -> bool:
    return all(torch.equal(kept, other.kept[root]) for root, kept in one.kept.items())


def build_exits(full: nn.Sequential, input_shape: tuple[int, int, int]) -> PeerFamily:
    """The exits of a copy of `full` as a family: peer k ends after stage k, the last one is the whole network.

    Raises `InputError` for a network that has no stages to end after.
    """
    full = copy.deepcopy(full)
    stem, *stages = list(dict(full.named_children()))[:-1] or [""]
    if not stages:
        raise InputError(
            "exits are where a network can end after a stage, and this one cannot be split into stages; "
            "choose another network, or another method than self-distillation"
        )
    peers = tuple(range(1, len(stages) + 1))
    branches = [Branch(_branch_name(stem, peers), stem, peers, None)]
    modules: dict[str, nn.Module] = {branches[0].name: full.get_submodule(stem)}
    trunk = branches[0].name
    for number, stage in enumerate(stages, 1):
        serves = peers[number - 1 :]
        name, head = _branch_name(stage, serves), _branch_name("head", (number,))
        branches += [Branch(name, stage, serves, trunk), Branch(head, "head", (number,), name)]
        modules[name] = full.get_submodule(stage)
        modules[head] = end_at_exit(full, number, input_shape).get_submodule("head")
        trunk = name
    return PeerFamily(branches, modules)


def family_of_one(full: nn.Sequential) -> PeerFamily:
    """The unpruned network as a family with one peer, so that one loop trains both."""
    stages = dict(full.named_children())
    names = [None, *stages]
    branches = [Branch(name, name, (1,), parent) for parent, name in zip(names, stages, strict=False)]
    return PeerFamily(branches, stages)
