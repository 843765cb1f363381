"""Whom each peer learns from: the losses of sources, their weights, and how these move, against values by hand."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import with_lived_in_statistics
from torch import Tensor

from wmlc.compress.config import settle
from wmlc.compress.learn.losses import channel_distance, cross_entropies, ensemble_loss, source_losses, wml_losses
from wmlc.compress.learn.methods import Forward, Taught, train_loss
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.reweigh import source_gradient
from wmlc.compress.learn.teaching import alike, by_loss, from_teacher, source_step, sources_mask, weighed

CPU = Device("cpu", bf16=False)
# Two peers and a teacher, one image of class 0. At T = 1: p_1 = (1/2, 1/2), p_2 = (3/4, 1/4), p_t = (9/10, 1/10).
Z_PBC = torch.tensor([[[0.0, 0.0]], [[math.log(3), 0.0]]], dtype=torch.float64)
TEACHER_BC = torch.tensor([[math.log(9), 0.0]], dtype=torch.float64)
Y_B = torch.tensor([0])
CE = [math.log(2), math.log(4 / 3)]
KL_12 = math.log(4 / 3) / 2
KL_21 = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
KL_T1 = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
KL_T2 = 0.9 * math.log(1.2) + 0.1 * math.log(0.4)


def some_logits(peers: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of five images and six classes of some peers and of a teacher, and the images' classes."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(peers + 1, 5, 6, generator=draw, dtype=torch.float64)
    return logits[1:], logits[0], torch.tensor([3, 1, 4, 1, 5])


def exactly(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- losses


def test_losses_of_sources_by_hand() -> None:
    taught = [[0.0, KL_12], [KL_21, 0.0]]
    torch.testing.assert_close(source_losses(Z_PBC, None, Y_B, 1.0), exactly([CE, *taught]))
    torch.testing.assert_close(source_losses(Z_PBC, TEACHER_BC, Y_B, 1.0), exactly([CE, [KL_T1, KL_T2], *taught]))
    warm = source_losses(2 * Z_PBC, 2 * TEACHER_BC, Y_B, 2.0)  # twice the logits at T = 2: four times the divergences
    torch.testing.assert_close(warm[1:], 4 * exactly([[KL_T1, KL_T2], *taught]))


def test_weights_of_sources_can_be_the_papers_own() -> None:
    # Σ_i ω_i ℓ_i, with the label term of peer j at (1 − α) ω_j and what i teaches j at α ω_i
    logits_PBC, _, labels_B = some_logits()
    omega_P, alpha = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), 0.3
    taught_PP = alpha * omega_P[:, None].expand(4, 4)
    weight_SP = torch.cat([(1 - alpha) * omega_P[None], taught_PP])
    got = (weight_SP * source_losses(logits_PBC, None, labels_B, 2.0)).sum()
    torch.testing.assert_close(got, omega_P @ wml_losses(logits_PBC, labels_B, alpha, 2.0), rtol=1e-12, atol=0)


def test_a_source_reaches_its_student_alone() -> None:
    logits_PBC, teacher_BC, labels_B = some_logits(3)
    logits_PBC.requires_grad_()
    teacher_BC.requires_grad_()
    losses_SP = source_losses(logits_PBC, teacher_BC, labels_B, 2.0)
    for source, losses_P in enumerate(losses_SP):
        for student, loss in enumerate(losses_P):
            by_peer, by_teacher = torch.autograd.grad(
                loss, [logits_PBC, teacher_BC], retain_graph=True, allow_unused=True
            )
            assert by_teacher is None
            own = source - 2 == student
            reached = (by_peer.abs().sum((1, 2)) > 0).tolist()
            assert reached == [peer == student and not own for peer in range(3)]


def kd_loss(alpha: float, temperature: float, teacher_BC: Tensor, logits_PBC: Tensor, labels_B: Tensor) -> Tensor:
    peers = len(logits_PBC)
    config = settle({"method": "kd", "start": "x.pth", "alpha": alpha, "temperature": temperature})
    nobody: Any = None
    forward = Forward(
        nobody, logits_PBC, {}, labels_B, torch.full((peers,), 1 / peers), from_teacher(peers, alpha).double(),
        Taught(teacher_BC, {}),
    )  # fmt: skip
    return train_loss(forward, config)


@pytest.mark.parametrize("peers", [1, 3])
def test_kd_is_hintons(peers: int) -> None:
    logits_PBC, teacher_BC, labels_B = some_logits(peers)
    expected = 0.0
    for z_BC in logits_PBC:
        soft_BC, target_BC = (z_BC / 3).softmax(1), (teacher_BC / 3).softmax(1)
        soft = (target_BC * (target_BC.log() - soft_BC.log())).sum(1).mean()
        hard = -z_BC.log_softmax(1)[torch.arange(5), labels_B].mean()
        expected += 0.4 * hard + 0.6 * 3**2 * soft
    torch.testing.assert_close(kd_loss(0.6, 3.0, teacher_BC, logits_PBC, labels_B), expected, rtol=1e-6, atol=0)


def test_kd_from_a_copy_of_the_student_is_labels_alone() -> None:
    logits_PBC, _, labels_B = some_logits(1)
    got = kd_loss(0.5, 2.0, logits_PBC[0], logits_PBC, labels_B)
    torch.testing.assert_close(got, 0.5 * cross_entropies(logits_PBC, labels_B).sum())


def test_channel_distance_by_hand() -> None:
    teacher, student = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 1.0]])
    assert channel_distance(student, teacher).item() == pytest.approx((0 + 9) / (9 + 16))
    assert channel_distance(teacher, teacher).item() == 0
    assert channel_distance(10 * student, 10 * teacher).item() == pytest.approx(9 / 25)  # a share, whatever the scale
    assert channel_distance(student, torch.zeros(1, 2)).isfinite()


# --- weights


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("peers", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_weights_of_a_student_add_up_to_1(peers: int, teacher: bool, alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    loss_T = 3 * torch.rand(peers + teacher, generator=draw)
    for each in (alike(peers, teacher, alpha), by_loss(loss_T, peers, alpha), weighed(loss_T, peers, alpha)):
        assert each.shape == (1 + teacher + peers, peers) and bool((each >= 0).all())
        torch.testing.assert_close(each.sum(0), torch.ones(peers))
        assert not each[1 + teacher :].diagonal().any()  # nobody teaches itself
        taught = alpha if teacher or peers > 1 else 0.0  # and where nobody teaches, the labels have all
        torch.testing.assert_close(each[0], torch.full((peers,), 1 - taught))
    assert sources_mask(peers, teacher).sum() == peers * (peers + teacher)


def test_starting_weights_by_hand() -> None:
    assert from_teacher(2, 0.5).tolist() == [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]
    assert alike(2, True, 0.5).tolist() == [[0.5, 0.5], [0.25, 0.25], [0.0, 0.25], [0.25, 0.0]]
    assert alike(2, False, 0.25).tolist() == [[0.75, 0.75], [0.0, 0.25], [0.25, 0.0]]
    # exp(−loss) of the teacher and the peers is as 4 : 1 : 2
    loss_T = torch.tensor([1.0, 1 + math.log(4), 1 + math.log(2)])
    expected = torch.tensor([[0.5, 0.5], [0.5 * 4 / 6, 0.5 * 4 / 5], [0.0, 0.5 / 5], [0.5 * 2 / 6, 0.0]])
    torch.testing.assert_close(by_loss(loss_T, 2, 0.5), expected)
    sure = by_loss(torch.tensor([200.0, 0.0, 300.0]), 2, 0.5)  # a bad teacher is better than a worse peer
    assert sure.isfinite().all() and sure[1, 1] == 0 and sure[:, 0].sum() == pytest.approx(1)


def test_a_step_of_the_sources_by_hand() -> None:
    weight_SP = exactly([[0.5], [0.25], [0.25]])
    # the mean is 1, and the farthest from it is the first by 1: d = (−1, 1, 1)
    moved_SP = source_step(weight_SP, exactly([[0.0], [2.0], [2.0]]), math.log(2))
    torch.testing.assert_close(moved_SP, exactly([[1.0], [0.125], [0.125]]) / 1.25)
    # the largest by size is what is scaled to 1, not to be outdone by one that is small: mean 2, d = (1/3, 1/3, −1)
    moved_SP = source_step(weight_SP, exactly([[4.0], [4.0], [-4.0]]), 3 * math.log(2))
    torch.testing.assert_close(moved_SP, exactly([[0.25], [0.125], [2.0]]) / 2.375)


def test_a_step_of_the_sources_is_one_of_each_student_whatever_the_gradients_size() -> None:
    draw = torch.Generator().manual_seed(0)
    weight_SP, gradient_SP = alike(3, True, 0.6).double(), torch.randn(5, 3, generator=draw).double()
    once_SP = source_step(weight_SP, gradient_SP, 0.4)
    scales, shifts = exactly([[1e-12, 1.0, 1e12]]), exactly([[0.0, 3.0, -1.0]])
    torch.testing.assert_close(source_step(weight_SP, gradient_SP * scales, 0.4), once_SP)
    torch.testing.assert_close(source_step(weight_SP, gradient_SP + shifts, 0.4), once_SP)
    for student in range(3):
        own = slice(student, student + 1)
        torch.testing.assert_close(source_step(weight_SP[:, own], gradient_SP[:, own], 0.4), once_SP[:, own])
    # what moves most moves its logarithm by the step, before all add up to 1 again
    log_SP = (once_SP / weight_SP).log()
    there_SP = weight_SP > 0
    for student in range(3):
        own_S = log_SP[there_SP[:, student], student]
        assert 0.4 <= own_S.max() - own_S.min() <= 0.8 + 1e-9


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_a_step_of_the_sources_stays_on_the_simplex(scale: float) -> None:
    draw, weight_SP = torch.Generator().manual_seed(0), by_loss(torch.tensor([0.1, 0.9, 0.7, 2.0]), 3, 0.5)
    before_SP = weight_SP
    for _ in range(50):
        weight_SP = source_step(weight_SP, scale * torch.randn(5, 3, generator=draw), 0.4)
        assert weight_SP.min() >= 0 and not weight_SP[2:].diagonal().any()
        torch.testing.assert_close(weight_SP.sum(0), torch.ones(3))
    if scale == 0:
        torch.testing.assert_close(weight_SP, before_SP)
    torch.testing.assert_close(source_step(before_SP, torch.full((5, 3), 7.0), 0.4), before_SP)


def test_the_better_source_gains() -> None:
    weight_SP = alike(2, True, 0.5)
    gradient_SP = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    moved_SP = source_step(weight_SP, gradient_SP, 0.4)
    assert moved_SP[1, 0] > weight_SP[1, 0] and moved_SP[0, 0] < weight_SP[0, 0]
    assert moved_SP[1, 1] < weight_SP[1, 1] and moved_SP[0, 1] > weight_SP[0, 1]


# --- their gradient

INNER_LR, TEMPERATURE = 0.05, 2.0


@dataclass
class Problem:
    """A family in float64, two batches, a teacher's logits of the first, and a weight for each source."""

    family: Any
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    teacher_BC: Tensor | None
    weight_SP: Tensor

    def logits(self, images: Tensor, stepped_by: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The logits of a fresh copy of the family, and that copy's parameters."""
        family = copy.deepcopy(self.family)
        parameters = list(family.parameters())
        for parameter, step in zip(parameters, stepped_by or [], strict=bool(stepped_by)):
            parameter.data -= step
        return family(images), parameters

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        logits_PBC, parameters = self.logits(self.train[0])
        return source_losses(logits_PBC, self.teacher_BC, self.train[1], TEMPERATURE), parameters

    def inner_gradient(self, weight_SP: Tensor) -> list[Tensor]:
        losses_SP, parameters = self.losses()
        return list(torch.autograd.grad((weight_SP * losses_SP).sum(), parameters))

    def ahead(self, weight_SP: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The held-out logits one inner step ahead."""
        return self.logits(self.held_out[0], [INNER_LR * each for each in self.inner_gradient(weight_SP)])

    def by_jvp(self) -> tuple[Tensor, Tensor]:
        names = [name for name, _ in self.family.named_parameters()]
        inner = dict(zip(names, self.inner_gradient(self.weight_SP), strict=True))
        return source_gradient(
            self.family, self.train, self.teacher_BC, self.held_out, self.omega_P, inner,
            temperature=TEMPERATURE, inner_lr=INNER_LR, device=CPU,
        )  # fmt: skip

    @property
    def omega_P(self) -> Tensor:
        return torch.arange(1, 1 + self.family.peers).double() / sum(range(1, 1 + self.family.peers))


def a_problem(net: Any, ratios: tuple[float, ...], teacher: bool, share: str) -> Problem:
    family = net.family(net.widths(ratios, share=share), share=share).double().train()
    with_lived_in_statistics(family)
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(8, *net.input_shape, generator=draw, dtype=torch.float64)
    labels = torch.randint(10, (8,), generator=draw)
    teacher_BC = 2 * torch.randn(4, 10, generator=draw, dtype=torch.float64) if teacher else None
    weight_SP = alike(len(ratios), teacher, 0.4).double()
    return Problem(family, (images[:4], labels[:4]), (images[4:], labels[4:]), teacher_BC, weight_SP)


@pytest.fixture(scope="module")
def taught(scored_network: Callable[..., Any]) -> Problem:
    """Two peers that share nothing, and a teacher."""
    return a_problem(scored_network("resnet20"), (0.7, 0.3), teacher=True, share="none")


@pytest.fixture(scope="module")
def alone(scored_network: Callable[..., Any]) -> Problem:
    """Two peers that share a stem, without a teacher."""
    return a_problem(scored_network("resnet20"), (0.5, 0.0), teacher=False, share="tree")


@pytest.mark.parametrize("name", ["taught", "alone"])
def test_one_jvp_equals_a_backward_pass_for_each_source(name: str, request: pytest.FixtureRequest) -> None:
    problem: Problem = request.getfixturevalue(name)
    got_SP, _ = problem.by_jvp()
    logits_PBC, parameters = problem.ahead(problem.weight_SP)
    outer = torch.autograd.grad(cross_entropies(logits_PBC, problem.held_out[1]).sum(), parameters)
    losses_SP, parameters = problem.losses()
    expected = torch.zeros_like(got_SP)
    for place in itertools.product(*map(range, losses_SP.shape)):
        own = torch.autograd.grad(
            losses_SP[place], parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        expected[place] = -INNER_LR * sum((a * b).sum() for a, b in zip(outer, own, strict=True))
    assert got_SP.std() > 1e-6
    torch.testing.assert_close(got_SP, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["taught", "alone"])
def test_it_is_the_slope_of_the_peers_own_losses_after_one_inner_step(
    name: str, request: pytest.FixtureRequest
) -> None:
    problem: Problem = request.getfixturevalue(name)
    draw = torch.Generator().manual_seed(3)
    direction_SP = torch.randn(problem.weight_SP.shape, generator=draw, dtype=torch.float64)
    above, below = (
        cross_entropies(problem.ahead(problem.weight_SP + step * direction_SP)[0], problem.held_out[1]).sum()
        for step in (1e-6, -1e-6)
    )
    slope = ((above - below) / 2e-6).item()
    assert (problem.by_jvp()[0] * direction_SP).sum().item() == pytest.approx(slope, rel=1e-4)


def test_the_peer_weights_get_the_ensembles_gradient_one_step_ahead(taught: Problem) -> None:
    _, got_P = taught.by_jvp()
    omega_P = taught.omega_P.requires_grad_()
    logits_PBC, _ = taught.ahead(taught.weight_SP)
    (expected_P,) = torch.autograd.grad(ensemble_loss(logits_PBC.detach(), taught.held_out[1], omega_P), omega_P)
    torch.testing.assert_close(got_P, expected_P)


def test_the_family_and_the_random_state_are_left_as_they_were(taught: Problem) -> None:
    family, random_state = taught.family, torch.get_rng_state()
    former, teacher_BC = copy.deepcopy(family.state_dict()), taught.teacher_BC
    assert teacher_BC is not None
    teacher_before = teacher_BC.clone()
    names = [name for name, _ in family.named_parameters()]
    inner = dict(zip(names, taught.inner_gradient(taught.weight_SP), strict=True))
    for parameter in family.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    gradient_SP, gradient_P = source_gradient(
        family, taught.train, teacher_BC, taught.held_out, taught.omega_P, inner,
        temperature=TEMPERATURE, inner_lr=INNER_LR, device=CPU,
    )  # fmt: skip
    assert not gradient_SP.requires_grad and not gradient_P.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state) and torch.equal(teacher_BC, teacher_before)
    torch.testing.assert_close(dict(family.state_dict()), dict(former), rtol=0, atol=0)
    assert all(module.training for module in family.modules())
    assert all(torch.equal(p.grad, torch.full_like(p, 0.5)) for p in family.parameters())
    family.zero_grad()


def test_without_an_inner_step_no_source_serves(taught: Problem) -> None:
    zeros = {name: torch.zeros_like(parameter) for name, parameter in taught.family.named_parameters()}
    gradient_SP, gradient_P = source_gradient(
        taught.family, taught.train, taught.teacher_BC, taught.held_out, taught.omega_P, zeros,
        temperature=TEMPERATURE, inner_lr=0.0, device=CPU,
    )  # fmt: skip
    assert not gradient_SP.any() and gradient_P.std() > 0


def test_a_source_that_says_what_the_student_says_serves_nothing(alone: Problem) -> None:
    problem = copy.copy(alone)
    problem.teacher_BC = problem.logits(problem.train[0])[0][1].detach()  # the second peer's own logits
    problem.weight_SP = alike(2, True, 0.4).double()
    gradient_SP, _ = problem.by_jvp()
    assert gradient_SP[1, 1].abs() < 1e-12 < gradient_SP[1, 0].abs()
    torch.testing.assert_close(gradient_SP[1, 0], gradient_SP[3, 0])  # the teacher and that peer teach alike
    assert F.cross_entropy(problem.teacher_BC, problem.train[1]).isfinite()
