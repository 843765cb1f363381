"""The peers of a family as one network: their weighted mean, what they share computed once.

P peers, B batch, C classes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Σ_i ω_i z_i over the peers' logits z_i [B, C] (PAPER.md §3, the network of the outer problem).

    Args: peers, whose stages may be equal in every tensor (those run once), and ω [P].
    """

    def __init__(self, peers: Sequence[nn.Sequential], weight_P: Sequence[float]) -> None:
        super().__init__()
        assert len(peers) == len(weight_P)
        self.branches = nn.ModuleDict()
        self.paths: list[list[str]] = []  # of each peer, the branch it takes at each stage
        for number, peer in enumerate(peers, 1):
            self.paths.append(list(self._enter(peer, number)))
        self.register_buffer("weight_P", torch.tensor(weight_P), persistent=False)

    def _enter(self, peer: nn.Sequential, number: int) -> Iterator[str]:
        """Add the peer's stages that no earlier peer brought along, and yield the branch of each stage."""
        together = self.paths.copy()
        for depth, (stage, module) in enumerate(peer.named_children()):
            together = [p for p in together if depth < len(p) and _equal(self.branches[p[depth]], module)]
            if together:
                yield together[0][depth]
                continue
            name = f"{stage}_{number}"
            self.branches[name] = module
            yield name

    def forward(self, images_BCHW: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = {}
        logits = []
        for path in self.paths:
            now = images_BCHW
            for branch in path:
                if branch not in outputs:
                    outputs[branch] = self.branches[branch](now)
                now = outputs[branch]
            logits.append(now)
        return torch.einsum("p,pbc->bc", self.get_buffer("weight_P"), torch.stack(logits))


def _equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )
