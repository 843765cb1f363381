"""Whom each peer learns from: a weight for each source, of which a student's add up to 1 (docs/methods.md).

The sources of a peer: the labels, the frozen teacher if there is one, every other peer.

Shape legend: P peers, S sources (the labels, the teacher, the peers), T those of them that teach (S less the labels).
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-30


def sources_mask(peers: int, teacher: bool) -> Tensor:
    """1 for each source that a student has, 0 for itself; float32 [S, P]."""
    return torch.cat([torch.ones(1 + teacher, peers), 1 - torch.eye(peers)])


def weighed(preference_T: Tensor, peers: int, alpha: float) -> Tensor:
    """α spread over those who teach, as they are preferred, and 1 − α on the labels; [S, P].

    Args: how much each one that teaches is preferred, from 0 up: [T], a teacher first where there is one, then the
    peers. A student of whom nobody teaches has the labels alone.
    """
    teacher = len(preference_T) > peers
    taught_TP = preference_T[:, None] * sources_mask(peers, teacher)[1:]
    total_P = taught_TP.sum(0)
    taught_TP = alpha * taught_TP / total_P.clamp(min=TINY)
    return torch.cat([(1 - taught_TP.sum(0)).clamp(min=0)[None], taught_TP])  # a sum may round above 1


def from_teacher(peers: int, alpha: float) -> Tensor:
    """Labels and the frozen teacher alone: knowledge distillation; [S, P]."""
    return weighed(torch.tensor([1.0] + [0.0] * peers), peers, alpha)


def alike(peers: int, teacher: bool, alpha: float) -> Tensor:
    """All that teach count the same; [S, P]."""
    return weighed(torch.ones(peers + teacher), peers, alpha)


def by_loss(loss_T: Tensor, peers: int, alpha: float) -> Tensor:
    """Whoever is better on held-out images, by their cross-entropies, counts for more: exp(−loss); [S, P]."""
    return weighed(torch.softmax(-loss_T, 0), peers, alpha)


def source_step(teaching_SP: Tensor, gradient_SP: Tensor, step: float) -> Tensor:
    """One step of mirror descent on each student's simplex, as long whatever the gradient's size; [S, P] → [S, P].

        w_sj ← w_sj exp(−η d_sj) / Σ_k w_kj exp(−η d_kj),  d_j = (g_j − w_j · g_j) / max_s |g_sj − w_j · g_j|

    A gradient through one training step is as small as that step, and a short training has few of them: scaled, η is
    what the logarithm of the weight that should move most moves by.
    """
    there_SP = teaching_SP > 0
    away_SP = torch.where(there_SP, gradient_SP - (teaching_SP * gradient_SP).sum(0), 0.0)
    scaled_SP = away_SP / away_SP.abs().amax(0).clamp(min=TINY)
    moved_SP = teaching_SP * torch.exp(-step * scaled_SP)
    return moved_SP / moved_SP.sum(0)
