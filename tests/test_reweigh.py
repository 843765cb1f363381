"""Peer weights: one JVP against as many backward passes as there are peers, and mirror descent."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import with_lived_in_statistics
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from wmlc.compress.config import settle
from wmlc.compress.learn.losses import ensemble_loss, wml_losses
from wmlc.compress.learn.norm_tangent import FusedTangents
from wmlc.compress.learn.place import Device
from wmlc.compress.learn.reweigh import mirror_step, peer_weight_gradient
from wmlc.compress.learn.train import _reweigh
from wmlc.compress.learn.watch import Watch

CPU = Device("cpu", bf16=False)
ALPHA, INNER_LR = 0.1, 0.05
WEIGHT_P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


class Problem:
    """A family in float64 with a training and a held-out batch; each pass restarts the random state."""

    def __init__(
        self, net: Any, batch: int, ratios: tuple[float, ...] = (0.7, 0.5, 0.3, 0.0), mean_joins: bool = False
    ) -> None:
        self.family = net.family(net.widths(ratios), mean_joins=mean_joins).double().train()
        self.weight_P = WEIGHT_P[-len(ratios) :] / WEIGHT_P[-len(ratios) :].sum()
        draw = torch.Generator().manual_seed(2)
        images = torch.randn(2 * batch, *net.input_shape, generator=draw, dtype=torch.float64)
        labels = torch.randint(10, (2 * batch,), generator=draw)
        self.train = images[:batch], labels[:batch]
        self.held_out = images[batch:], labels[batch:]

    def logits(self, images: Tensor, stepped_by: list[Tensor] | None = None) -> tuple[Tensor, list[nn.Parameter]]:
        """The logits [P, B, C] of a fresh copy of the family, and that copy's parameters."""
        family = copy.deepcopy(self.family)
        parameters = list(family.parameters())
        for parameter, step in zip(parameters, stepped_by or [], strict=bool(stepped_by)):
            parameter.data -= step
        if len(images) == 1:  # it has no statistics of its own; the network has no dropout
            family.eval()
        with torch.random.fork_rng([]):
            return family(images), parameters

    def inner_gradient(self, weight_P: Tensor) -> list[Tensor]:
        logits_PBC, parameters = self.logits(self.train[0])
        return list(torch.autograd.grad(weight_P @ wml_losses(logits_PBC, self.train[1], ALPHA, 1.0), parameters))

    def outer(self, weight_P: Tensor, inner_weight_P: Tensor) -> tuple[Tensor, list[nn.Parameter]]:
        """L2(θ − γ ∇_θ L1(θ, `inner_weight_P`), `weight_P`)."""
        step = [INNER_LR * gradient for gradient in self.inner_gradient(inner_weight_P)]
        logits_PBC, parameters = self.logits(self.held_out[0], step)
        return ensemble_loss(logits_PBC, self.held_out[1], weight_P), parameters

    def by_backward_passes(self, weight_P: Tensor) -> Tensor:
        """∂L2/∂ω_i − γ ⟨∇_θ L2(θ'), ∇_θ ℓ_i(θ)⟩, one backward pass for each peer; [P]."""
        omega_P = weight_P.clone().requires_grad_()
        outer, parameters = self.outer(omega_P, weight_P)
        direct_P, *outer_gradient = torch.autograd.grad(outer, [omega_P, *parameters])
        aligned = []
        for peer in range(len(weight_P)):
            logits_PBC, parameters = self.logits(self.train[0])
            loss = wml_losses(logits_PBC, self.train[1], ALPHA, 1.0)[peer]
            own = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            aligned.append(sum((a * b).sum() for a, b in zip(outer_gradient, own, strict=True)))
        return direct_P - INNER_LR * torch.stack(aligned)

    def by_jvp(self, weight_P: Tensor) -> Tensor:
        names = [name for name, _ in self.family.named_parameters()]
        inner = dict(zip(names, self.inner_gradient(weight_P), strict=True))
        return peer_weight_gradient(
            self.family, self.train, self.held_out, weight_P, inner,
            alpha=ALPHA, temperature=1.0, inner_lr=INNER_LR, device=CPU,
        )  # fmt: skip


@pytest.fixture(scope="module")
def resnet(scored_network: Callable[..., Any]) -> Problem:
    return Problem(scored_network("resnet20"), batch=4)


@pytest.fixture(scope="module")
def mobilenet(scored_network: Callable[..., Any]) -> Problem:
    """Has dropout."""
    return Problem(scored_network("mobilenet_v2"), batch=3, ratios=(0.8, 0.7))


