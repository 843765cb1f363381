"""The losses of weighted mutual learning: tensors in, tensors out (paper, section 3.2; PAPER 3).

Shape legend: P peers (i teaches, j learns), B batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropies(logits_PBC: Tensor, labels_B: Tensor) -> Tensor:
    """Each peer's cross-entropy CE(z_i, Y), mean over the batch; float32 [P]."""
    peers, batch, classes = logits_PBC.shape
    each_PB = F.cross_entropy(logits_PBC.reshape(peers * batch, classes), labels_B.repeat(peers), reduction="none")
    return each_PB.view(peers, batch).mean(1)


def teaching_divergences(logits_PBC: Tensor) -> Tensor:
    """KL(p_i ‖ p_j) for every teacher i and student j, mean over the batch; [P, P], zero diagonal.

    The teaching distribution p_i is detached: the gradient reaches the student alone.
    """
    peers, batch, classes = logits_PBC.shape
    logp_PX = F.log_softmax(logits_PBC, dim=-1).reshape(peers, batch * classes)
    teacher_PX = logp_PX.detach()
    p_PX = teacher_PX.exp()
    entropy_P = (p_PX * teacher_PX).sum(1)
    divergence_PP = (entropy_P[:, None] - p_PX @ logp_PX.T) / batch
    return divergence_PP - torch.diag(divergence_PP.diagonal())


def wml_losses(logits_PBC: Tensor, labels_B: Tensor, alpha: float) -> Tensor:
    """What each peer's weight multiplies; [P].

        ℓ_i = (1 − α) CE(z_i, Y) + α Σ_{j≠i} KL(p_i ‖ p_j)

    so peer i pays for its own fit and teaches every other peer. Args: logits [P, B, C], class ids int64
    [B], α in [0, 1]. The inner objective is L1 = Σ_i ω_i ℓ_i.
    """
    return (1 - alpha) * cross_entropies(logits_PBC, labels_B) + alpha * teaching_divergences(logits_PBC).sum(1)


def ensemble_loss(logits_PBC: Tensor, labels_B: Tensor, weight_P: Tensor) -> Tensor:
    """The outer objective L2 = CE(Σ_i ω_i z_i, Y), scalar; weight_P lies on the simplex."""
    return F.cross_entropy(torch.einsum("p,pbc->bc", weight_P, logits_PBC), labels_B)
