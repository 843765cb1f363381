"""What a family has for teaching alone, and no peer keeps: ONE's gate, the regressors of hints.

Shape legend: P peers, B batch, C classes or channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import gated_ensemble
from wmlc.errors import InputError
from wmlc.records import Branch

GATE = "gate"


class Gate(nn.Module):
    """ONE's gate (Lan et al., NeurIPS 2018, section 3.1): shared features → a weight for each branch, each image."""

    def __init__(self, channels: int, peers: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, peers)
        self.bn = nn.BatchNorm1d(peers)

    def forward(self, shared_BCHW: Tensor) -> Tensor:
        """Features [B, C, H, W] → weights on the simplex [B, P]: pooling, linear, batch norm, ReLU, softmax."""
        pooled_BC = F.adaptive_avg_pool2d(shared_BCHW, 1).flatten(1)
        return F.softmax(F.relu(self.bn(self.fc(pooled_BC))).float(), dim=1)


def add_extras(family: PeerFamily, *, gate: bool, regressors: bool) -> None:
    """Give `family` a gate, where there is more than one peer, and a regressor for each stage that gets hints."""
    if gate and family.peers > 1:
        family.extras[GATE] = Gate(_out_channels(family.parts[_trunk(family).name]), family.peers)
    if regressors:
        for student, teacher in feature_pairs(family):
            narrow, wide = (_out_channels(family.parts[branch.name]) for branch in (student, teacher))
            family.extras[f"hint_{student.name}"] = nn.Conv2d(narrow, wide, kernel_size=1)


def regressor(family: PeerFamily, student: str) -> nn.Module:
    """What brings the output of the branch `student` to its teacher's channels."""
    return family.extras[f"hint_{student}"]


def gate_weights(family: PeerFamily, outputs: Mapping[str, Tensor]) -> Tensor:
    """ONE's weight for each branch and image, from the last stage that all branches share; [B, P]."""
    return family.extras[GATE](outputs[_trunk(family).name].float())


def ensembles(
    family: PeerFamily, logits_PBC: Tensor, outputs: Mapping[str, Tensor], weight_P: Tensor
) -> tuple[Tensor, Tensor]:
    """The method's own ensemble, Σ_i ω_i z_i or ONE's gated mix, and the plain average; each [B, C]."""
    if GATE in family.extras:
        own_BC = gated_ensemble(logits_PBC, gate_weights(family, outputs))
    else:
        own_BC = torch.einsum("p,pbc->bc", weight_P, logits_PBC)
    return own_BC, logits_PBC.mean(0)


def feature_pairs(family: PeerFamily) -> list[tuple[Branch, Branch]]:
    """Each stage's copies that learn from features, with the copy that the largest peer goes through."""
    return [
        (branch, family.branch(branch.stage, family.peers))
        for branch in family.branches
        if branch.stage != "head" and family.peers not in branch.peers
    ]


def _trunk(family: PeerFamily) -> Branch:
    """The last stage that all peers share."""
    shared = [branch for branch in family.branches if len(branch.peers) == family.peers]
    if not shared:
        raise InputError(
            "the gate of one looks at a stage that all peers share, and nothing is shared; leave out share"
        )
    return shared[-1]


def _out_channels(stage: nn.Module) -> int:
    """The channels that a stage puts out: those of its last batch norm."""
    return [module.num_features for module in stage.modules() if isinstance(module, nn.BatchNorm2d)][-1]