@pytest.fixture(scope="module")
def mean_joins(scored_network: Callable[..., Any]) -> Problem:
    """Its shared stages step by the mean of their peers' gradients, in a tree that is not even."""
    return Problem(scored_network("resnet20"), batch=4, ratios=(0.7, 0.5, 0.0), mean_joins=True)


@pytest.fixture(scope="module")
def one_held_out(scored_network: Callable[..., Any]) -> Problem:
    """A set so small that a single image is held out."""
    problem = Problem(scored_network("resnet20"), batch=4)
    with_lived_in_statistics(problem.family)
    problem.held_out = problem.held_out[0][:1], problem.held_out[1][:1]
    return problem


def test_a_clipped_step_looks_ahead_as_far_as_it_goes(resnet: Problem) -> None:
    """A step along gradients that were clipped is one at that share of the rate along what they were."""
    config, device = settle({"weight_lr": 1.0, "alpha": ALPHA}), Device("cpu", bf16=False)
    gradients = [4 * gradient for gradient in resnet.inner_gradient(WEIGHT_P)]  # of a step, which descends P · L1

    def moved(share: float, lr: float, clipped: Tensor | float) -> Tensor:
        for parameter, gradient in zip(resnet.family.parameters(), gradients, strict=True):
            parameter.grad = share * gradient
        weights, watch = (WEIGHT_P, None), Watch(0, device)
        found, _ = _reweigh(
            resnet.family, resnet.train, None, resnet.held_out, weights, config, lr, clipped, device, watch
        )
        return found

    clipped = moved(0.2, 0.5, torch.tensor(0.2, dtype=torch.float64))
    resnet.family.zero_grad()
    torch.testing.assert_close(clipped, moved(1.0, 0.1, 1.0))
    assert not torch.allclose(clipped, moved(0.2, 0.5, 1.0))
    resnet.family.zero_grad()


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "one_held_out"])
def test_one_jvp_equals_a_backward_pass_for_each_peer(name: str, request: pytest.FixtureRequest) -> None:
    problem = request.getfixturevalue(name)
    weight_P = problem.weight_P
    expected = problem.by_backward_passes(weight_P)
    got = problem.by_jvp(weight_P)
    assert got.shape == weight_P.shape and got.std() > 1e-6
    assert all(module.training for module in problem.family.modules())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["resnet", "mean_joins"])
def test_it_is_the_slope_of_the_outer_loss_after_one_inner_step(name: str, request: pytest.FixtureRequest) -> None:
    problem = request.getfixturevalue(name)
    weight_P, direction_P = problem.weight_P, torch.tensor([0.3, -1.0, 0.5, 0.8], dtype=torch.float64)
    direction_P = direction_P[: len(weight_P)]
    sides = [weight_P + 1e-6 * direction_P, weight_P - 1e-6 * direction_P]
    above, below = (problem.outer(side_P, side_P)[0] for side_P in sides)
    slope = ((above - below) / 2e-6).item()
    assert (problem.by_jvp(weight_P) @ direction_P).item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name, training", [("resnet", True), ("resnet", False), ("mobilenet", True)])
def test_the_family_and_the_random_state_are_left_as_they_were(
    name: str, training: bool, request: pytest.FixtureRequest
) -> None:
    problem = copy.copy(request.getfixturevalue(name))
    problem.family = copy.deepcopy(problem.family).train(training)
    for parameter in problem.family.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    pointers = [parameter.data_ptr() for parameter in problem.family.parameters()]
    former, weight_P, random_state = (
        copy.deepcopy(problem.family.state_dict()),
        problem.weight_P.clone(),
        torch.get_rng_state(),
    )
    gradient_P = problem.by_jvp(weight_P)

    assert not gradient_P.requires_grad and torch.equal(weight_P, problem.weight_P) and not weight_P.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.testing.assert_close(dict(problem.family.state_dict()), dict(former), rtol=0, atol=0)
    assert all(module.training is training for module in problem.family.modules())
    assert [parameter.data_ptr() for parameter in problem.family.parameters()] == pointers
    assert all(p.requires_grad and torch.equal(p.grad, torch.full_like(p, 0.5)) for p in problem.family.parameters())


