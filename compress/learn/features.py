"""Terms on what stages put out, to be added to any teaching loss: the paper's next step (section 5).

Shape legend: B batch, C channels (S a student's, T its teacher's), H height, W width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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


def pooled_distance(exit_BC: Tensor, deepest_BC: Tensor) -> Tensor:
    """Self-distillation's hint (Zhang et al., ICCV 2019, eq. 4): ‖F_i − F_P‖² of pooled features, mean over the batch.

    The deepest exit's features are detached. A widely used implementation weighs the sum over a batch of 128 by 1e-6:
    about 1e-4 of this mean.
    """
    return (exit_BC - deepest_BC.detach()).square().sum(1).mean()
