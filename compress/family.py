"""The family: a tree of dense stages, walked once per forward (paper, section 3.1).

Shape legend: P peers, B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmlc.compress.channels import cut_channels
from wmlc.compress.prune import PeerPlan
from wmlc.compress.tree import Partition


@dataclass(frozen=True)
class Branch:
    """One copy of a stage: whom it serves and which branch feeds it."""

    name: str
    stage: str
    peers: tuple[int, ...]  # counted from 1
    parent: str | None  # None: the images


class PeerFamily(nn.Module):
    """M peers as one module; `forward` gives all their logits and runs each shared stage once."""

    def __init__(self, branches: list[Branch], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.branches = branches
        self.parts = nn.ModuleDict(modules)
        self.peers = max(peer for branch in branches for peer in branch.peers)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images, float32 [B, C, H, W] → logits [P, B, C], the smallest peer first."""
        outputs: dict[str | None, Tensor] = {None: images_BCHW}
        for branch in self.branches:
            outputs[branch.name] = self.parts[branch.name](outputs[branch.parent])
        heads = {branch.peers[0]: outputs[branch.name] for branch in self.branches if branch.stage == "head"}
        return torch.stack([heads[peer] for peer in sorted(heads)])

    def peer(self, peer: int) -> nn.Sequential:
        """Peer `peer` (from 1) as a plain sequence of stages; the modules are shared, not copied."""
        path = [branch for branch in self.branches if peer in branch.peers]
        network = nn.Sequential()
        for branch in path:
            network.add_module(branch.stage, self.parts[branch.name])
        return network


def build_family(
    full: nn.Sequential, input_shape: tuple[int, int, int], plans: list[PeerPlan], tree: list[Partition]
) -> PeerFamily:
    """Cut `full` once per peer and join the copies along the tree.

    All peers start from the same initial weights. A shared stage is its least pruned peer's; the
    plans make its outputs fit every stage that follows it.
    """
    networks = [cut_channels(full, input_shape, plan.kept) for plan in plans]
    branches: list[Branch] = []
    modules: dict[str, nn.Module] = {}
    former: str | None = None
    for stage, level in zip(dict(full.named_children()), tree, strict=True):
        for peers in level:
            name = f"{stage}_of_{'_'.join(map(str, peers))}"
            parent = next((b.name for b in branches if peers[0] in b.peers and b.stage == former), None)
            branches.append(Branch(name, stage, peers, parent))
            modules[name] = networks[peers[-1] - 1].get_submodule(stage)
        former = stage
    return PeerFamily(branches, modules)
