"""The losses that teach a family, tensors in, tensors out: one a method, and terms on what stages put out.

A distribution that teaches is detached everywhere: the gradient reaches the student alone. T is the temperature: logits
are divided by it before the softmax, and the divergence is multiplied by T², so that its gradient keeps its size.

Shape legend: P peers (i teaches, j learns), B batch, C classes, S sources that a peer learns from; in the terms on
stages C channels (S a student's, T its teacher's), H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12


def cross_entropies(logits_PBC: Tensor, labels_B: Tensor) -> Tensor:
    """Each peer's cross-entropy CE(z_i, Y), mean over the batch; float32 [P]."""
    peers, batch, classes = logits_PBC.shape
    each_PB = F.cross_entropy(logits_PBC.reshape(peers * batch, classes), labels_B.repeat(peers), reduction="none")
    return each_PB.view(peers, batch).mean(1)


def teaching_divergences(logits_PBC: Tensor, temperature: float) -> Tensor:
    """T² KL(p_i ‖ p_j) for every teacher i and student j, mean over the batch; [P, P], zero diagonal."""
    peers, batch, classes = logits_PBC.shape
    logp_PX = F.log_softmax(logits_PBC / temperature, dim=-1).reshape(peers, batch * classes)
    teacher_PX = logp_PX.detach()
    p_PX = teacher_PX.exp()
    entropy_P = (p_PX * teacher_PX).sum(1)
    divergence_PP = (entropy_P[:, None] - p_PX @ logp_PX.T) * (temperature**2 / batch)
    return divergence_PP - torch.diag(divergence_PP.diagonal())


def divergence_from(teacher_BC: Tensor, logits_BC: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(z / T)) of logits, mean over the batch; scalar."""
    target_BC = F.log_softmax(teacher_BC.detach() / temperature, dim=-1)
    student_BC = F.log_softmax(logits_BC / temperature, dim=-1)
    return temperature**2 * F.kl_div(student_BC, target_BC, reduction="batchmean", log_target=True)


def source_losses(logits_PBC: Tensor, teacher_BC: Tensor | None, labels_B: Tensor, temperature: float) -> Tensor:
    """What each peer loses against each source that it could learn from; [S, P], a column a student.

        ℓ_0j = CE(z_j, Y),  ℓ_sj = T² KL(p_s ‖ p_j)

    Sources, in this order: the labels, the frozen teacher if there is one, the peers; a peer loses nothing against
    itself. These are the terms of Σ_i ω_i ℓ_i (`wml_losses`) one by one, so that each can have a weight of its own.
    """
    own_P = cross_entropies(logits_PBC, labels_B)
    taught_PP = teaching_divergences(logits_PBC, temperature)
    if teacher_BC is None:
        return torch.cat([own_P[None], taught_PP])
    by_teacher_P = torch.stack([divergence_from(teacher_BC, z_BC, temperature) for z_BC in logits_PBC])
    return torch.cat([own_P[None], by_teacher_P[None], taught_PP])


def wml_losses(logits_PBC: Tensor, labels_B: Tensor, alpha: float, temperature: float) -> Tensor:
    """Weighted mutual learning (paper, section 3.2): what each peer's weight multiplies; [P].

        ℓ_i = (1 − α) CE(z_i, Y) + α Σ_{j≠i} T² KL(p_i ‖ p_j)

    so peer i pays for its own fit and teaches every other peer. Args: logits [P, B, C], class ids int64
    [B], α in [0, 1]; the paper's T is 1. The inner objective is L1 = Σ_i ω_i ℓ_i.
    """
    taught_P = teaching_divergences(logits_PBC, temperature).sum(1)
    return (1 - alpha) * cross_entropies(logits_PBC, labels_B) + alpha * taught_P


def ensemble_loss(logits_PBC: Tensor, labels_B: Tensor, weight_P: Tensor) -> Tensor:
    """The outer objective L2 = CE(Σ_i ω_i z_i, Y), scalar; weight_P lies on the simplex."""
    return F.cross_entropy(torch.einsum("p,pbc->bc", weight_P, logits_PBC), labels_B)


def dml_losses(logits_PBC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Deep mutual learning (Zhang et al., CVPR 2018, eq. 8): each peer learns from all others; [P].

        ℓ_j = CE(z_j, Y) + 1 / (P − 1) Σ_{i≠j} T² KL(p_i ‖ p_j)

    With one peer it is the cross-entropy alone. The paper's T is 1, and all peers step at once here where it lets
    them step in turn.
    """
    mean_P = teaching_divergences(logits_PBC, temperature).sum(0) / max(len(logits_PBC) - 1, 1)
    return cross_entropies(logits_PBC, labels_B) + mean_P


def gated_ensemble(logits_PBC: Tensor, gate_BP: Tensor) -> Tensor:
    """ONE's teacher Σ_i g_i(x) z_i(x), the gate's weights on the simplex for each image; [B, C]."""
    return torch.einsum("bp,pbc->bc", gate_BP, logits_PBC)