class NoForwardMode(torch.autograd.Function):
    """The identity as an operation without a rule for forward mode, as somebody's own kernel may be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_where_an_operation_has_no_forward_mode_two_passes_give_the_same(
    resnet: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, forward = resnet.by_jvp(WEIGHT_P), type(resnet.family).forward
    monkeypatch.setattr(type(resnet.family), "forward", lambda self, images: NoForwardMode.apply(forward(self, images)))
    torch.testing.assert_close(resnet.by_jvp(WEIGHT_P), expected, rtol=2e-2, atol=0)  # ReLU has kinks


def test_without_an_inner_step_only_the_direct_part_is_left(resnet: Problem) -> None:
    zeros = {name: torch.zeros_like(parameter) for name, parameter in resnet.family.named_parameters()}
    got = peer_weight_gradient(
        resnet.family, resnet.train, resnet.held_out, WEIGHT_P, zeros,
        alpha=ALPHA, temperature=1.0, inner_lr=0.0, device=CPU,
    )  # fmt: skip
    omega_P = WEIGHT_P.clone().requires_grad_()
    logits_PBC, _ = resnet.logits(resnet.held_out[0])
    loss = ensemble_loss(logits_PBC.detach(), resnet.held_out[1], omega_P)
    torch.testing.assert_close(got, torch.autograd.grad(loss, omega_P)[0])


def test_float32_agrees_with_float64(scored_network: Callable[..., Any], resnet: Problem) -> None:
    family = copy.deepcopy(resnet.family).float()
    names = [name for name, _ in family.named_parameters()]
    inner = [gradient.float() for gradient in resnet.inner_gradient(WEIGHT_P)]
    train, held_out = ((images.float(), labels) for images, labels in (resnet.train, resnet.held_out))
    got = peer_weight_gradient(
        family, train, held_out, WEIGHT_P.float(), dict(zip(names, inner, strict=True)),
        alpha=ALPHA, temperature=1.0, inner_lr=INNER_LR, device=CPU,
    )  # fmt: skip
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), resnet.by_jvp(WEIGHT_P), rtol=1e-3, atol=1e-5)


# Mirror descent


def test_a_mirror_step_worked_by_hand() -> None:
    weight_P = torch.tensor([0.5, 0.5], dtype=torch.float64)
    gradient_P = torch.tensor([2.0, 0.0], dtype=torch.float64).log1p()  # (log 3, 0)
    # ½·3⁻¹ : ½·1 = 1 : 3
    torch.testing.assert_close(mirror_step(weight_P, gradient_P, 1.0), torch.tensor([0.25, 0.75]).double())
    # ½·9⁻¹ : ½·1 = 1 : 9
    torch.testing.assert_close(mirror_step(weight_P, gradient_P, 2.0), torch.tensor([0.1, 0.9]).double())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_mirror_step_stays_on_the_simplex(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weight_P = torch.full((8,), 1 / 8)
    for _ in range(50):
        weight_P = mirror_step(weight_P, scale * torch.randn(8, generator=draw), 0.1)
        assert weight_P.min() >= 0 and weight_P.sum().item() == pytest.approx(1, abs=1e-5)


def test_no_gradient_or_the_same_for_all_leaves_the_weights() -> None:
    for gradient_P in (torch.zeros(4).double(), torch.full((4,), 7.0).double()):
        torch.testing.assert_close(mirror_step(WEIGHT_P, gradient_P, 0.1), WEIGHT_P)


def test_no_step_leaves_the_weights_and_a_lone_peer_keeps_all() -> None:
    torch.testing.assert_close(mirror_step(WEIGHT_P, torch.randn(4).double(), 0.0), WEIGHT_P)
    assert mirror_step(torch.ones(1), torch.tensor([3.0]), 0.1).tolist() == [1.0]


@pytest.mark.parametrize("moving", ["weight", "0.weight", "1.weight", "1.bias", "3."])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_fused_tangent_is_torchs(moving: str, training: bool) -> None:
    """Of a network whose named parameters move, and the others stay."""
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(4), nn.BatchNorm1d(3)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), norms[0], nn.Flatten(), nn.Linear(64, 3), norms[1]).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network.train(training)
    images, buffers = torch.randn(5, 2, 6, 6, dtype=torch.float64), dict(network.named_buffers())
    tangents = {name: torch.randn_like(own) for name, own in network.named_parameters() if moving in name}

    def tangent(fused: bool) -> tuple[Tensor, Tensor]:
        at = {name: parameter.detach() for name, parameter in network.named_parameters()}
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        with forward_ad.dual_level(), torch.no_grad(), FusedTangents() if fused else contextlib.nullcontext():
            at |= {name: forward_ad.make_dual(at[name], along) for name, along in tangents.items()}
            found = forward_ad.unpack_dual(functional_call(network, (at, own), (images,))).tangent
        assert found is not None
        return found, own["1.running_var"]

    for fused, plain in zip(tangent(True), tangent(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)
