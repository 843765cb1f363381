"""The losses of weighted mutual learning against values worked by hand, identities and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmlc.compress.learn.losses import cross_entropies, ensemble_loss, teaching_divergences, wml_losses

ALPHA = 0.1

# Two peers, one image of class 0: p_1 = (1/2, 1/2) and p_2 = (3/4, 1/4).
Z_PBC = torch.tensor([[[0.0, 0.0]], [[math.log(3), 0.0]]], dtype=torch.float64)
Y_B = torch.tensor([0])
CE = torch.tensor([math.log(2), math.log(4 / 3)], dtype=torch.float64)
KL_12 = math.log(4 / 3) / 2
KL_21 = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)


@pytest.fixture
def logits_PBC() -> Tensor:
    """Four peers, five images, six classes."""
    return 3 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def labels_B() -> Tensor:
    return torch.tensor([3, 1, 4, 1, 5])


def test_cross_entropies_worked_by_hand() -> None:
    torch.testing.assert_close(cross_entropies(Z_PBC, Y_B), CE)


def test_divergences_worked_by_hand() -> None:
    expected = torch.tensor([[0.0, KL_12], [KL_21, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(teaching_divergences(Z_PBC, 1.0), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_losses_worked_by_hand(alpha: float) -> None:
    taught = torch.tensor([KL_12, KL_21], dtype=torch.float64)  # peer i pays for what it teaches
    torch.testing.assert_close(wml_losses(Z_PBC, Y_B, alpha, 1.0), (1 - alpha) * CE + alpha * taught)


def test_ensemble_loss_worked_by_hand() -> None:
    weight_P = torch.tensor([0.5, 0.5], dtype=torch.float64)  # z = (log √3, 0)
    expected = -math.log(math.sqrt(3) / (1 + math.sqrt(3)))
    assert ensemble_loss(Z_PBC, Y_B, weight_P).item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropies_are_torchs_for_each_peer(logits_PBC: Tensor, labels_B: Tensor) -> None:
    expected = torch.stack([F.cross_entropy(z_BC, labels_B) for z_BC in logits_PBC])
    torch.testing.assert_close(cross_entropies(logits_PBC, labels_B), expected)


def test_divergences_are_torchs_for_each_pair(logits_PBC: Tensor) -> None:
    divergence_PP = teaching_divergences(logits_PBC, 1.0)
    for i, teacher_BC in enumerate(logits_PBC):
        for j, student_BC in enumerate(logits_PBC):
            expected = F.kl_div(student_BC.log_softmax(-1), teacher_BC.softmax(-1), reduction="batchmean")
            torch.testing.assert_close(divergence_PP[i, j], expected)
    assert torch.equal(divergence_PP.diagonal(), torch.zeros(4, dtype=torch.float64))


def test_divergences_do_not_see_a_shift_of_the_logits(logits_PBC: Tensor) -> None:
    shifted = logits_PBC + torch.arange(20, dtype=torch.float64).view(4, 5, 1)
    torch.testing.assert_close(teaching_divergences(shifted, 1.0), teaching_divergences(logits_PBC, 1.0))


def test_divergences_of_certain_peers_are_finite() -> None:
    certain = torch.tensor([[[200.0, 0.0, -200.0]], [[-200.0, 0.0, 200.0]]])
    torch.testing.assert_close(teaching_divergences(certain, 1.0), torch.tensor([[0.0, 400.0], [400.0, 0.0]]))


def test_identical_peers_leave_only_cross_entropy(labels_B: Tensor) -> None:
    z_BC = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    losses_P = wml_losses(z_BC.expand(3, 5, 6), labels_B, ALPHA, 1.0)
    torch.testing.assert_close(losses_P, ((1 - ALPHA) * F.cross_entropy(z_BC, labels_B)).expand(3))


def test_one_peer_teaches_nobody(logits_PBC: Tensor, labels_B: Tensor) -> None:
    losses_P = wml_losses(logits_PBC[:1], labels_B, ALPHA, 1.0)
    torch.testing.assert_close(losses_P, (1 - ALPHA) * cross_entropies(logits_PBC[:1], labels_B))


def test_no_gradient_reaches_the_teacher(logits_PBC: Tensor) -> None:
    logits_PBC.requires_grad_()
    divergence_PP = teaching_divergences(logits_PBC, 1.0)
    p_PBC = logits_PBC.detach().softmax(-1)
    for i in range(4):
        for j in range(4):
            (gradient_PBC,) = torch.autograd.grad(divergence_PP[i, j], logits_PBC, retain_graph=True)
            student_alone = torch.zeros_like(p_PBC)
            student_alone[j] = (p_PBC[j] - p_PBC[i]) / 5  # zero where the teacher is the student
            torch.testing.assert_close(gradient_PBC, student_alone)


def test_gradient_of_a_peers_loss_in_closed_form(logits_PBC: Tensor, labels_B: Tensor) -> None:
    logits_PBC.requires_grad_()
    (gradient_PBC,) = torch.autograd.grad(wml_losses(logits_PBC, labels_B, ALPHA, 1.0)[1], logits_PBC)
    p_PBC = logits_PBC.detach().softmax(-1)
    expected = ALPHA * (p_PBC - p_PBC[1]) / 5
    expected[1] = (1 - ALPHA) * (p_PBC[1] - F.one_hot(labels_B, 6)) / 5
    torch.testing.assert_close(gradient_PBC, expected)


@pytest.mark.parametrize("peer", range(4))
def test_one_hot_weights_make_the_ensemble_that_peer(logits_PBC: Tensor, labels_B: Tensor, peer: int) -> None:
    one_hot = F.one_hot(torch.tensor(peer), 4).double()
    expected = F.cross_entropy(logits_PBC[peer], labels_B)
    torch.testing.assert_close(ensemble_loss(logits_PBC, labels_B, one_hot), expected)


def test_gradcheck_of_cross_entropies_and_ensemble(logits_PBC: Tensor, labels_B: Tensor) -> None:
    logits_PBC.requires_grad_()
    weight_P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z_PBC: cross_entropies(z_PBC, labels_B), logits_PBC)
    assert torch.autograd.gradcheck(lambda z_PBC, w_P: ensemble_loss(z_PBC, labels_B, w_P), (logits_PBC, weight_P))


@pytest.mark.parametrize("student", range(4))
def test_gradcheck_of_what_a_student_learns(logits_PBC: Tensor, student: int) -> None:
    def taught(z_BC: Tensor) -> Tensor:
        """KL(p_i ‖ p_student) of every teacher i, the teachers held fixed."""
        rows = [z_BC if peer == student else fixed for peer, fixed in enumerate(logits_PBC)]
        return teaching_divergences(torch.stack(rows), 1.0)[:, student]

    assert torch.autograd.gradcheck(taught, logits_PBC[student].clone().requires_grad_())
