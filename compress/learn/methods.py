"""What a training step descends under each method: the objectives over a family's logits and stages.

Shape legend: P peers, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wmlc.compress.config import TrainConfig
from wmlc.compress.learn.family import Gate, PeerFamily
from wmlc.compress.learn.features import attention_distance, hint_distance, pooled_distance
from wmlc.compress.learn.losses import (
    cl_losses,
    cross_entropies,
    dml_losses,
    gated_ensemble,
    one_losses,
    self_distillation_losses,
    wml_losses,
)
from wmlc.errors import InputError
from wmlc.records import Branch


def add_extras(family: PeerFamily, config: TrainConfig) -> None:
    """Give `family` what the method needs for teaching alone: ONE's gate, regressors for hints."""
    if config.method == "one" and family.peers > 1:
        family.extras["gate"] = Gate(_out_channels(family.parts[_trunk(family).name]), family.peers)
    if config.feature_loss == "hints":
        for student, teacher in feature_pairs(family):
            narrow, wide = (_out_channels(family.parts[branch.name]) for branch in (student, teacher))
            family.extras[f"hint_{student.name}"] = nn.Conv2d(narrow, wide, kernel_size=1)


def train_loss(
    family: PeerFamily,
    logits_PBC: Tensor,
    outputs: Mapping[str, Tensor],
    labels_B: Tensor,
    weight_P: Tensor,
    config: TrainConfig,
    method: str,
) -> Tensor:
    """The scalar that a step descends: the method's losses summed over the peers, and a feature term if there is one.

    For weighted mutual learning it is P · Σ_i ω_i ℓ_i. The factor P keeps the minimiser and gives a private stage, at
    uniform weights, the same gradient as a network trained alone: without it more peers would mean smaller steps.
    Args: what `PeerFamily.walk` returned, class ids int64 [B], ω [P].
    """
    alpha, temperature = config.alpha or 0.0, config.temperature or 1.0
    if method == "independent" or len(weight_P) == 1:
        return cross_entropies(logits_PBC, labels_B).sum()
    if method in ("wml", "wml-p"):
        loss = len(weight_P) * (weight_P @ wml_losses(logits_PBC, labels_B, alpha, temperature))
    elif method == "dml":
        loss = dml_losses(logits_PBC, labels_B, temperature).sum()
    elif method == "one":
        loss = one_losses(logits_PBC, labels_B, gate_weights(family, outputs), temperature).sum()
    elif method == "cl":
        loss = cl_losses(logits_PBC, labels_B, alpha, temperature).sum()
    else:
        assert method == "self-distillation", method
        loss = self_distillation_losses(logits_PBC, labels_B, alpha, temperature).sum()
        features = [outputs[family.branch("head", peer).name].float() for peer in range(1, family.peers + 1)]
        hints = [pooled_distance(feature_BC, features[-1]) for feature_BC in features[:-1]]
        loss = loss + (config.feature_weight or 0.0) * torch.stack(hints).sum()
    if config.feature_loss != "none":
        loss = loss + (config.feature_weight or 0.0) * _feature_term(family, outputs, config.feature_loss)
    return loss


def gate_weights(family: PeerFamily, outputs: Mapping[str, Tensor]) -> Tensor:
    """ONE's weight for each branch and image, from the last stage that all branches share; [B, P]."""
    return family.extras["gate"](outputs[_trunk(family).name].float())


def ensembles(
    family: PeerFamily, logits_PBC: Tensor, outputs: Mapping[str, Tensor], weight_P: Tensor
) -> tuple[Tensor, Tensor]:
    """The method's own ensemble, Σ_i ω_i z_i or ONE's gated mix, and the plain average; each [B, C]."""
    if "gate" in family.extras:
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


def _feature_term(family: PeerFamily, outputs: Mapping[str, Tensor], kind: str) -> Tensor:
    """Σ over the copies of stages that the largest, the teaching peer does not share; scalar."""
    terms = []
    for student, teacher in feature_pairs(family):
        mine, its = outputs[student.name].float(), outputs[teacher.name].float()
        if kind == "hints":
            terms.append(hint_distance(family.extras[f"hint_{student.name}"](mine), its))
        else:
            terms.append(attention_distance(mine, its))
    return torch.stack(terms).sum()


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