def one_losses(logits_PBC: Tensor, labels_B: Tensor, gate_BP: Tensor, temperature: float) -> Tensor:
    """On-the-fly native ensemble (Lan et al., NeurIPS 2018, eq. 6): the branches learn from their gated mix; [P + 1].

        ℓ_i = CE(z_i, Y) + T² KL(p_e ‖ p_i),  ℓ_{P+1} = CE(z_e, Y),  z_e = Σ_i g_i z_i

    The labels train the teacher z_e, and with it gate and branches; its teaching does not.
    """
    teacher_BC = gated_ensemble(logits_PBC, gate_BP)
    taught_P = torch.stack([divergence_from(teacher_BC, z_BC, temperature) for z_BC in logits_PBC])
    own_P = cross_entropies(logits_PBC, labels_B) + taught_P
    return torch.cat([own_P, F.cross_entropy(teacher_BC, labels_B)[None]])


def cl_losses(logits_PBC: Tensor, labels_B: Tensor, alpha: float, temperature: float) -> Tensor:
    """Collaborative learning (Song & Chai, NeurIPS 2018, eq. 3 and 4): a head learns from the other heads' mean; [P].

        ℓ_j = (1 − α) CE(z_j, Y) + α T² KL(q_j ‖ p_j),  q_j = softmax(Σ_{i≠j} z_i / ((P − 1) T))

    The paper's β is 1 − α. Its rescaling of gradients where branches join is the family's part (`PeerFamily`).
    With one peer there is nobody to learn from: the cross-entropy alone.
    """
    own_P = cross_entropies(logits_PBC, labels_B)
    if len(logits_PBC) == 1:
        return own_P
    others_PBC = (logits_PBC.sum(0) - logits_PBC) / (len(logits_PBC) - 1)
    pairs = zip(others_PBC, logits_PBC, strict=True)
    taught_P = torch.stack([divergence_from(q_BC, z_BC, temperature) for q_BC, z_BC in pairs])
    return (1 - alpha) * own_P + alpha * taught_P


def self_distillation_losses(logits_PBC: Tensor, labels_B: Tensor, alpha: float, temperature: float) -> Tensor:
    """Be your own teacher (Zhang et al., ICCV 2019, eq. 2 and 3): the deepest exit, the last one, teaches; [P].

        ℓ_j = (1 − α) CE(z_j, Y) + α T² KL(p_P ‖ p_j) for j < P,  ℓ_P = CE(z_P, Y)

    as the deepest is taught by the labels alone. The paper's third term, on features, is `pooled_distance`.
    """
    own_P = cross_entropies(logits_PBC, labels_B)
    taught = [divergence_from(logits_PBC[-1], z_BC, temperature) for z_BC in logits_PBC[:-1]]
    return torch.stack([*((1 - alpha) * own_P[:-1] + alpha * torch.stack(taught)), own_P[-1]]) if taught else own_P


# --- terms on what stages put out, to be added to any teaching loss: the paper's next step (section 5)


def hint_distance(student_BTHW: Tensor, teacher_BTHW: Tensor) -> Tensor:
    """FitNets (Romero et al., ICLR 2015, eq. 3): mean squared distance of a student's stage from its teacher's; scalar.

    The student's output comes through a regressor, a 1 × 1 convolution to the teacher's channels; the teacher is
    detached. A mean where the paper has half the sum: the weight makes up for it.
    """
    return F.mse_loss(student_BTHW, teacher_BTHW.detach())


def attention_distance(student_BSHW: Tensor, teacher_BTHW: Tensor) -> Tensor:
    """Attention transfer (Zagoruyko & Komodakis, ICLR 2017, eq. 2): how far apart two stages look; scalar.

        mean (Q_S / ‖Q_S‖ − Q_T / ‖Q_T‖)²,  Q = the mean over channels of the squared outputs, a vector of H · W

    Student and teacher may differ in channels, not in height and width. The teacher is detached.
    """
    maps = [
        F.normalize(output_BCHW.square().mean(1).flatten(1), dim=1)
        for output_BCHW in (student_BSHW, teacher_BTHW.detach())
    ]
    return F.mse_loss(maps[0], maps[1])


def channel_distance(student_BX: Tensor, teacher_BX: Tensor, size: Tensor | None = None) -> Tensor:
    """How far a peer's stage is from the very channels that it was cut from, as a share of their size; scalar.

        mean (F_S − F_T)² / mean F_T²,  F_T the kept channels of the trained network's output, detached

    As FitNets' hint without a regressor: a cut network's channels are those of the full one. Args: the `size` that they
    are a share of, where that is the mean over more than this batch.
    """
    teacher_BX = teacher_BX.detach()
    size = teacher_BX.square().mean() if size is None else size
    return F.mse_loss(student_BX, teacher_BX) / size.clamp(min=TINY)


def pooled_distance(exit_BC: Tensor, deepest_BC: Tensor) -> Tensor:
    """Self-distillation's hint (Zhang et al., ICCV 2019, eq. 4): ‖F_i − F_P‖² of pooled features, mean over the batch.

    The deepest exit's features are detached. A widely used implementation weighs the sum over a batch of 128 by 1e-6:
    about 1e-4 of this mean.
    """
    return (exit_BC - deepest_BC.detach()).square().sum(1).mean()
